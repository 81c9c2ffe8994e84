"""The device mesh, and the shardings of a state and of a batch on it.

    data   copies of the state; each sees other rows of the batch
    fsdp   devices that one copy of the state is sharded over; each sees other
           rows, too, and parameters are gathered in the step

The rows of a batch are sharded over both axes, so the mesh is no part of what
is computed: a run may be continued with another `mesh.fsdp`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gamix_jax.errors import UserError

DATA, FSDP = "data", "fsdp"


def create_mesh(batch_size: int, fsdp: int = 1) -> Mesh:
  """All devices of all hosts, [data, fsdp], those of a host side by side.

  So the rows of a batch are the same ones whatever the hosts are: every host
  brings a contiguous share (`data.batches`) and its devices hold it. And a
  copy of the state lies within a host, whose devices are closest to each
  other, where `fsdp` divides their number.

  Raises:
    UserError: the global batch does not divide by them, or they do not by
      `fsdp`.
  """
  devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
  count = len(devices)
  if batch_size % count:
    below = batch_size // count * count
    fits = [b for b in (below, below + count) if b]
    raise UserError(
      f"data.batch_size={batch_size} does not divide by the {count} devices; "
      f"use {' or '.join(map(str, fits))}."
    )
  if count % fsdp:
    fits = [n for n in range(1, count + 1) if count % n == 0]
    raise UserError(
      f"mesh.fsdp={fsdp} does not divide the {count} devices; "
      f"use {' or '.join(map(str, fits))}."
    )
  return _grid(devices, fsdp)


def local() -> Mesh:
  """This process's own devices, each with a copy of the state."""
  return _grid(jax.local_devices(), 1)


def _grid(devices: list[jax.Device], fsdp: int) -> Mesh:
  return Mesh(
    np.asarray(devices).reshape(-1, fsdp),
    (DATA, FSDP),
    axis_types=(AxisType.Auto,) * 2,
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds all of it."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Every device holds its rows of the first axis."""
  return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def global_batch(
  mesh: Mesh, batch: Mapping[str, np.ndarray]
) -> dict[str, jax.Array]:
  """This host's rows [b_local, ...] as arrays of the global batch [b, ...]."""
  sharding = batch_sharding(mesh)
  return {
    k: jax.make_array_from_process_local_data(sharding, v)
    for k, v in batch.items()
  }


# ---------------------------------------------------------- a state


@dataclasses.dataclass(frozen=True)
class ShardingPlan:
  """The shardings of a state, and where a step changes them.

  Large arrays (parameters, optimiser slots, averaged weights) are sharded over
  the axis `fsdp`. A step gathers the parameters (`replicate`) and shards its
  gradients (`shard`) before the updates, which are computed in parts. Left to
  itself the compiler shards layers over that axis instead and sends
  activations.

  Attributes:
    mesh: of `create_mesh`.
    min_size: smaller arrays, by their count of numbers, are never sharded.
  """

  mesh: Mesh
  min_size: int

  def shardings(self, tree: Any) -> Any:
    """The sharding of each leaf; decided here and nowhere else.

    Args:
      tree: a state, or a part of one; arrays or their shapes.
    """
    return jax.tree.map(lambda leaf: self._partition_spec(leaf.shape), tree)

  def _partition_spec(self, shape: tuple[int, ...]) -> NamedSharding:
    """Along the largest axis that divides, the first of equal ones.

    Of a kernel [3, 3, 128, 128] that is c_in. The last axis is what a TPU lays
    along 128 lanes: an eighth of it takes the memory of all.
    """
    parts = self.mesh.shape[FSDP]
    dividing = [n for n in shape if n % parts == 0]
    if parts == 1 or not dividing or math.prod(shape) < self.min_size:
      return replicated(self.mesh)
    before = shape.index(max(dividing))
    return NamedSharding(self.mesh, PartitionSpec(*[None] * before, FSDP))

  def with_shardings(self, abstract: Any) -> Any:
    """Shapes (of `jax.eval_shape`) with their shardings."""
    return jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=sharding
      ),
      abstract,
      self.shardings(abstract),
    )

  def replicate(self, tree: Any) -> Any:
    """Inside a jitted function: the arrays, complete on every device."""
    return self._constrained(tree, replicated(self.mesh))

  def shard(self, tree: Any) -> Any:
    """Inside a jitted function: arrays shaped as parameters, sharded."""
    return self._constrained(tree, self.shardings(tree))

  def _constrained(self, tree: Any, wanted: Any) -> Any:
    if self.mesh.shape[FSDP] == 1:  # nothing is in parts
      return tree
    return jax.lax.with_sharding_constraint(tree, wanted)

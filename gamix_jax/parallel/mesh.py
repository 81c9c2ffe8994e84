"""The device mesh, and the shardings of states and batches.

    data   data parallelism: the state is replicated along this axis
    fsdp   the state is sharded along this axis; a step gathers the parameters

The batch is sharded over both axes, so the mesh does not affect the results:
a run may be continued with another `mesh.fsdp`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gamix_jax.errors import UserError

DATA, FSDP = "data", "fsdp"


def create_mesh(
  batch_size: int,
  fsdp: int = 1,
  accumulate: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """Creates a mesh [data, fsdp] of devices.

  The devices of a host are adjacent. Each host then loads a contiguous part of
  the batch (`data.batches`) for its own devices, so that a batch has the same
  rows for any number of hosts. If `fsdp` divides the number of devices per
  host, a copy of the state is stored within one host, where communication is
  fastest.

  Args:
    batch_size: of the global batch.
    fsdp: devices that each copy of the state is sharded over.
    accumulate: the parts of a batch that are processed one after the other;
      each is sharded over all devices.
    devices: by default all devices of all hosts.

  Raises:
    UserError: the number of devices does not divide the batch size (or that of
      a part), or `fsdp` does not divide the number of devices.
  """
  if devices is None:
    devices = jax.devices()
  devices = sorted(devices, key=lambda d: (d.process_index, d.id))
  count = len(devices)
  if batch_size % (multiple := count * accumulate):
    below = batch_size // multiple * multiple
    valid = [b for b in (below, below + multiple) if b]
    parts = f" times optim.accumulate={accumulate}" if accumulate > 1 else ""
    raise UserError(
      f"data.batch_size={batch_size} must be a multiple of the number of "
      f"devices, {count}{parts}; use {' or '.join(map(str, valid))}."
    )
  if count % fsdp:
    valid = [n for n in range(1, count + 1) if count % n == 0]
    raise UserError(
      f"mesh.fsdp={fsdp} must divide the number of devices, {count}; "
      f"use {' or '.join(map(str, valid))}."
    )
  return _mesh(devices, fsdp)


def local() -> Mesh:
  """Creates a mesh of this process's devices, each with a copy of the state."""
  return _mesh(jax.local_devices(), 1)


def _mesh(devices: list[jax.Device], fsdp: int) -> Mesh:
  return Mesh(
    np.asarray(devices).reshape(-1, fsdp),
    (DATA, FSDP),
    axis_types=(AxisType.Auto,) * 2,
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds completely."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of a batch: its first axis over all devices."""
  return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def global_batch(
  mesh: Mesh, batch: Mapping[str, np.ndarray]
) -> dict[str, jax.Array]:
  """Builds global arrays [b, ...] from each host's rows [b_local, ...]."""
  sharding = batch_sharding(mesh)
  return {
    k: jax.make_array_from_process_local_data(sharding, v)
    for k, v in batch.items()
  }


# ---------------------------------------------------------- states


@dataclasses.dataclass(frozen=True)
class ShardingPlan:
  """The shardings of a state, and where a training step changes them.

  Large arrays (parameters, optimiser slots, averaged weights) are sharded over
  the axis `fsdp`. A step gathers the parameters (`replicate`) and shards the
  gradients (`shard`), so that each device computes the updates of its part.
  Without these constraints the compiler shards layers over that axis and
  communicates activations instead.

  Attributes:
    mesh: see `create_mesh`.
    min_size: arrays with fewer elements are never sharded.
  """

  mesh: Mesh
  min_size: int

  def shardings(self, tree: Any) -> Any:
    """Returns the sharding of each leaf; the only place that decides it.

    Args:
      tree: a state, or a part of one; arrays or their shapes.
    """
    return jax.tree.map(lambda leaf: self._partition_spec(leaf.shape), tree)

  def _partition_spec(self, shape: tuple[int, ...]) -> NamedSharding:
    """Shards the largest divisible axis; of equal ones, the first.

    For a kernel [3, 3, 128, 128] that is c_in. The last axis would waste memory
    on a TPU, which pads it to 128 lanes.
    """
    parts = self.mesh.shape[FSDP]
    divisible = [n for n in shape if n % parts == 0]
    if parts == 1 or not divisible or math.prod(shape) < self.min_size:
      return replicated(self.mesh)
    axis = shape.index(max(divisible))
    return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, FSDP))

  def with_shardings(self, abstract: Any) -> Any:
    """Adds shardings to the result of `jax.eval_shape`."""
    return jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=sharding
      ),
      abstract,
      self.shardings(abstract),
    )

  def replicate(self, tree: Any) -> Any:
    """Gathers arrays to every device; for use in a jitted function."""
    return self._constrain(tree, replicated(self.mesh))

  def shard(self, tree: Any) -> Any:
    """Shards arrays with the shapes of parameters; for a jitted function."""
    return self._constrain(tree, self.shardings(tree))

  def _constrain(self, tree: Any, shardings: Any) -> Any:
    if self.mesh.shape[FSDP] == 1:  # nothing is sharded
      return tree
    return jax.lax.with_sharding_constraint(tree, shardings)

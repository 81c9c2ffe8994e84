"""Devices and hosts: one mesh, and how a state and a batch lie on it."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gamix_jax.errors import UserError

DATA = "data"  # the axis that the batch is spread over


def make(batch_size: int) -> Mesh:
  """All devices of all hosts in one row.

  Raises:
    UserError: the global batch does not divide by them.
  """
  count = jax.device_count()
  if batch_size % count:
    below = batch_size // count * count
    fits = [b for b in (below, below + count) if b]
    raise UserError(
      f"data.batch_size={batch_size} does not divide by the {count} devices; "
      f"use {' or '.join(map(str, fits))}."
    )
  return jax.make_mesh((count,), (DATA,), axis_types=(AxisType.Auto,))


def local() -> Mesh:
  """This process's own devices in one row."""
  devices = jax.local_devices()
  return jax.make_mesh(
    (len(devices),), (DATA,), axis_types=(AxisType.Auto,), devices=devices
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds all of it."""
  return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
  """Every device holds its rows of the first axis."""
  return NamedSharding(mesh, PartitionSpec(DATA))


def global_batch(
  mesh: Mesh, batch: Mapping[str, np.ndarray]
) -> dict[str, jax.Array]:
  """This host's rows [b_local, ...] as arrays of the global batch [b, ...]."""
  sharding = by_rows(mesh)
  return {
    k: jax.make_array_from_process_local_data(sharding, v)
    for k, v in batch.items()
  }


def on(mesh: Mesh, abstract: Any) -> Any:
  """Shapes (of `jax.eval_shape`) with every leaf replicated on the mesh."""
  sharding = replicated(mesh)
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    abstract,
  )

"""A state as a dictionary of named arrays, and back.

A checkpoint holds `{"vae.params.conv.kernel": array, ...}`. So any pytree can
be saved, any part of it restored, and the files do not depend on the classes of
the program that wrote them.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from gamix_jax.errors import UserError

ShapeDtype = tuple[tuple[int, ...], str]
_SHOWN = 4  # differing leaves named in a message


def flatten(tree: Any) -> dict[str, Any]:
  """Names every leaf of a pytree by its path from the root.

  Args:
    tree: any pytree; `None` is not a leaf.

  Returns:
    {name: leaf} in the tree's order; names such as `vae.params.conv.kernel`.

  Raises:
    ValueError: two leaves have the same name (a dictionary key has a dot).
  """
  found: dict[str, Any] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    if name in found:
      raise ValueError(f"two leaves of the state are both named {name!r}")
    found[name] = leaf
  return found


def unflatten(tree: Any, leaves: Mapping[str, Any]) -> Any:
  """Puts named leaves into the structure of `tree`."""
  ordered = [leaves[name] for name in flatten(tree)]
  return jax.tree.unflatten(jax.tree.structure(tree), ordered)


def to_arrays(tree: Any) -> dict[str, Any]:
  """`flatten`, with Python and NumPy numbers as arrays of JAX's dtypes."""
  return {
    name: leaf
    if isinstance(leaf, jax.Array)
    else np.asarray(leaf, jax.dtypes.result_type(leaf))
    for name, leaf in flatten(tree).items()
  }


def to_abstract(leaf: Any) -> jax.ShapeDtypeStruct:
  """A leaf's shape, dtype and sharding; by default on the first device."""
  sharding = getattr(leaf, "sharding", None)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def shapes(leaves: Mapping[str, Any]) -> dict[str, ShapeDtype]:
  """{name: (shape, dtype)}, as a checkpoint's metadata lists its leaves."""
  return {n: (tuple(x.shape), str(x.dtype)) for n, x in leaves.items()}


def check_same(
  saved: Mapping[str, ShapeDtype],
  wanted: Mapping[str, ShapeDtype],
  where: str,
  *,
  part: bool,
) -> None:
  """Refuses a state whose leaves differ from the saved ones.

  Orbax's own partial restore does not: it returns a missing array as the
  `ShapeDtypeStruct` it was given, casts another dtype, and does not name the
  array whose shape differs.

  Args:
    saved: the leaves in the checkpoint.
    wanted: the leaves asked for.
    where: the checkpoint, for the message.
    part: whether the checkpoint may hold more leaves than asked for.

  Raises:
    UserError: leaves differ; the message names the first few.
  """
  differ = []
  for name in [*wanted, *(n for n in saved if n not in wanted)]:
    if name not in saved:
      differ.append(f"{name} {_show(wanted[name])} is not in it")
    elif name not in wanted:
      if not part:
        differ.append(f"{name} {_show(saved[name])} is in it only")
    elif saved[name] != wanted[name]:
      differ.append(
        f"{name} is {_show(saved[name])} in it, {_show(wanted[name])} here"
      )
  if differ:
    more = len(differ) - _SHOWN
    shown = "; ".join(differ[:_SHOWN]) + (f"; and {more} more" * (more > 0))
    raise UserError(
      f"{where} is of another model: {shown}.\n"
      "Use the configuration it was trained with, or another workdir."
    )


def _show(leaf: ShapeDtype) -> str:
  shape, dtype = leaf
  return f"{dtype}[{','.join(map(str, shape))}]"


def bitwise_equal(a: Any, b: Any) -> bool:
  """Whether two arrays have the same bits, in this process's shards."""
  if (a.shape, str(a.dtype)) != (b.shape, str(b.dtype)):
    return False
  if isinstance(a, jax.Array) and isinstance(b, jax.Array):
    if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
      a, b = jax.random.key_data(a), jax.random.key_data(b)
    if not a.is_fully_addressable:
      other = {s.device: s.data for s in b.addressable_shards}
      return all(
        _bits(s.data) == _bits(other[s.device]) for s in a.addressable_shards
      )
  return _bits(a) == _bits(b)


def _bits(x: Any) -> bytes:
  return np.asarray(x).tobytes()

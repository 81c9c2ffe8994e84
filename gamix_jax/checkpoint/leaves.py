"""A state as names and arrays, and back.

A checkpoint holds `{"vae.params.conv.kernel": array, ...}`: any pytree goes in,
any part of it comes out, and a file does not depend on the classes of the
program that wrote it.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from gamix_jax.errors import UserError

Shapes = Mapping[str, tuple[tuple[int, ...], str]]
_SHOWN = 4


def flatten(tree: Any) -> dict[str, Any]:
  """Names every leaf of a pytree by its way from the root.

  Args:
    tree: any pytree; `None` is no leaf.

  Returns:
    Names such as `vae.params.conv.kernel`, in the tree's order, and leaves.

  Raises:
    ValueError: two leaves have one name (a dictionary key with a dot in it).
  """
  found: dict[str, Any] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    if name in found:
      raise ValueError(f"two leaves of the state are both named {name!r}")
    found[name] = leaf
  return found


def unflatten(tree: Any, leaves: Mapping[str, Any]) -> Any:
  """Puts named leaves back into the structure of `tree`."""
  ordered = [leaves[name] for name in flatten(tree)]
  return jax.tree.unflatten(jax.tree.structure(tree), ordered)


def arrays(tree: Any) -> dict[str, Any]:
  """The leaves of a state to save; numbers become arrays of JAX's types."""
  return {
    name: leaf
    if isinstance(leaf, jax.Array)
    else np.asarray(leaf, jax.dtypes.result_type(leaf))
    for name, leaf in flatten(tree).items()
  }


def shapes(named: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], str]]:
  """What a checkpoint notes of its leaves: `{name: (shape, dtype)}`."""
  return {n: (tuple(x.shape), str(x.dtype)) for n, x in named.items()}


def check(saved: Shapes, wanted: Shapes, where: str, *, part: bool) -> None:
  """Refuses a state that is not the one saved.

  Args:
    saved: the leaves in the checkpoint.
    wanted: the leaves asked for.
    where: the checkpoint, for the message.
    part: whether the checkpoint may hold more than is asked for.

  Raises:
    UserError: with the first few leaves that differ.
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


def _show(shape: tuple[tuple[int, ...], str]) -> str:
  return f"{shape[1]}[{','.join(map(str, shape[0]))}]"


def bitwise_equal(a: Any, b: Any) -> bool:
  """Whether two leaves have the same bits, in this process's shards."""
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

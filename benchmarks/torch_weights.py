"""Converts Flax parameters to PyTorch's, and to a flat table for comparison."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import torch

# Flax and PyTorch names of a module's leaves.
LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}


def _name(path: tuple) -> str:
  words = [key.key for key in path]
  words = [w for w in words if w != "norm"]
  return ".".join([*words[:-1], LEAVES[words[-1]]])


def _array(path: tuple, value: Any) -> np.ndarray:
  value = np.array(value)  # a copy: torch writes into it
  if path[-1].key != "kernel":
    return value
  if value.ndim == 2:
    return value.T
  # [h, w, c_in, c_out]; of a transposed one [h, w, c_out, c_in], as in torch.
  return value.transpose(3, 2, 0, 1)


def table(tree: Any) -> dict[str, np.ndarray]:
  """Returns {PyTorch's name: array in its layout} of a tree of Flax leaves."""

  def leaves() -> Iterator:
    for path, value in jax.tree_util.tree_leaves_with_path(tree):
      yield _name(path), _array(path, value)

  return dict(leaves())


def load(module: torch.nn.Module, params: Any, stats: Any) -> None:
  """Copies all arrays of a Flax network into its PyTorch counterpart.

  Raises:
    ValueError: if the two do not have the same parameters.
  """
  values = table(params) | table(stats)
  state = module.state_dict()
  missing = state.keys() ^ values.keys()
  missing = {k for k in missing if not k.endswith("num_batches_tracked")}
  if missing:
    raise ValueError(f"the networks' parameters differ: {sorted(missing)}")
  with torch.no_grad():
    for name, value in values.items():
      state[name].copy_(torch.from_numpy(np.ascontiguousarray(value)))


def copied(value: Any) -> np.ndarray:
  """Returns a writable NumPy copy."""
  return np.array(value)


def named(module: torch.nn.Module) -> list[str]:
  """Returns the parameters' names, in order."""
  return [name for name, _ in module.named_parameters()]

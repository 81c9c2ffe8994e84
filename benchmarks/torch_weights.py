"""Flax parameters as PyTorch's, and back to a flat table for comparing."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import torch

# Names of a norm's own module and of its leaves, there and here.
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
  # [h, w, c_in, c_out]; of a transposed one [h, w, c_out, c_in], as torch.
  return value.transpose(3, 2, 0, 1)


def table(tree: Any) -> dict[str, np.ndarray]:
  """{name in PyTorch: array as PyTorch has it} of a tree of Flax leaves."""

  def leaves() -> Iterator:
    for path, value in jax.tree_util.tree_leaves_with_path(tree):
      yield _name(path), _array(path, value)

  return dict(leaves())


def load(module: torch.nn.Module, params: Any, stats: Any) -> None:
  """Writes a Flax network's arrays into its twin; every one, or an error."""
  values = table(params) | table(stats)
  state = module.state_dict()
  missing = state.keys() ^ values.keys()
  missing = {k for k in missing if not k.endswith("num_batches_tracked")}
  if missing:
    raise ValueError(f"the twin has not the same parameters: {sorted(missing)}")
  with torch.no_grad():
    for name, value in values.items():
      state[name].copy_(torch.from_numpy(np.ascontiguousarray(value)))


def copied(value: Any) -> np.ndarray:
  """As NumPy's, to be written into."""
  return np.array(value)


def named(module: torch.nn.Module) -> list[str]:
  """The parameters' names, in their order."""
  return [name for name, _ in module.named_parameters()]

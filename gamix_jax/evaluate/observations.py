"""Observations of several modalities that a model is judged on."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from gamix_jax import data

READ = 2048  # observations that are read at a time


@dataclasses.dataclass
class Observations:
  """Observations of a split.

  Attributes:
    x: [n, ...] of each modality; images uint8, others float32; zeros where a
      modality is missing.
    mask: float32 [n, M], 1 where a modality is observed, in the order of `x`.
    labels: int64 [n], -1 where there is none.
    total: how many the split has to choose from.
    index: their indices in the split, [n].
  """

  x: dict[str, np.ndarray]
  mask: np.ndarray
  labels: np.ndarray
  total: int
  index: np.ndarray

  def __len__(self) -> int:
    """How many these are."""
    return len(self.mask)

  @property
  def names(self) -> tuple[str, ...]:
    """The modalities."""
    return tuple(self.x)

  @property
  def labelled(self) -> bool:
    """Whether each has a label, and these are of two classes or more."""
    return self.labels.min() >= 0 and len(np.unique(self.labels)) > 1

  def rows_with(self, names: Sequence[str]) -> np.ndarray:
    """The rows in which all these modalities are observed."""
    columns = [self.names.index(name) for name in names]
    return np.flatnonzero((self.mask[:, columns] > 0).all(axis=1))

  def only(
    self, names: Sequence[str], rows: np.ndarray
  ) -> dict[str, np.ndarray]:
    """These modalities of these rows."""
    return {name: self.x[name][rows] for name in names}

  def first(self, n: int) -> "Observations":
    """The first n, or all if there are fewer."""
    return Observations(
      {name: x[:n] for name, x in self.x.items()},
      self.mask[:n],
      self.labels[:n],
      self.total,
      self.index[:n],
    )


def read(dataset: data.MultimodalDataset, index: np.ndarray) -> Observations:
  """Reads the observations of a data set at indices [n]."""
  parts = [
    dataset.load_batch(index[i : i + READ]) for i in range(0, len(index), READ)
  ]
  whole = {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
  return Observations(
    {name: whole[name] for name in dataset.names},
    whole["mask"],
    whole["label"].astype(np.int64),
    len(dataset),
    index,
  )


def chosen(
  dataset: data.MultimodalDataset, at_most: int, seed: int
) -> Observations:
  """Random observations, without repeats; `seed` decides which."""
  rng = np.random.Generator(np.random.PCG64(seed))
  return read(dataset, rng.permutation(len(dataset))[:at_most])


def spread(dataset: data.MultimodalDataset, at_most: int) -> Observations:
  """Observations at even distances in the split, or all of them."""
  return read(dataset, data.spread_rows(len(dataset), at_most))


def by_size(
  names: Sequence[str], at_most: int, seed: int
) -> Mapping[int, list[tuple[str, ...]]]:
  """Subsets of the modalities, by their size, from 1 to all.

  Args:
    names: of the modalities.
    at_most: subsets of a size from 2 on; of more, random ones are taken.
    seed: decides which.
  """
  found = {}
  for size in range(1, len(names) + 1):
    subsets = list(itertools.combinations(names, size))
    if size > 1 and len(subsets) > at_most:
      rng = np.random.Generator(np.random.PCG64((seed, size)))
      rows = np.sort(rng.permutation(len(subsets))[:at_most])
      subsets = [subsets[i] for i in rows]
    found[size] = subsets
  return found


def joined(subset: Sequence[str]) -> str:
  """What numbers call a subset: its modalities, joined by +."""
  return "+".join(subset)

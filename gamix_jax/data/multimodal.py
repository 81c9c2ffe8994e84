"""Sources whose observations have several modalities.

A modality of an observation may be missing; `mask` says which are there. At
least one is.
"""

import abc
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from gamix_jax.data.formatting import listed
from gamix_jax.data.source import FilteredSource, Source, hash_parts
from gamix_jax.errors import UserError


class MultimodalSource(Source):
  """Observations of several modalities; see `Source` for the rest.

  Attributes:
    names: of the modalities.
    arrays: modalities that are in memory, [n, ...] each; what they hold where
      `mask` is False is arbitrary.
    mask: bool [n, M], in the order of `names`: whether a modality of an
      observation is there.
  """

  multimodal: ClassVar[bool] = True
  names: Sequence[str]
  arrays: Mapping[str, np.ndarray]
  mask: np.ndarray

  def __len__(self) -> int:
    """Number of observations in this split."""
    return len(self.mask)

  @abc.abstractmethod
  def read(self, i: int, name: str) -> bytes | np.ndarray:
    """One modality of observation i, which `mask` has.

    Returns:
      An encoded image as bytes, or an array.

    Raises:
      UserError: a file was there at opening and cannot be read now.
    """

  def file(self, i: int, name: str) -> str:
    """What messages call one modality of observation i."""
    return f"{name} of {self.name(i)}"

  def __getitem__(self, i: int) -> dict[str, Any]:
    """Observation i.

    Returns:
      {NAME: bytes or an array, for each modality that is there, "label": int,
      -1 for none, "mask": bool [M]}.
    """
    there = {
      name: self.read(i, name)
      for name, seen in zip(self.names, self.mask[i], strict=True)
      if seen
    }
    return there | {"label": int(self.labels()[i]), "mask": self.mask[i]}


class MultimodalArrays(MultimodalSource):
  """Observations in memory."""

  def __init__(
    self,
    arrays: Mapping[str, np.ndarray],
    labels: np.ndarray | None = None,
    *,
    mask: np.ndarray | None = None,
    title: str = "rows",
    total: int | None = None,
    label_names: Sequence[str] = (),
  ):
    """Holds arrays; nothing is copied.

    Args:
      arrays: [n, ...] of each modality. Images are uint8 [n, h, w] or
        [n, h, w, 1 | 3]; classes are numbers from 0, int [n], or probabilities
        [n, classes]; others are numbers of any type.
      labels: int [n], -1 for none; None: no observation has a label.
      mask: bool [n, M], in the order of `arrays`, whether a modality of an
        observation is there; None: all are.
      title: for messages; row i of the split is called `title[i]`.
      total: number of observations in both splits; None: n.
      label_names: name of class i at i.

    Raises:
      UserError: the arrays have different lengths, a row of the mask is all
        zeros, or a number that is there is not finite.
    """
    lengths = {name: len(array) for name, array in arrays.items()}
    n = next(iter(lengths.values()))
    if len(set(lengths.values())) > 1:
      each = ", ".join(f"{name} {count}" for name, count in lengths.items())
      raise UserError(
        f"{title}: the modalities have different lengths: {each}. Give each"
        " one row an observation, and a mask where one is missing."
      )
    if labels is None:
      labels = np.full(n, -1, np.int32)
    elif len(labels) != n:
      raise UserError(
        f"{title}: there are {len(labels)} labels for {n} observations."
      )
    if mask is None:
      mask = np.ones((n, len(arrays)), bool)
    self.names, self.arrays = tuple(arrays), dict(arrays)
    self.mask = check_mask(mask, n, self.names, title)
    self._labels, self._title = np.asarray(labels), title
    self.total = n if total is None else total
    self.label_names = label_names
    for name, seen in zip(self.names, self.mask.T, strict=True):
      check_finite(self.arrays[name], seen, f"{title}: {name}")

  def read(self, i: int, name: str) -> np.ndarray:
    """A view of one row."""
    return self.arrays[name][i]

  def __getitem__(self, i: int) -> dict[str, Any]:
    """Observation i: {NAME: a view, for all of them, "label", "mask"}."""
    row = {name: array[i] for name, array in self.arrays.items()}
    return row | {"label": int(self._labels[i]), "mask": self.mask[i]}

  def labels(self) -> np.ndarray:
    """The labels."""
    return self._labels

  def name(self, i: int) -> str:
    """`title[i]`, counted within the split."""
    return f"{self._title}[{i}]"

  def fingerprint(self) -> str:
    """Of names, arrays, mask, labels and the names of classes."""
    return hash_parts(
      (
        *self._parts(),
        self._labels.astype("<i4").tobytes(),
        *(name.encode() for name in self.label_names),
      )
    )

  def cache_key(self) -> str:
    """A hash of every array, mask and label, and of the title."""
    h = hashlib.sha256(repr((len(self), self._title)).encode())
    for part in (*self._parts(), np.ascontiguousarray(self._labels)):
      h.update(part)
    return h.hexdigest()

  def _parts(self) -> list[Any]:
    """Names, shapes, types and bytes of the arrays, and the mask."""
    parts: list[Any] = []
    for name, array in self.arrays.items():
      parts.append(repr((name, array.shape, array.dtype.str)).encode())
      parts.append(np.ascontiguousarray(array).tobytes())
    return [*parts, self.mask.tobytes()]


class FilteredMultimodal(FilteredSource, MultimodalSource):
  """A multimodal source without the observations of some classes."""

  def __init__(self, source: MultimodalSource, excluded: Sequence[int]):
    """`excluded`: labels of these classes.

    Raises:
      UserError: no observation is left.
    """
    super().__init__(source, excluded)
    self.names, self.mask = source.names, source.mask[self._index]
    self.arrays = {k: v[self._index] for k, v in source.arrays.items()}

  def read(self, i: int, name: str) -> bytes | np.ndarray:
    """As of the source."""
    return self._source.read(int(self._index[i]), name)

  def file(self, i: int, name: str) -> str:
    """As of the source."""
    return self._source.file(int(self._index[i]), name)


def check_mask(
  mask: np.ndarray, n: int, names: Sequence[str], where: str
) -> np.ndarray:
  """A mask as bool [n, M].

  Args:
    mask: booleans or the numbers 0 and 1.
    n: number of observations.
    names: of the M modalities.
    where: the source, for messages.

  Raises:
    UserError: it has another shape or other values, or a row of zeros.
  """
  wanted = (n, len(names))
  if mask.shape != wanted or not np.isin(mask, (0, 1)).all():
    raise UserError(
      f"{where}: the mask is {mask.dtype} {list(mask.shape)}, but must be"
      f" booleans {list(wanted)}: a row an observation, a column a modality"
      f" ({listed(names)})."
    )
  mask = mask.astype(bool)
  empty = np.flatnonzero(~mask.any(axis=1))
  if len(empty):
    raise UserError(
      f"{where}: the mask of row {empty[0]} is all zeros ({len(empty)} such"
      f" rows in all); none of {listed(names)} is observed there. Leave such"
      " rows out."
    )
  return mask


def check_finite(array: np.ndarray, seen: np.ndarray, where: str) -> None:
  """Raises UserError if a row that is there has NaN or infinity."""
  if array.dtype.kind != "f":
    return
  finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
  bad = np.flatnonzero(seen & ~finite)
  if len(bad):
    raise UserError(
      f"{where} has NaN or infinity in row {bad[0]} ({len(bad)} such rows in"
      " all). If it is missing there, say so with a mask of 0."
    )

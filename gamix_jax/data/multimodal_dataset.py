"""One split of a multimodal source as prepared observations, by index.

Images that are broken are missing. An observation of which nothing is left
keeps its index, and the next one in order takes its place; see `dataset`.
"""

import concurrent.futures
import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gamix_jax.data import missing
from gamix_jax.data.dataset import Broken, SplitDataset, decoded
from gamix_jax.data.decode import ImageTransform
from gamix_jax.data.formatting import listed, printable
from gamix_jax.data.modalities import ModalitySpec
from gamix_jax.data.multimodal import MultimodalSource, check_mask
from gamix_jax.data.prepare import mean_values, prepare
from gamix_jax.data.settings import Settings
from gamix_jax.errors import UserError


class MultimodalDataset(SplitDataset):
  """Observations of several modalities.

  `dataset[i]` is {NAME: an array of each modality's shape, "mask": float32 [M],
  "label": int}. Images are uint8, others float32; missing ones are zeros.

  Attributes:
    modalities: those of `data.modalities`, a part of the source's.
    mask: float32 [n, M], in their order: 1 where a modality is observed, with
      `data.missing`. Images that turn out to be broken are missing besides.
  """

  source: MultimodalSource

  def __init__(self, source: MultimodalSource, settings: Settings, split: str):
    """Checks the source against `data.modalities` and prepares its arrays.

    Raises:
      UserError: a modality is not in the source or has another shape or type,
        or too many of the source's files are broken.
    """
    super().__init__(source, settings, split)
    self.modalities = settings.modality_specs
    where = printable(settings.source)
    names = [spec.name for spec in self.modalities]
    _check_names(names, source.names, where)
    columns = [list(source.names).index(name) for name in names]
    own = check_mask(source.mask[:, columns], len(source), names, where)
    self._transforms = {
      spec.name: ImageTransform(
        spec.shape, settings.crop, settings.resize, settings.max_pixels
      )
      for spec in self.modalities
      if spec.is_image
    }
    self._held = {
      spec.name: prepare(
        spec,
        source.arrays[spec.name],
        seen,
        self._transforms.get(spec.name),
        where,
      )
      for spec, seen in zip(self.modalities, own.T, strict=True)
      if spec.name in source.arrays
    }
    self.in_memory = len(self._held) == len(self.modalities)
    share = settings.missing if split == "train" else settings.missing_test
    self.mask = missing.observed(
      own, share, settings.missing_by, split, lambda: self._values(own)
    ).astype(np.float32)

  @property
  def names(self) -> tuple[str, ...]:
    """Of the modalities."""
    return tuple(spec.name for spec in self.modalities)

  def load_batch(
    self,
    rows: np.ndarray,
    pool: concurrent.futures.Executor | None = None,
    report: Callable[[Broken], None] | None = None,
  ) -> dict[str, np.ndarray]:
    """As `SplitDataset.load_batch`.

    Returns:
      {NAME: uint8 or float32 [b, *shape] of each modality, zeros where it is
      missing, "mask": float32 [b, M], "label": int32 [b]}, new arrays.
    """
    if self.in_memory:
      batch = {name: array[rows] for name, array in self._held.items()}
      mask = self.mask[rows]
      for name, seen in zip(self.names, mask.T, strict=True):
        batch[name][seen == 0] = 0
      labels = self.labels()[rows].astype(np.int32)
      return batch | {"mask": mask, "label": labels}
    items, broken = [], {}
    for item, found in (pool.map if pool else map)(self._load, map(int, rows)):
      items.append(item)
      broken |= found
    (report or self.report_broken)(broken)
    batch = {
      key: np.stack([item[key] for item in items])
      for key in (*self.names, "mask")
    }
    labels = np.array([item["label"] for item in items], np.int32)
    return batch | {"label": labels}

  def _decode(self, i: int, broken: dict[str, str]) -> dict[str, Any] | None:
    item: dict[str, Any] = {}
    mask = self.mask[i].copy()
    for m, spec in enumerate(self.modalities):
      value = self._read(i, spec, broken) if mask[m] else None
      if value is None:
        mask[m] = 0
        value = np.zeros(spec.shape, np.uint8 if spec.is_image else np.float32)
      item[spec.name] = value
    if not mask.any():
      return None
    return item | {"mask": mask, "label": int(self.labels()[i])}

  def _read(
    self, i: int, spec: ModalitySpec, broken: dict[str, str]
  ) -> np.ndarray | None:
    """One modality of observation i, prepared; None if it is broken."""
    if spec.name in self._held:
      return self._held[spec.name][i]
    raw, name = self.source.read(i, spec.name), self.source.file(i, spec.name)
    transform = self._transforms.get(spec.name)
    if transform is not None:
      return decoded(transform, raw, name, broken)
    one = np.asarray(raw)[None]
    return prepare(spec, one, np.ones(1, bool), None, name)[0]

  def _values(self, own: np.ndarray) -> np.ndarray:
    """The mean value of each modality, float64 [n, M], NaN where none is.

    Images that are files are decoded for it, all of them.
    """
    values = np.full(own.shape, np.nan)
    for m, spec in enumerate(self.modalities):
      rows = np.flatnonzero(own[:, m])
      if spec.name in self._held:
        values[rows, m] = mean_values(spec, self._held[spec.name][rows])
        continue

      def mean(i: int, spec: ModalitySpec = spec) -> tuple[float, Broken]:
        broken: dict[str, str] = {}
        value = self._read(i, spec, broken)
        if value is None:
          return np.nan, broken
        return float(mean_values(spec, value[None])[0]), broken

      broken: dict[str, str] = {}
      with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for i, (value, found) in zip(
          rows, pool.map(mean, map(int, rows)), strict=True
        ):
          values[i, m] = value
          broken |= found
      self.report_broken(broken)
    return values


class CachedMultimodal(MultimodalDataset):
  """A multimodal data set whose observations were all decoded before."""

  def __init__(
    self, dataset: MultimodalDataset, batch: Mapping[str, np.ndarray]
  ):
    """`batch` has all observations of `dataset`, in order."""
    self._take_over(dataset)
    self._held = {name: batch[name] for name in dataset.names}
    self.mask, self._label = batch["mask"], batch["label"]
    self.in_memory = True

  def labels(self) -> np.ndarray:
    """Of the observations, also of those that took another's place."""
    return self._label


def _check_names(
  wanted: Sequence[str], there: Sequence[str], where: str
) -> None:
  """Raises UserError for a modality that the source does not have."""
  for name in wanted:
    if name in there:
      continue
    near = difflib.get_close_matches(name, there, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(
      f"data.modalities names {name!r}, which {where} does not have{hint}. It"
      f" has {listed(there, 20)}."
    )

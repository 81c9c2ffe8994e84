"""One split of a source as prepared items, by index.

Broken images. A file that does not begin as an image gets no index when the
source is opened. A file that turns out to be broken when it is decoded keeps
its index, and the next readable image in order takes its place. Both depend on
the files alone, so batches do not depend on when or by which worker a broken
file was found.
"""

import abc
import concurrent.futures
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gamix_jax.data.decode import BrokenImage, ImageTransform
from gamix_jax.data.formatting import MAX_LISTED, printable, reasons
from gamix_jax.data.settings import Settings
from gamix_jax.data.source import Source, excluded_labels
from gamix_jax.errors import UserError

log = logging.getLogger(__name__)

Broken = Mapping[str, str]  # broken files: {name: reason}


class SplitDataset(abc.ABC):
  """Random access to one split of a source: `dataset[i]`.

  Attributes:
    source: the raw data.
    settings: the section `data`.
    split: "train" or "test".
    label_names: name of class i at i; empty where there are none.
    broken: the broken files found so far: {name: reason}.
    in_memory: whether items are looked up and not decoded.
  """

  in_memory = False

  def __init__(self, source: Source, settings: Settings, split: str):
    """Raises UserError if too many of the source's files are broken."""
    self.source, self.settings, self.split = source, settings, split
    self.label_names = tuple(source.label_names)
    self.broken: dict[str, str] = {}
    self._logged = 0  # number of broken files in the last warning
    self.report_broken(source.broken)

  def _take_over(self, dataset: "SplitDataset") -> None:
    """Has all that `dataset` has; for the `__init__` of one made of another.

    In place of `__init__` here, which would log the broken files again.
    """
    vars(self).update(vars(dataset))

  @property
  def excluded(self) -> tuple[int, ...]:
    """Labels of the classes that training leaves out (tests have them)."""
    names = list(self.label_names)
    return tuple(excluded_labels(self.settings.exclude_labels, names))

  @functools.cached_property
  def _fingerprint(self) -> str:
    return self.source.fingerprint()

  def fingerprint(self) -> str:
    """Identifies the split's data, wherever they are: 16 hex digits.

    A function of the source alone; `exclude_labels`, `cache` and how images
    are resized change nothing. See `Source.fingerprint`.
    """
    return self._fingerprint

  def labels(self) -> np.ndarray:
    """The label of every item, int [n]; nothing is decoded for it."""
    return np.asarray(self.source.labels())

  def __len__(self) -> int:
    """Number of items in this split."""
    return len(self.source)

  def __getitem__(self, i: int) -> dict[str, Any]:
    """As `load`; i may be negative."""
    return self.load(range(len(self))[i])

  def load(self, i: int) -> dict[str, Any]:
    """Item i, 0 <= i < len(self): the entries of a batch, for one row.

    Raises:
      UserError: a file is gone or does not fit into memory, or too many files
        are broken.
    """
    item, broken = self._load(i)
    self.report_broken(broken)
    return item

  @abc.abstractmethod
  def load_batch(
    self,
    rows: np.ndarray,
    pool: concurrent.futures.Executor | None = None,
    report: Callable[[Broken], None] | None = None,
  ) -> dict[str, np.ndarray]:
    """Several items.

    Args:
      rows: their indices, int [b].
      pool: threads to decode in; None: the calling one.
      report: called with the broken files; None: `report_broken`.

    Returns:
      New arrays [b, ...] by the name of the entry.

    Raises:
      UserError: as `load`, for the first of the items that fails.
    """

  def _load(self, i: int) -> tuple[dict[str, Any], Broken]:
    """Item i and the broken files that it takes the place of.

    Changes nothing, so any thread may call it.
    """
    broken: dict[str, str] = {}
    for k in range(len(self)):
      j = (i + k) % len(self)
      item = self._decode(j, broken)
      if item is not None:
        return item, broken
      self._check_broken(broken)
    raise UserError(
      f"No image of {printable(self.settings.source)} can be decoded."
    )

  @abc.abstractmethod
  def _decode(self, i: int, broken: dict[str, str]) -> dict[str, Any] | None:
    """Item i; adds broken files to `broken`; None if nothing is left of it."""

  def report_broken(self, found: Broken) -> None:
    """Adds to `broken`; logs the first ten files, then their number.

    The number is logged whenever it has doubled.

    Raises:
      UserError: more than `settings.max_corrupt_fraction` of all files are
        broken.
    """
    new = {k: why for k, why in sorted(found.items()) if k not in self.broken}
    if not new:
      return
    before = len(self.broken)
    self.broken.update(new)
    self._check_broken(self.broken)
    if before >= MAX_LISTED and len(self.broken) < 2 * self._logged:
      return
    self._logged = len(self.broken)
    log.warning(
      "%s: skipped %d broken of %d files:%s",
      *(printable(self.settings.source), len(self.broken), self.source.total),
      reasons(new, MAX_LISTED - before) if before < MAX_LISTED else "",
    )

  def _check_broken(self, broken: Broken) -> None:
    """Raises UserError if these are too many."""
    limit = self.settings.max_corrupt_fraction
    if len(broken) > limit * self.source.total:
      first = [f"{name}: {why}" for name, why in list(broken.items())[:3]]
      names = "; ".join(first) + ("; ..." if len(broken) > 3 else "")
      raise UserError(
        f"{len(broken)} of the {self.source.total} files of"
        f" {printable(self.settings.source)} are broken ({names}): more than"
        f" data.max_corrupt_fraction={limit}. Fix or remove them, or raise it."
      )


class Dataset(SplitDataset):
  """Images: `dataset[i]` is {"image": uint8 [h, w, c], "label": int}."""

  def __init__(self, source: Source, settings: Settings, split: str):
    """Raises UserError if too many of the source's files are broken."""
    super().__init__(source, settings, split)
    self._transform = ImageTransform.from_settings(settings)

  @property
  def shape(self) -> tuple[int, int, int]:
    """(height, width, channels) of every image."""
    return self.settings.shape

  def load_batch(
    self,
    rows: np.ndarray,
    pool: concurrent.futures.Executor | None = None,
    report: Callable[[Broken], None] | None = None,
  ) -> dict[str, np.ndarray]:
    """As `SplitDataset.load_batch`.

    Returns:
      {"image": uint8 [b, h, w, c], "label": int32 [b]}, new arrays.
    """
    images = np.empty((len(rows), *self.shape), np.uint8)
    labels = np.empty(len(rows), np.int32)
    broken: dict[str, str] = {}
    loaded = (pool.map if pool else map)(self._load, map(int, rows))
    for k, (item, found) in enumerate(loaded):
      images[k], labels[k] = item["image"], item["label"]
      broken |= found
    (report or self.report_broken)(broken)
    return {"image": images, "label": labels}

  def _decode(self, i: int, broken: dict[str, str]) -> dict[str, Any] | None:
    raw, name = self.source[i], self.source.name(i)
    image = decoded(self._transform, raw["image"], name, broken)
    if image is None:
      return None
    return {"image": image, "label": raw.get("label", -1)}


def decoded(
  transform: ImageTransform,
  raw: bytes | np.ndarray,
  name: str,
  broken: dict[str, str],
) -> np.ndarray | None:
  """The image; None if it is broken, which is added to `broken`.

  Raises:
    UserError: it does not fit into memory.
  """
  try:
    return transform(raw)
  except BrokenImage as e:
    broken[name] = str(e)
    return None
  except MemoryError as e:
    raise UserError(
      f"There is no memory to decode {name}. Give this more, or leave out such"
      " images: --config.data.max_pixels=N"
    ) from e

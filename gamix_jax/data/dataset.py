"""A split of a source as prepared images, by index.

The rule for broken images. What does not even begin as an image is left out
of the index when the source is opened. What turns out broken when decoded
keeps its index, and the next whole image in order stands in for it. Both are
functions of the files alone, so the batches do not depend on when, where or
by which worker a broken file was met.
"""

import concurrent.futures
import functools
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gamix_jax.data.decode import BrokenImage, ImageTransform
from gamix_jax.data.notes import MOST, reasons, shown
from gamix_jax.data.settings import Settings
from gamix_jax.data.sources import Source, excluded, open_source
from gamix_jax.errors import UserError

ANY = "any"  # in place of a fingerprint
log = logging.getLogger(__name__)

Broken = list[tuple[str, str]]  # files by name, and what ails each


class Dataset:
  """Random access: `dataset[i]` is {"image": uint8 [h, w, c], "label": int}.

  Attributes:
    settings: what it was made from.
    split: "train" or "test".
    label_names: name of class i at i; empty where there are none.
  """

  in_memory = False  # whether `fetch` only looks up

  def __init__(self, source: Source, settings: Settings, split: str):
    """Raises UserError if too many of the source's files are broken."""
    self._source, self.settings, self.split = source, settings, split
    self._prepare = ImageTransform.of(settings)
    self.label_names = tuple(source.label_names)
    self._broken: dict[str, str] = {}
    self._told = 0  # of them, when their number was logged last
    self.note(source.broken.items())

  @property
  def shape(self) -> tuple[int, int, int]:
    """(height, width, channels) of every image."""
    return self.settings.shape

  @property
  def excluded(self) -> tuple[int, ...]:
    """Labels of the classes that training leaves out (tests have them)."""
    return tuple(excluded(self._source, self.settings))

  @property
  def skipped(self) -> list[str]:
    """Names of the broken files met so far."""
    return list(self._broken)

  @functools.cached_property
  def _fingerprint(self) -> str:
    return self._source.fingerprint()

  def fingerprint(self) -> str:
    """Tells the split's data from any other, wherever they lie: 16 hex digits.

    A function of the source alone: `exclude_labels`, `cache` and what images
    are made into change nothing. Of image files it sees names, sizes and both
    ends; of arrays every number.
    """
    return self._fingerprint

  def classes(self) -> np.ndarray:
    """The label of every image, int [n]; nothing is decoded for it."""
    return np.asarray(self._source.classes())

  def __len__(self) -> int:
    """Number of images in this split."""
    return len(self._source)

  def __getitem__(self, i: int) -> dict[str, Any]:
    """Image i: uint8 [h, w, c], and its label, -1 where it has none."""
    image, label, broken = self.fetch(range(len(self))[i])
    self.note(broken)
    return {"image": image, "label": label}

  def fetch(self, i: int) -> tuple[np.ndarray, int, Broken]:
    """Image, label, and the broken files it stands in for.

    Changes nothing, so that threads and worker processes may call it; `note`
    the names in the process that trains.

    Raises:
      UserError: a file is gone, does not fit into memory, or too many in a row
        are broken.
    """
    broken: Broken = []
    for k in range(len(self)):
      j = (i + k) % len(self)
      raw, label = self._source[j]
      try:
        return self._prepare(raw), label, broken
      except BrokenImage as e:
        broken.append((self._source.name(j), str(e)))
      except MemoryError as e:
        raise UserError(
          f"There is no memory to decode {self._source.name(j)}. Give this"
          " more, or leave out such images: --config.data.max_pixels=N"
        ) from e
      self._check(dict(broken))
    raise UserError(
      f"No image of {shown(self.settings.source)} can be decoded."
    )

  def take(
    self,
    index: np.ndarray,
    pool: concurrent.futures.Executor | None = None,
  ) -> tuple[np.ndarray, np.ndarray, Broken]:
    """`fetch` of many: uint8 [b, h, w, c], int32 [b], broken files.

    Args:
      index: of the images, [b].
      pool: threads to decode in; None: this one.

    Raises:
      UserError: as `fetch`, for the first image in order that has to.
    """
    images = np.empty((len(index), *self.shape), np.uint8)
    labels = np.empty(len(index), np.int32)
    broken: Broken = []
    found = (pool.map if pool else map)(self.fetch, map(int, index))
    for row, (image, label, names) in enumerate(found):
      images[row], labels[row] = image, label
      broken.extend(names)
    return images, labels, broken

  def note(self, broken: Iterable[tuple[str, str]]) -> None:
    """Counts broken files, each once; logs the first ten, then their number.

    The number is logged whenever it has doubled.

    Raises:
      UserError: more than `settings.max_corrupt_fraction` of all files are.
    """
    new = {k: why for k, why in sorted(broken) if k not in self._broken}
    if not new:
      return
    before = len(self._broken)
    self._broken.update(new)
    self._check(self._broken)
    if before >= MOST and len(self._broken) < 2 * self._told:
      return
    self._told = len(self._broken)
    log.warning(
      "%s: skipped %d broken of %d files:%s",
      *(shown(self.settings.source), len(self._broken), self._source.total),
      reasons(new, MOST - before) if before < MOST else "",
    )

  def _check(self, broken: Mapping[str, str]) -> None:
    share = self.settings.max_corrupt_fraction
    if len(broken) > share * self._source.total:
      first = [f"{name}: {why}" for name, why in list(broken.items())[:3]]
      names = "; ".join(first) + ("; ..." if len(broken) > 3 else "")
      raise UserError(
        f"{len(broken)} of the {self._source.total} files of"
        f" {shown(self.settings.source)} are broken ({names}): more than"
        f" data.max_corrupt_fraction={share}. Fix or remove them, or raise it."
      )


def fingerprint(train: Dataset, test: Dataset) -> str:
  """Of both splits, as `data.fingerprint` has it."""
  return f"{train.fingerprint()}:{test.fingerprint()}"


def _check_fingerprint(dataset: Dataset) -> None:
  """Refuses other images than the configuration knows.

  Raises:
    UserError: as said; it names what helps.
  """
  known = dataset.settings.fingerprint
  if known in ("", ANY):
    return
  train, _, test = known.partition(":")
  if dataset.fingerprint() != {"train": train, "test": test}[dataset.split]:
    raise other_images(dataset.settings.source)


def other_images(source: str, trained_on: str = "") -> UserError:
  """The error of a source that is not what a run was trained on."""
  there = f" ({trained_on})" if trained_on else ""
  return UserError(
    f"data.source={source} does not hold the images that the run was trained"
    f" on{there}. Say where they lie now:"
    " --config.data.source=<source>; or take these all the same:"
    f" --config.data.fingerprint={ANY}"
  )


def open_dataset(
  config: Settings | Mapping[str, Any], split: str, seed: int = 0
) -> Dataset:
  """Opens one split of the data the configuration names.

  Args:
    config: the section `data`, whole: a ConfigDict, any mapping, or Settings.
    split: "train" or "test". What is held out never depends on the seed.
    seed: makes the images of the synthetic source; others ignore it.

  Raises:
    UserError: whatever the user can fix, in one or two lines.
  """
  if split not in ("train", "test"):
    raise ValueError(f"split must be train or test, not {split!r}")
  settings = Settings.of(config)
  dataset = Dataset(open_source(settings, split, seed), settings, split)
  _check_fingerprint(dataset)
  if settings.cache == "none":
    return dataset
  from gamix_jax.data import cache  # noqa: PLC0415

  return cache.cached(dataset)

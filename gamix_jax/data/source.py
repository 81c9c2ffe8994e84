"""The base class of data sources, and what most of them need.

A source is a sequence of raw images: encoded files or arrays of any size. It
is opened for one split. A new source is a class in a file of its own and a
line in a table:

    from gamix_jax import data

    @data.SOURCES.register("scans")
    class Scans(data.Source):
      takes_path = True

      def __init__(self, path, split, settings, seed):
        folder = Path(path) / split
        self._files = sorted(folder.glob("*.jpg"))

      def __len__(self):
        return len(self._files)

      def __getitem__(self, i):
        return {"image": self._files[i].read_bytes(), "label": i % 10}

`data.source="scans:/data/scans"` uses it. All other methods have defaults; the
slow ones say so. A source whose images fit into memory can extend
`ArraySource`.
"""

import abc
import functools
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from gamix_jax.data.formatting import listed, printable
from gamix_jax.data.settings import Settings
from gamix_jax.errors import UserError
from gamix_jax.paths import resolve


class Source(abc.ABC):
  """Raw images of one split, by index; pickled for worker processes.

  A class in the table `SOURCES` is called with

    rest: str, what follows the colon in `data.source`, or what begins with a
      question mark; "" without either.
    split: "train" or "test".
    settings: the section `data`.
    seed: int, the run's. What is held out must not depend on it.

  and raises UserError for what the user can fix. A function with these
  arguments that returns a Source can be in the table as well.

  Attributes:
    takes_path: whether `rest` is a path. It is made absolute then, so that a
      saved configuration means the same in every folder.
    takes_range: whether the source reads numbers and uses `data.range`, which
      is an error for other sources.
    multimodal: whether its items have several modalities, see `multimodal`,
      instead of one image.
    label_names: name of class i at i; empty where classes have no names.
    broken: unreadable files of both splits that were found at opening, and
      why: {name: reason}. They have no index.
  """

  takes_path: ClassVar[bool] = False
  takes_range: ClassVar[bool] = False
  multimodal: ClassVar[bool] = False
  label_names: Sequence[str] = ()
  broken: Mapping[str, str] = {}

  @classmethod
  def resolve_rest(cls, rest: str) -> str:
    """`rest` with absolute paths; by default as `takes_path` says.

    Raises:
      UserError: `~name` of a user whom this machine does not know.
    """
    return str(resolve(rest)) if rest and cls.takes_path else rest

  @abc.abstractmethod
  def __len__(self) -> int:
    """Number of images in this split."""

  @abc.abstractmethod
  def __getitem__(self, i: int) -> dict[str, Any]:
    """Image i, 0 <= i < len(self), and its label.

    Returns:
      {"image": an encoded file as bytes, or uint8 [h, w] or [h, w, 1 | 3],
      "label": an int from 0, or -1 for none; may be left out}.
    """

  @functools.cached_property
  def total(self) -> int:
    """Number of files in both splits, broken or not; sources may set it.

    `data.max_corrupt_fraction` is a fraction of it. By default the number of
    images in this split.
    """
    return len(self)

  def labels(self) -> np.ndarray:
    """The label of every image, int [n], -1 for none.

    By default every image is read for it, but not decoded.
    """
    found = (self[i].get("label", -1) for i in range(len(self)))
    return np.fromiter(found, np.int64, len(self))

  def name(self, i: int) -> str:
    """What messages call image i."""
    return f"image {i}"

  def fingerprint(self) -> str:
    """Identifies the images, wherever they are stored: 16 hex digits.

    It is saved with a run, which refuses other images later. It must not
    change when the files are moved or packed in another way. By default a
    hash of every image and label, for which every image is read.
    """

    def parts() -> Iterable[bytes]:
      for i in range(len(self)):
        item = self[i]
        image, label = item["image"], item.get("label", -1)
        if isinstance(image, np.ndarray):
          yield repr(image.shape).encode()
          image = image.tobytes()
        yield image
        yield b"%d" % label

    return hash_parts(parts())

  def cache_key(self) -> str:
    """Identifies what a cache of this split was made from.

    It must change whenever an image, a label or their order does, and may
    depend on paths and times, which the fingerprint must not. By default the
    fingerprint.
    """
    return self.fingerprint()


def hash_parts(parts: Iterable[bytes]) -> str:
  """A fingerprint of a sequence of byte strings: 16 hex digits."""
  h = hashlib.sha256()
  for part in parts:
    h.update(b"%d\0" % len(part))
    h.update(part)
  return h.hexdigest()[:16]


class ArraySource(Source):
  """Images in memory."""

  def __init__(
    self,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    title: str = "images",
    total: int | None = None,
    label_names: Sequence[str] = (),
  ):
    """Holds arrays; nothing is copied.

    Args:
      images: uint8 [n, h, w] or [n, h, w, 1 | 3].
      labels: int [n], -1 for none; None: no image has a label.
      title: for messages; image i of the split is called `title[i]`.
      total: number of images in both splits; None: n.
      label_names: name of class i at i.
    """
    if labels is None:
      labels = np.full(len(images), -1, np.int32)
    self._images, self._labels, self._title = images, labels, title
    self.total = len(images) if total is None else total
    self.label_names = label_names

  def __len__(self) -> int:
    """Number of images."""
    return len(self._images)

  def __getitem__(self, i: int) -> dict[str, Any]:
    """Image i, a view, and its label."""
    return {"image": self._images[i], "label": int(self._labels[i])}

  def labels(self) -> np.ndarray:
    """The labels."""
    return self._labels

  def name(self, i: int) -> str:
    """`title[i]`, counted within the split."""
    return f"{self._title}[{i}]"

  def fingerprint(self) -> str:
    """Of pixels, labels and the names of classes."""
    return hash_parts(
      (
        repr(self._images.shape).encode(),
        np.ascontiguousarray(self._images).data.cast("B"),
        self._labels.astype("<i4").tobytes(),
        *(name.encode() for name in self.label_names),
      )
    )

  def cache_key(self) -> str:
    """A hash of every pixel and label, and of the title."""
    h = hashlib.sha256(repr((self._images.shape, self._title)).encode())
    h.update(np.ascontiguousarray(self._images))
    h.update(np.ascontiguousarray(self._labels))
    return h.hexdigest()


def hash_split(
  where: str, names: Sequence[str], test_fraction: float, split: str
) -> np.ndarray:
  """Which images are in a split, by a hash of each name alone: bool [n].

  Each name is hashed to a number in [0, 1) and is a test image if that is
  below `test_fraction`, so files that are added later move none of the
  others. In a set so small that one split would be empty, the image with the
  smallest (or largest) number goes there.

  Args:
    where: the source, for the message.
    names: of all images.
    test_fraction: fraction of test images, in (0, 1).
    split: "train" or "test".

  Raises:
    UserError: fewer than two names, so there is nothing to split.
  """
  if len(names) < 2:
    raise UserError(
      f"{where} holds {len(names)} image(s); training and evaluation need at"
      " least one each. Add images."
    )
  u = np.array(
    [
      int.from_bytes(hashlib.blake2b(os.fsencode(n), digest_size=6).digest())
      / 2**48
      for n in names
    ]
  )
  test = u < test_fraction
  if not test.any():
    test[u.argmin()] = True
  if test.all():
    test[u.argmax()] = False
  return test if split == "test" else ~test


class FilteredSource(Source):
  """A source without the images of some classes, otherwise in its order."""

  def __init__(self, source: Source, excluded: Sequence[int]):
    """`excluded`: labels of these classes.

    Raises:
      UserError: no image is left.
    """
    self._source = source
    self._index = np.flatnonzero(~np.isin(source.labels(), excluded))
    if not len(self._index):
      raise UserError("data.exclude_labels leaves no image to train on.")
    self.label_names, self.broken = source.label_names, source.broken
    self.total = source.total

  def __len__(self) -> int:
    """Number of images that are left."""
    return len(self._index)

  def __getitem__(self, i: int) -> dict[str, Any]:
    """As of the source."""
    return self._source[int(self._index[i])]

  def labels(self) -> np.ndarray:
    """As of the source."""
    return self._source.labels()[self._index]

  def name(self, i: int) -> str:
    """As of the source."""
    return self._source.name(int(self._index[i]))

  def fingerprint(self) -> str:
    """That of the whole source: it does not depend on what is left out."""
    return self._source.fingerprint()

  def cache_key(self) -> str:
    """Of the source's key and the indices of the images that are left."""
    return repr((self._source.cache_key(), self._index.tolist()))


def exclude_labels(
  source: Source,
  settings: Settings,
  filtered: type[FilteredSource] = FilteredSource,
) -> Source:
  """The source without the classes in `data.exclude_labels`.

  Args:
    source: of images or, with another `filtered`, of anything.
    settings: the section `data`.
    filtered: what leaves them out.

  Raises:
    UserError: one of them is not a class of the source or could be two
      classes, or no image is left.
  """
  if not settings.exclude_labels:
    return source
  names = list(source.label_names)
  present = sorted(set(source.labels().tolist()) - {-1})
  excluded = excluded_labels(settings.exclude_labels, names)
  for number, label in zip(excluded, settings.exclude_labels, strict=True):
    if number not in present:
      known = [names[k] if names else str(k) for k in present]
      raise UserError(
        f"data.exclude_labels: {printable(settings.source)} has no images of"
        f" class {label!r}; "
        + (f"its classes are {listed(known, 20)}." if known else "it has none.")
      )
  return filtered(source, excluded)


def excluded_labels(
  wanted: Sequence[int | str], names: Sequence[str]
) -> list[int]:
  """The labels of the classes that `data.exclude_labels` names.

  Names come first: 1 is the class called "1", and the class with label 1 only
  where none is called "1". A string is always a name. Where classes have no
  names, each is called by its label.

  Args:
    wanted: names or labels.
    names: of all classes.

  Returns:
    A label for each of `wanted`; -1 where there is no such class.

  Raises:
    UserError: one is the name of one class and the label of another.
  """
  return [_label_of(w, names) for w in wanted]


def _label_of(wanted: int | str, names: Sequence[str]) -> int:
  name = printable(str(wanted))
  if not names:
    return int(name) if name.isdecimal() else -1
  by_name = names.index(name) if name in names else -1
  if isinstance(wanted, str) or not 0 <= wanted < len(names):
    return by_name
  if by_name not in (-1, wanted):
    raise UserError(
      f"data.exclude_labels: {wanted} is the name of one class and the number"
      f" of another, called {names[wanted]!r}. Give the name, in quotes:"
      f" --config.data.exclude_labels=\"('{name}',)\" or"
      f" \"('{names[wanted]}',)\"."
    )
  return wanted

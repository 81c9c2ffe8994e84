"""Where images come from: one function a source, and one line in a table.

A source is a sequence of raw images, encoded or not; `ImageTransform` makes
them of one size. It is opened for one split and is cheap to send to a worker
process.
"""

import dataclasses
import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from gamix_jax.data.notes import listed, shown
from gamix_jax.data.settings import Settings
from gamix_jax.errors import UserError
from gamix_jax.paths import resolve


@runtime_checkable
class Source(Protocol):
  """Raw images of one split, by index.

  Attributes:
    label_names: name of class i at i; empty where there are no classes.
    broken: the source's files, in both splits, that were found unreadable at
      opening, and why: {name: reason}; they have no index.
    total: number of the source's files in both splits, broken or not.
  """

  label_names: Sequence[str]
  broken: Mapping[str, str]
  total: int

  def __len__(self) -> int:
    """Number of images."""

  def __getitem__(self, i: int) -> tuple[bytes | np.ndarray, int]:
    """Encoded bytes or uint8 [h, w] or [h, w, 1 | 3]; label or -1."""

  def classes(self) -> np.ndarray:
    """The label of every image, int [n]; nothing is decoded for it."""

  def name(self, i: int) -> str:
    """What to call image i in a message."""

  def identity(self) -> str:
    """Changes whenever an image, a label or their order changes."""

  def fingerprint(self) -> str:
    """Tells the images from others, wherever they lie: see `fingerprint`."""


def fingerprint(parts: Iterable[bytes]) -> str:
  """A hash of what a split is: 16 hex digits.

  Args:
    parts: of the data; none that changes when they are moved or packed.
  """
  h = hashlib.sha256()
  for part in parts:
    h.update(b"%d\0" % len(part))
    h.update(part)
  return h.hexdigest()[:16]


# No file of a source is broken.
WHOLE: Mapping[str, str] = {}


@dataclasses.dataclass
class Arrays:
  """A source that lies in memory.

  Attributes:
    images: uint8 [n, h, w] or [n, h, w, 1 | 3].
    labels: int [n], -1 for none.
    what: for messages.
    total: images in both splits.
    label_names: name of class i at i.
  """

  images: np.ndarray
  labels: np.ndarray
  what: str
  total: int
  label_names: Sequence[str] = ()
  broken = WHOLE

  def __len__(self) -> int:
    """Number of images."""
    return len(self.images)

  def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
    """Image i as it lies, and its label."""
    return self.images[i], int(self.labels[i])

  def classes(self) -> np.ndarray:
    """The labels."""
    return self.labels

  def name(self, i: int) -> str:
    """`what[i]`, counted within the split."""
    return f"{self.what}[{i}]"

  def identity(self) -> str:
    """A hash of every pixel and label."""
    h = hashlib.sha256(repr((self.images.shape, self.what)).encode())
    h.update(np.ascontiguousarray(self.images))
    h.update(np.ascontiguousarray(self.labels))
    return h.hexdigest()

  def fingerprint(self) -> str:
    """Of pixels, labels and their names."""
    return fingerprint(
      (
        repr(self.images.shape).encode(),
        np.ascontiguousarray(self.images).data.cast("B"),
        self.labels.astype("<i4").tobytes(),
        *(name.encode() for name in self.label_names),
      )
    )


def hash_split(where: str, names: Sequence[str], share: float) -> np.ndarray:
  """A fixed test split: bool [n], a function of each name alone.

  Each name is hashed to a number in [0, 1) and held out if that is under
  `share`, so files added later move none of the others. Only a set so small
  that one side would be empty gets its smallest (or largest) there.

  Args:
    where: for the message.
    names: of all images.
    share: to hold out, in (0, 1).

  Raises:
    UserError: fewer than two names; there is nothing to split.
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
  test = u < share
  if not test.any():
    test[u.argmin()] = True
  if test.all():
    test[u.argmax()] = False
  return test


class FilteredSource:
  """A source less the images of some classes; the others keep their order."""

  def __init__(self, source: Source, excluded: Sequence[int]):
    """`excluded`: their labels.

    Raises:
      UserError: no image is left.
    """
    self._source = source
    self._index = np.flatnonzero(~np.isin(source.classes(), excluded))
    if not len(self._index):
      raise UserError("data.exclude_labels leaves no image to train on.")
    self.label_names, self.broken = source.label_names, source.broken
    self.total = source.total

  def __len__(self) -> int:
    """Number of images."""
    return len(self._index)

  def __getitem__(self, i: int) -> tuple[bytes | np.ndarray, int]:
    """As of the source."""
    return self._source[int(self._index[i])]

  def classes(self) -> np.ndarray:
    """As of the source."""
    return np.asarray(self._source.classes())[self._index]

  def name(self, i: int) -> str:
    """As of the source."""
    return self._source.name(int(self._index[i]))

  def identity(self) -> str:
    """The source's, and the images taken."""
    return repr((self._source.identity(), self._index.tolist()))

  def fingerprint(self) -> str:
    """The source's: what is left out of it is another matter."""
    return self._source.fingerprint()


def excluded(source: Source, settings: Settings) -> list[int]:
  """The numbers of the classes that `data.exclude_labels` names.

  Names come first: 1 is the class called "1", and the class of number 1 only
  where none is called so. A word in quotes is always a name. Without names a
  class is called as its number.

  Raises:
    UserError: the name of one class and the number of another.
  """
  names = list(source.label_names)
  return [_number(wanted, names) for wanted in settings.exclude_labels]


def _number(wanted: int | str, names: Sequence[str]) -> int:
  """The number of a class; -1 where none can be meant."""
  name = shown(str(wanted))
  if not names:
    return int(name) if name.isdecimal() else -1
  called = names.index(name) if name in names else -1
  if isinstance(wanted, str) or not 0 <= wanted < len(names):
    return called
  if called not in (-1, wanted):
    raise UserError(
      f"data.exclude_labels: {wanted} is the name of one class and the number"
      f" of another, called {names[wanted]!r}. Give the name, in quotes:"
      f" --config.data.exclude_labels=\"('{name}',)\" or"
      f" \"('{names[wanted]}',)\"."
    )
  return wanted


def _without_excluded(source: Source, settings: Settings) -> Source:
  """The training split less `data.exclude_labels`.

  Raises:
    UserError: one of them is no class of the source, or it has no classes, or
      it could be two.
  """
  names = list(source.label_names)
  there = sorted(set(np.asarray(source.classes()).tolist()) - {-1})
  found = excluded(source, settings)
  for number, label in zip(found, settings.exclude_labels, strict=True):
    if number not in there:
      known = [names[k] if names else str(k) for k in there]
      raise UserError(
        f"data.exclude_labels: {shown(settings.source)} has no images of class "
        f"{label!r}; "
        + (f"its classes are {listed(known, 20)}." if known else "it has none.")
      )
  return FilteredSource(source, found)


def _digits() -> tuple[np.ndarray, np.ndarray]:
  """Images [n, 8, 8] with values 0..16, and labels [n].

  Out of scikit-learn's file where it is known to lie: importing its datasets
  takes half a second or two, every time.
  """
  package = Path(importlib.util.find_spec("sklearn").origin).parent
  file = package / "datasets" / "data" / "digits.csv.gz"
  if file.is_file():
    table = np.loadtxt(file, delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(int)
  from sklearn.datasets import load_digits  # noqa: PLC0415

  digits = load_digits()
  return digits.images, digits.target


def open_digits(rest: str, settings: Settings, split: str, seed: int) -> Source:
  """scikit-learn's 1,797 handwritten digits, 8x8 grey, split by hash."""
  del seed
  if rest:
    raise UserError(f"data.source=digits takes nothing after it, not :{rest}")
  images, labels = _digits()
  images = np.round(images * (255 / 16)).astype(np.uint8)
  total = len(images)
  test = hash_split(
    "digits", [f"digits/{i}" for i in range(total)], settings.test_fraction
  )
  keep = test if split == "test" else ~test
  return Arrays(
    images[keep],
    labels[keep],
    f"digits/{split}",
    total,
    tuple(str(i) for i in range(10)),
  )


class Synthetic:
  """Smooth random images, made when asked for; no files.

  Image i is a function of (seed, split, i): noise on a 4x4 grid, enlarged
  with cubic interpolation to the wanted size, in colour.
  """

  label_names: Sequence[str] = ()
  broken = WHOLE

  def __init__(self, n: int, total: int, size: tuple, split: str, seed: int):
    """Images of `size` (height, width); `n` of them in this split."""
    self._n, self.total = n, total
    self._size, self._split, self._seed = size, split, seed

  def __len__(self) -> int:
    """Number of images in this split."""
    return self._n

  def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
    """Image i, uint8 [h, w, 3]; no label."""
    import cv2  # noqa: PLC0415

    key = (self._seed % 2**63, self._split == "test", i)
    grid = np.random.default_rng(key).uniform(0, 255, (4, 4, 3))
    h, w = self._size
    image = cv2.resize(grid, (w, h), interpolation=cv2.INTER_CUBIC)
    return np.round(image).clip(0, 255).astype(np.uint8), -1

  def classes(self) -> np.ndarray:
    """-1, for none."""
    return np.full(self._n, -1)

  def name(self, i: int) -> str:
    """Its index, within the split."""
    return f"synthetic/{self._split}[{i}]"

  def identity(self) -> str:
    """All it is made from."""
    return repr(("synthetic 1", self._n, self._size, self._split, self._seed))

  def fingerprint(self) -> str:
    """Of the same."""
    return fingerprint([self.identity().encode()])


def open_synthetic(
  rest: str, settings: Settings, split: str, seed: int
) -> Source:
  """`synthetic` or `synthetic:<n>`: n training images, a quarter for tests."""
  if rest and not (rest.isdecimal() and int(rest) > 0):
    raise UserError(
      f"data.source=synthetic:{rest}: give a number of images, or none (256)."
    )
  train = int(rest) if rest else 256
  test = max(1, train // 4)
  n = test if split == "test" else train
  return Synthetic(n, train + test, settings.shape[:2], split, seed)


def open_folder(rest: str, settings: Settings, split: str, seed: int) -> Source:
  """`folder:<path>`; see `gamix_jax.data.folder`."""
  del seed
  from gamix_jax.data import folder  # noqa: PLC0415

  return folder.open_folder(rest, settings.test_fraction, split)


def open_idx(rest: str, settings: Settings, split: str, seed: int) -> Source:
  """`idx:<folder>`; see `gamix_jax.data.idx`."""
  del seed
  from gamix_jax.data import idx  # noqa: PLC0415

  return idx.open_idx(rest, settings, split)


def open_npz(rest: str, settings: Settings, split: str, seed: int) -> Source:
  """`npz:<path>`; see `gamix_jax.data.npz`."""
  del seed
  from gamix_jax.data import npz  # noqa: PLC0415

  return npz.open_npz(rest, settings, split)


def open_tfds(rest: str, settings: Settings, split: str, seed: int) -> Source:
  """`tfds:<name>`; see `gamix_jax.data.tfds`."""
  del seed
  from gamix_jax.data import tfds  # noqa: PLC0415

  return tfds.open_tfds(rest, settings.test_fraction, split)


class Kind(NamedTuple):
  """One line of the table.

  Attributes:
    open: (what follows the colon, settings, split, seed) -> Source.
    usage: how `data.source` names it.
    path: whether a path follows the colon.
    numbers: whether it reads numbers whose range `data.range` can say.
  """

  open: Callable[[str, Settings, str, int], Source]
  usage: str
  path: bool = False
  numbers: bool = False


SOURCES: dict[str, Kind] = {
  "digits": Kind(open_digits, "digits"),
  "folder": Kind(open_folder, "folder:<path>", path=True),
  "idx": Kind(open_idx, "idx:<folder>", path=True, numbers=True),
  "npz": Kind(open_npz, "npz:<path>", path=True, numbers=True),
  "synthetic": Kind(open_synthetic, "synthetic"),
  "tfds": Kind(open_tfds, "tfds:<name>"),
}


def absolute(source: str) -> str:
  """The same source whatever the current folder is.

  Args:
    source: as `data.source`. A path in it is made absolute, `~` too; what
      names no path, or no source, stays as it is.

  Raises:
    UserError: `~name` of a user whom this machine does not know.
  """
  name, _, rest = source.partition(":")
  if name in SOURCES and SOURCES[name].path and rest:
    return f"{name}:{resolve(rest)}"
  return source


def open_source(settings: Settings, split: str, seed: int) -> Source:
  """The source that `settings.source` names, opened for a split.

  Raises:
    UserError: no source has that name, or it cannot be opened.
  """
  name, _, rest = settings.source.partition(":")
  if name not in SOURCES:
    raise UserError(
      f"data.source={settings.source!r} is not known. There are"
      f" {', '.join(kind.usage for kind in SOURCES.values())}."
    )
  kind = SOURCES[name]
  if settings.range != "auto" and not kind.numbers:
    of = " and ".join(k.usage for k in SOURCES.values() if k.numbers)
    raise UserError(
      f"data.range={settings.range} is for {of}; {name} knows what is black"
      " and what is white. Leave it out."
    )
  source = kind.open(rest, settings, split, seed)
  if split == "train" and settings.exclude_labels:
    return _without_excluded(source, settings)
  return source

"""Images in archives, read at random without unpacking them.

A format (`zip_file`, `tar`) lists the members of an archive once; `Listing` has
where each of them is. It is kept in ~/.cache/gamix_jax/archives, under a hash
of the archive's path, size and time of change, so later starts need not list
the archive again.

Every thread reads through a file handle of its own, so no two of them move one
position.
"""

import abc
import dataclasses
import errno
import hashlib
import logging
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import tqdm

from gamix_jax import files, paths
from gamix_jax.data.formatting import printable
from gamix_jax.data.image_files import (
  END_BYTES,
  FileSource,
  Head,
  head_of,
  is_hidden,
  named_as_image,
)
from gamix_jax.errors import UserError

log = logging.getLogger(__name__)

_VERSION = 1  # of listings in the cache
_MAX_OPEN = 32  # files of a thread: a process may have 1,024, and 9 threads


class Place(NamedTuple):
  """Where a member of an archive is.

  Attributes:
    offset: of its first byte or, in a zip file, of its local header.
    size: in bytes, unpacked.
    packed: bytes in the archive, where they are compressed; else -1.
  """

  offset: int
  size: int
  packed: int


@dataclasses.dataclass(frozen=True)
class Listing:
  """The members of an archive.

  Attributes:
    images: those that are images by their names: {name: (place, head)}.
    others: names of the other files.
    labels: as the format found them: {name without suffixes: label}.
  """

  images: dict[str, tuple[Place, Head]] = dataclasses.field(
    default_factory=dict
  )
  others: list[str] = dataclasses.field(default_factory=list)
  labels: dict[str, int | str] = dataclasses.field(default_factory=dict)

  def add(self, name: str, place: Place, head: Head) -> None:
    """Adds an image; one of the same name that came before is replaced."""
    self.images[name] = place, head

  def arrays(self) -> dict[str, np.ndarray]:
    """All of it as arrays, for `from_arrays`."""
    heads = [head for _, head in self.images.values()]
    words = {k: v for k, v in self.labels.items() if isinstance(v, str)}
    numbers = {k: v for k, v in self.labels.items() if not isinstance(v, str)}
    return {
      "names": _bytes(self.images),
      "places": np.array(
        [place for place, _ in self.images.values()], np.int64
      ).reshape(-1, len(Place._fields)),
      "faults": _bytes(h.fault for h in heads),
      "special": _bytes(h.special for h in heads),
      "ours": np.array([h.ours for h in heads], bool),
      "ends": np.frombuffer(
        b"".join(h.ends.ljust(8, b"\0") for h in heads), np.uint8
      ).reshape(-1, 8),
      "others": _bytes(self.others),
      "word_keys": _bytes(words),
      "words": _bytes(words.values()),
      "number_keys": _bytes(numbers),
      "numbers": np.array(list(numbers.values()), np.int64),
    }

  @classmethod
  def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Listing":
    """The inverse of `arrays`.

    Raises:
      Exception: of any kind, if they are something else.
    """
    heads = (
      Head(fault, special, bool(ours), b"" if special else ends.tobytes())
      for fault, special, ours, ends in zip(
        _texts(arrays["faults"]),
        _texts(arrays["special"]),
        arrays["ours"],
        arrays["ends"],
        strict=True,
      )
    )
    places = (Place(*row) for row in arrays["places"].tolist())
    names = _texts(arrays["names"])
    words = zip(
      _texts(arrays["word_keys"]), _texts(arrays["words"]), strict=True
    )
    numbers = zip(
      _texts(arrays["number_keys"]), arrays["numbers"].tolist(), strict=True
    )
    return cls(
      dict(zip(names, zip(places, heads, strict=True), strict=True)),
      _texts(arrays["others"]),
      dict(words) | dict(numbers),
    )


def _bytes(texts: Iterable[str]) -> np.ndarray:
  """Texts without NUL as one array, uint8 [n]."""
  return np.frombuffer(
    b"".join(os.fsencode(t) + b"\0" for t in texts), np.uint8
  )


def _texts(array: np.ndarray) -> list[str]:
  """The inverse of `_bytes`."""
  return [os.fsdecode(t) for t in array.tobytes().split(b"\0")[:-1]]


def listing_of(
  path: Path, kind: str, build: Callable[[Path], Listing]
) -> Listing:
  """The listing of an archive, from the cache if it is there.

  Args:
    path: the archive, which exists.
    kind: the format and whatever else the listing depends on.
    build: lists it.

  Raises:
    UserError: by `build`, or the archive is gone.
  """
  try:
    of = path.stat()
  except OSError as e:
    raise unreadable(path, e) from e
  key = repr((_VERSION, kind, str(path), of.st_size, of.st_mtime_ns))
  name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
  cached = paths.cache_folder("archives") / f"{name}.npz"
  if cached.is_file():
    try:
      with cached.open("rb") as f, np.load(f) as arrays:
        return Listing.from_arrays(arrays)
    # NumPy raises whatever comes first on damaged files.
    except Exception as e:
      log.warning(
        "%s is damaged (%s) and will be made again.", cached, type(e).__name__
      )
  listing = build(path)
  try:
    cached.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic(cached) as temporary, temporary.open("wb") as f:
      np.savez(f, **listing.arrays())
  except OSError as e:
    log.info(
      "%s: its listing cannot be kept in %s (%s), so each start makes it.",
      *(printable(path), cached.parent, e.strerror or e),
    )
  return listing


def progress(members: Iterable[Any], path: Path) -> Iterable[Any]:
  """The members, with a progress bar on a terminal."""
  title = f"listing {printable(path.name)}"
  return tqdm.tqdm(members, desc=title, unit="file", disable=None)


def head_at(f: IO[bytes], offset: int, size: int) -> Head:
  """The head of a member that is stored as it is.

  Raises:
    OSError: it cannot be read.
  """
  head = read_at(f, offset, min(size, END_BYTES))
  rest = min(size - len(head), END_BYTES)
  return head_of(size, head, read_at(f, offset + size - rest, rest))


def head_in(data: bytes) -> Head:
  """The head of a member that was read."""
  tail = data[max(END_BYTES, len(data) - END_BYTES) :]
  return head_of(len(data), data[:END_BYTES], tail)


def is_image_member(name: str) -> bool:
  """Whether a member is an image by its name, and no part of it is hidden."""
  *folders, last = name.split("/")
  return named_as_image(last) and not any(map(is_hidden, folders))


def unwrapped(names: Sequence[str]) -> int:
  """How many characters at the start of all names are folders around them.

  As of a folder that contains nothing but one other folder. Hidden names do not
  count.
  """
  shown = [n for n in names if not any(map(is_hidden, n.split("/")))]
  if not shown:
    return 0
  # What the first and the last have in common, all of them have. By characters,
  # cut at a slash: commonpath would drop doubled slashes.
  common = os.path.commonprefix([min(shown), max(shown)])  # noqa: RUF071
  return common.rfind("/") + 1


def unreadable(path: Path, e: OSError) -> UserError:
  """The error for an archive that cannot be read."""
  return UserError(f"Cannot read {printable(path)}: {e.strerror or e}.")


# ------------------------------------------------------------------ the source


class PackedSource(FileSource):
  """Image files of one split in archives.

  A subclass sets `_archives` and `_places` at opening, after `_take`, and
  implements `_unpack`.

  Attributes:
    _archives: the files.
    _places: of each image of the split: (index of the archive, place).
  """

  _archives: tuple[Path, ...]
  _places: dict[str, tuple[int, Place]]

  def __init__(self) -> None:
    """Opens nothing yet."""
    self._open = _Handles()

  @staticmethod
  @abc.abstractmethod
  def _unpack(f: IO[bytes], place: Place) -> bytes:
    """A member of an open archive, any bytes if the archive has changed."""

  def _read(self, file: str) -> bytes:
    at, place = self._places[file]
    path = self._archives[at]
    try:
      return self._unpack(self._open(path), place)
    except (OSError, zlib.error) as e:
      reason = getattr(e, "strerror", None) or e
      raise UserError(
        f"Cannot read {printable(file)} of {printable(path)}, which was there"
        f" at the start: {reason}. Put the archive back, or start again."
      ) from e

  def cache_key(self) -> str:
    """Of the archives' sizes and times of change, and names and labels."""
    try:
      stats = [(str(p), p.stat()) for p in self._archives]
    except OSError as e:
      raise unreadable(Path(e.filename), e) from e
    h = hashlib.sha256(
      repr([(p, of.st_size, of.st_mtime_ns) for p, of in stats]).encode()
    )
    for file, label in zip(self._files, self._labels, strict=True):
      h.update(os.fsencode(file) + f"\0{label}\0".encode())
    return h.hexdigest()


class _Handles:
  """Open files, for each thread its own; a copy for a process has none."""

  def __init__(self) -> None:
    self._local = threading.local()

  def __reduce__(self) -> tuple[type, tuple[()]]:
    return _Handles, ()

  def __call__(self, path: Path) -> IO[bytes]:
    """The open file.

    Raises:
      OSError: it cannot be opened.
    """
    # A forked process shares the positions of its parent's handles.
    if getattr(self._local, "pid", None) != os.getpid():
      self._local.pid, self._local.files = os.getpid(), _Files()
    return self._local.files.open(path)


class _Files:
  """The files that were opened last, in one thread; closes them at its end."""

  def __init__(self) -> None:
    self._open: dict[Path, IO[bytes]] = {}

  def open(self, path: Path) -> IO[bytes]:
    """The open file; opens it, and closes the oldest if there are many."""
    if path not in self._open:
      if len(self._open) >= _MAX_OPEN:
        self._open.pop(next(iter(self._open))).close()
      self._open[path] = path.open("rb", buffering=0)
    return self._open[path]

  def __del__(self) -> None:
    """Closes all."""
    for file in self._open.values():
      file.close()


def read_at(f: IO[bytes], offset: int, size: int) -> bytes:
  """Bytes of an open file.

  Raises:
    OSError: it ends before that, or cannot be read.
  """
  # Asked first, since reading allocates whatever size a damaged file claims.
  if offset < 0 or size < 0 or offset + size > os.fstat(f.fileno()).st_size:
    raise OSError(errno.EIO, "the archive ends before it")
  f.seek(offset)
  return f.read(size)

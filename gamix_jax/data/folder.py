"""`folder:<path>`: JPEG, PNG, WebP, BMP and TIFF files at any depth.

Splits. If the folder contains `train` or `training` and one of `test`,
`testing`, `val`, `valid` or `validation` (the first of these that is there), in
upper or lower case, they are the splits. Otherwise a fixed share of the files
is held out by a hash of their relative paths. The log says which. A folder that
contains nothing but one other folder stands for that one, since archives unpack
so.

Labels. The name of the innermost folder below the split's folder; -1 for a file
directly in it.

What is not an image of the user is one of three kinds, and the log names it:

  foreign   files without the suffix of an image, hidden files (macOS puts
            `._name.jpg` beside `name.jpg`), and pipes, sockets and devices of
            any name: left out and not counted.
  ours      folders that this program writes (workdirs, caches, generated
            images; see `marks`) and its pictures: left out and not counted. If
            `<path>` itself has nothing but such pictures, they are what the
            user asked for, and they are read.
  broken    files with the suffix of an image that cannot be read (no
            permission, a dangling link), are empty or do not begin as an image:
            left out and counted, see `data.max_corrupt_fraction`.
"""

import concurrent.futures
import errno
import hashlib
import itertools
import logging
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gamix_jax import marks
from gamix_jax.data.formatting import listed, printable
from gamix_jax.data.settings import Settings
from gamix_jax.data.source import Source, hash_parts, hash_split
from gamix_jax.errors import UserError
from gamix_jax.paths import resolve

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (
  *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"),
  *(".bmp", ".tif", ".tiff"),
)
TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")
_HELP = (
  "Give a folder of JPEG, PNG, WebP, BMP or TIFF images:"
  " --config.data.source=folder:/path/to/images"
)
_END_BYTES = 4096  # bytes that are read at the start and at the end of a file
_SPECIAL_FILES = (
  (stat.S_ISFIFO, "a named pipe"),
  (stat.S_ISSOCK, "a socket"),
  (stat.S_ISCHR, "a device"),
  (stat.S_ISBLK, "a device"),
  (stat.S_ISDIR, "a folder"),
)
# Errors of the system, not of a file.
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Folder(Source):
  """Image files of one split, in the order of their relative paths."""

  takes_path = True

  def __init__(self, path: str, split: str, settings: Settings, seed: int):
    """Lists the folder, checks how each file begins, and takes one split.

    Raises:
      UserError: the folder is missing, unreadable, or holds no images.
    """
    del seed
    self._root = root = _root(path)
    heads = inspect_files(root, *walk(root))
    broken = {f: head.fault for f, head in heads.items() if head.fault}
    files = list(heads)
    if len(broken) == len(files):
      named = "; ".join(f"{printable(f)}: {broken[f]}" for f in files[:3])
      raise UserError(
        f"None of the {len(files)} image files in {printable(root)} is an image"
        f" ({named}). {_HELP}"
      )

    train, test = _split_folders(root, files, settings.test_fraction)
    if by_folder := bool(train):
      wanted = train if split == "train" else test
      chosen = [f for f in files if _top(f) in wanted]
      used = [f for f in files if _top(f) in train | test]
    else:
      keep = hash_split(printable(root), files, settings.test_fraction, split)
      chosen = [f for f, kept in zip(files, keep, strict=True) if kept]
      used = files
    self._files = tuple(f for f in chosen if f not in broken)
    if not self._files:
      raise UserError(
        f"The {split} split of {printable(root)} has no readable image. {_HELP}"
      )

    def label(file: str) -> str | None:
      parents = file.split("/")[1 if by_folder else 0 : -1]
      return parents[-1] if parents else None

    names = sorted({n for f in used if (n := label(f)) is not None})
    index = {n: i for i, n in enumerate(names)} | {None: -1}
    self._ends = tuple(heads[f].ends for f in self._files)
    self._labels = [index[label(f)] for f in self._files]
    self.label_names = tuple(map(printable, names))
    self.broken = {printable(f): broken[f] for f in used if f in broken}
    self.total = len(used)

  def __len__(self) -> int:
    """Number of images."""
    return len(self._files)

  def __getitem__(self, i: int) -> dict[str, Any]:
    """A whole file, undecoded, and its label.

    Raises:
      UserError: the file was there at opening and cannot be read now.
    """
    path = self._root / self._files[i]
    try:
      return {"image": path.read_bytes(), "label": self._labels[i]}
    except OSError as e:
      raise gone(path, e) from e

  def labels(self) -> np.ndarray:
    """The labels."""
    return np.asarray(self._labels)

  def name(self, i: int) -> str:
    """Path relative to the folder."""
    return printable(self._files[i])

  def fingerprint(self) -> str:
    """Of relative names, names of labels, sizes, and both ends of each file."""
    names = (*self.label_names, "")  # -1 is the last
    return hash_parts(
      part
      for file, label, ends in zip(
        self._files, self._labels, self._ends, strict=True
      )
      for part in (os.fsencode(file), names[label].encode(), ends)
    )

  def cache_key(self) -> str:
    """Of names, labels, sizes and times of change; files are not read again."""
    h = hashlib.sha256(os.fsencode(self._root))
    for file, label in zip(self._files, self._labels, strict=True):
      try:
        of = os.stat(f"{self._root}/{file}")
      except OSError as e:
        raise gone(self._root / file, e) from e
      entry = f"\0{label}\0{of.st_size}\0{of.st_mtime_ns}\0"
      h.update(os.fsencode(file) + entry.encode())
    return h.hexdigest()


def gone(path: Path, e: OSError) -> UserError:
  """The error for a file that was listed and cannot be read."""
  return UserError(
    f"Cannot read {printable(path)}, which was there at the start:"
    f" {e.strerror}. Put it back, or start again without it."
  )


# ------------------------------------------------------------------ the folder


def _root(path: str) -> Path:
  """The folder at `path`; if it only wraps another one, that one."""
  if not path:
    raise UserError(f"data.source=folder: names no folder. {_HELP}")
  root = resolve(path)
  try:
    mode = root.stat().st_mode
    if stat.S_ISREG(mode):
      raise UserError(
        f"{printable(root)} is a file, not a folder. Unpack it if it is an"
        f" archive (unzip {printable(root.name)} -d images) and give the"
        " folder."
      )
    if not stat.S_ISDIR(mode):
      raise UserError(
        f"{printable(root)} is {_kind(mode)}, not a folder. {_HELP}"
      )
    while wrapped := _wrapped(root):
      root = root / wrapped
    return root
  except (FileNotFoundError, ValueError) as e:  # of a NUL in it
    raise UserError(
      f"The folder {printable(root)} does not exist. {_HELP}"
    ) from e
  except OSError as e:
    raise UserError(
      f"Cannot read the folder {printable(e.filename or root)}: {e.strerror}."
    ) from e


def _wrapped(root: Path) -> str | None:
  """The name of the only folder in it, if the user has nothing else in it."""
  entries = [e for e in os.scandir(root) if not is_hidden(e.name)]
  if marks.is_output(root, [e.name for e in entries]):
    users = _has_images
  else:
    users = lambda entry: not _is_ours(entry)  # noqa: E731
  folders = filter(users, (e for e in entries if is_folder(e)))
  found = list(itertools.islice(folders, 2))
  if len(found) != 1 or any(users(e) for e in entries if not is_folder(e)):
    return None
  return found[0].name


def _is_ours(entry: os.DirEntry) -> bool:
  """Whether this program wrote all of it."""
  if not is_folder(entry):
    return _named_as_image(entry.name) and _inspect(entry.path).ours
  below = list(os.scandir(entry.path))
  if marks.is_output(entry.path, [e.name for e in below]):
    return True
  return (
    bool(below)
    and not entry.is_symlink()  # links may form a circle
    and all(is_hidden(e.name) or _is_ours(e) for e in below)
  )


def _has_images(entry: os.DirEntry) -> bool:
  """Whether it contains an image that this program did not write."""
  if not is_folder(entry):
    return _named_as_image(entry.name) and not _inspect(entry.path).ours
  below = list(os.scandir(entry.path))
  if marks.is_output(entry.path, [e.name for e in below]):
    return False
  return entry.is_symlink() or any(
    _has_images(e) for e in below if not is_hidden(e.name)
  )


def is_folder(entry: os.DirEntry) -> bool:
  """As `entry.is_dir()`, which raises for a link to itself."""
  return entry.is_dir(follow_symlinks=False) or (
    entry.is_symlink() and os.path.isdir(entry.path)
  )


def is_hidden(name: str) -> bool:
  """Whether a file or folder of this name is never data."""
  return name.startswith(".") or name == "__MACOSX"


def _named_as_image(name: str) -> bool:
  return name.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(name)


def walk(root: Path) -> tuple[list[str], list[str], list[str]]:
  """Image files, foreign files and our folders below `root`.

  Paths are relative to `root` and sorted.

  Raises:
    UserError: a folder cannot be read.
  """
  files: list[str] = []
  foreign: list[str] = []
  ours: list[str] = []

  def fail(e: OSError) -> None:
    where = printable(e.filename or root)
    raise UserError(f"Cannot read the folder {where}: {e.strerror}.") from e

  seen = set()  # links may form a circle
  for at, folders, names in os.walk(root, followlinks=True, onerror=fail):
    here = Path(at)
    try:
      of = os.stat(at)
    except OSError as e:
      fail(e)
    below = here.relative_to(root)
    if (of.st_dev, of.st_ino) in seen:
      folders.clear()
      continue
    seen.add((of.st_dev, of.st_ino))
    if here != root and marks.is_output(at, {*folders, *names}):
      ours.append(below.as_posix())
      folders.clear()
      continue
    folders[:] = [d for d in folders if not is_hidden(d)]
    for name in names:
      to = files if _named_as_image(name) else foreign
      to.append((below / name).as_posix())
  return sorted(files), sorted(foreign), sorted(ours)


# ------------------------------------------------------------------- the files


class Head(NamedTuple):
  """What is known of a file after reading its two ends.

  Attributes:
    fault: why it is not an image; empty if it begins as one.
    special: what it is if it is not a regular file; else empty.
    ours: whether this program wrote it.
    ends: a hash of its size and its two ends.
  """

  fault: str = ""
  special: str = ""
  ours: bool = False
  ends: bytes = b""


def inspect_files(
  root: Path, files: Sequence[str], foreign: Sequence[str], ours: Sequence[str]
) -> dict[str, Head]:
  """The user's own files among `files`; logs what is left out.

  Raises:
    UserError: there are none.
  """
  # Threads, since each file may take a round trip on a network drive.
  parts = [files[i : i + 256] for i in range(0, len(files), 256)]
  with concurrent.futures.ThreadPoolExecutor(16) as pool:
    inspected = pool.map(
      lambda part: [_inspect(f"{root}/{f}") for f in part], parts
    )
    found = dict(
      zip(files, (head for part in inspected for head in part), strict=True)
    )
  special = [f"{f} ({h.special})" for f, h in found.items() if h.special]
  found = {f: head for f, head in found.items() if not head.special}
  marked = [f for f, head in found.items() if head.ours]
  asked_for = marked if len(marked) == len(found) else []
  found = {f: h for f, h in found.items() if asked_for or not h.ours}

  def log_files(names: Sequence[str], what: str, did: str = "left out") -> None:
    if names:
      log.info(
        "%s: %s %s (%d): %s",
        *(printable(root), did, what, len(names), listed(names)),
      )

  log_files(foreign, "files that are not images by their names")
  log_files(special, "what is not a file")
  log_files(ours, "folders that gamix_jax wrote")
  if asked_for:
    log_files(
      marked, "pictures that gamix_jax wrote, as there are no others", "read"
    )
  else:
    log_files(marked, "pictures that gamix_jax wrote")
  if not found:
    n = len(foreign) + len(special)
    what = f"no image files among its {n}" if n else "no files"
    if ours:
      what += f" but those that gamix_jax wrote in {listed(ours, 3)}"
    raise UserError(f"The folder {printable(root)} holds {what}. {_HELP}")
  return found


def _inspect(path: str) -> Head:
  """Reads a file's two ends.

  Raises:
    UserError: the system cannot open any more files.
  """
  try:
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):  # opening a pipe would block
      return Head(special=_kind(mode))
    with open(path, "rb", buffering=0) as f:
      size = os.fstat(f.fileno()).st_size
      head, tail = f.read(_END_BYTES), b""
      if size > _END_BYTES:
        f.seek(max(_END_BYTES, size - _END_BYTES))
        tail = f.read(_END_BYTES)
  except OSError as e:
    if e.errno in _OUT_OF_RESOURCES:
      raise UserError(f"Cannot read {printable(path)}: {e.strerror}.") from e
    return Head(fault=_unreadable(path, e))
  h = hashlib.blake2b(b"%d\0" % size, digest_size=8)
  h.update(head)
  h.update(tail)
  return Head(_fault(head), ours=marks.is_marked(head), ends=h.digest())


def _unreadable(path: str, e: OSError) -> str:
  if e.errno == errno.ENOENT and os.path.islink(path):
    return f"a link to {printable(os.readlink(path))}, which does not exist"
  return f"cannot be read ({e.strerror})"


def _kind(mode: int) -> str:
  return next((word for is_, word in _SPECIAL_FILES if is_(mode)), "not a file")


def _fault(head: bytes) -> str:
  if not head:
    return "empty"
  return "" if has_image_header(head) else "does not begin as an image"


def has_image_header(head: bytes) -> bool:
  """Whether a file that begins so may be of a format that `decode` reads.

  Args:
    head: the file's first 16 bytes or more.
  """
  return head.startswith(
    (
      *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM"),
      *(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    )
  ) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


# ------------------------------------------------------------------ the splits


def _top(file: str) -> str:
  """The top-level folder of a file; empty for a file in the root itself."""
  top, slash, _ = file.partition("/")
  return top if slash else ""


def _split_folders(
  root: Path, files: Sequence[str], test_fraction: float
) -> tuple[set[str], set[str]]:
  """Top-level folders that are the two splits; none if one is missing."""
  tops = {top for f in files if (top := _top(f))}

  def named(words: Sequence[str]) -> set[str]:
    found = ({t for t in tops if t.lower() == word} for word in words)
    return next(filter(None, found), set())

  train, test = named(TRAIN_FOLDERS), named(TEST_FOLDERS)
  if not (train and test):
    log.info(
      "%s: no folders train and test in it, so %s of the images are held out,"
      " by a hash of their names",
      *(printable(root), f"{100 * test_fraction:g} %"),
    )
    return set(), set()
  used = train | test
  rest = [f for f in files if _top(f) not in used]
  log.info(
    "%s: trained on %s, held out %s%s",
    *(printable(root), _folders(train), _folders(test)),
    f"; {len(rest)} images elsewhere are not used: {listed(rest, 3)}"
    if rest
    else "",
  )
  return train, test


def _folders(names: set[str]) -> str:
  return " and ".join(f"{printable(name)}/" for name in sorted(names))

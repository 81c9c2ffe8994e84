"""`folder:<path>`: JPEG, PNG, WebP, BMP and TIFF files at any depth.

Splits and labels are those of `image_files`. A folder that contains nothing but
one other folder stands for that one, since archives unpack so.

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
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from gamix_jax import marks
from gamix_jax.data.formatting import listed, printable
from gamix_jax.data.image_files import (
  END_BYTES,
  FileSource,
  Head,
  head_of,
  is_hidden,
  named_as_image,
  users_files,
)
from gamix_jax.data.settings import Settings
from gamix_jax.errors import UserError
from gamix_jax.paths import resolve

_HELP = (
  "Give a folder of JPEG, PNG, WebP, BMP or TIFF images:"
  " --config.data.source=folder:/path/to/images"
)
_SPECIAL_FILES = (
  (stat.S_ISFIFO, "a named pipe"),
  (stat.S_ISSOCK, "a socket"),
  (stat.S_ISCHR, "a device"),
  (stat.S_ISBLK, "a device"),
  (stat.S_ISDIR, "a folder"),
)
# Errors of the system, not of a file.
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Folder(FileSource):
  """Image files of one split, in the order of their relative paths."""

  def __init__(self, path: str, split: str, settings: Settings, seed: int):
    """Lists the folder, checks how each file begins, and takes one split.

    Raises:
      UserError: the folder is missing, unreadable, or holds no images.
    """
    del seed
    self._root = root = _root(path)
    heads = inspect_files(root, *walk(root))
    self._take(printable(root), heads, split, settings, usage=_HELP)

  def _read(self, file: str) -> bytes:
    path = self._root / file
    try:
      return path.read_bytes()
    except OSError as e:
      raise gone(path, e) from e

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
      for kind in ("zip", "tar"):
        if root.suffix.lower() == f".{kind}":
          raise UserError(
            f"{printable(root)} is a file, not a folder. Read it as it is:"
            f" --config.data.source={kind}:{printable(root)}"
          )
      raise UserError(
        f"{printable(root)} is a file, not a folder. Unpack it if it is an"
        " archive and give the folder."
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
    return named_as_image(entry.name) and _inspect(entry.path).ours
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
    return named_as_image(entry.name) and not _inspect(entry.path).ours
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
      to = files if named_as_image(name) else foreign
      to.append((below / name).as_posix())
  return sorted(files), sorted(foreign), sorted(ours)


# ------------------------------------------------------------------- the files


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
  special = sum(bool(head.special) for head in found.values())
  found = users_files(printable(root), found, foreign, ours)
  if not found:
    n = len(foreign) + special
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
      head, tail = f.read(END_BYTES), b""
      if size > END_BYTES:
        f.seek(max(END_BYTES, size - END_BYTES))
        tail = f.read(END_BYTES)
  except OSError as e:
    if e.errno in _OUT_OF_RESOURCES:
      raise UserError(f"Cannot read {printable(path)}: {e.strerror}.") from e
    return Head(fault=_unreadable(path, e))
  return head_of(size, head, tail)


def _unreadable(path: str, e: OSError) -> str:
  if e.errno == errno.ENOENT and os.path.islink(path):
    return f"a link to {printable(os.readlink(path))}, which does not exist"
  return f"cannot be read ({e.strerror})"


def _kind(mode: int) -> str:
  return next((word for is_, word in _SPECIAL_FILES if is_(mode)), "not a file")

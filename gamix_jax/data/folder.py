"""`folder:<path>`: JPEG, PNG and WebP files at any depth.

Splits. Where the folder has `train` and one of `test`, `val`, `valid` or
`validation` (the first of these that is there), they are used; otherwise a
fixed share is held out by a hash of each file's relative path. A folder that
holds nothing but one other folder is looked into, since archives unpack so.

Labels. The name of the innermost folder below the split's root; -1 for a
file that lies in the root itself.

Files that are not images by their ending, and hidden ones (macOS leaves
`._name.jpg` beside `name.jpg`), are foreign: named in the log, left out and
not counted. A file with an image's ending that is empty or does not begin as
an image is broken: named, left out and counted.
"""

import concurrent.futures
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gamix_jax.data.sources import held_out
from gamix_jax.errors import UserError

log = logging.getLogger(__name__)

ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp")
TESTS = ("test", "val", "valid", "validation")
_HELP = (
  "Give a folder of JPEG, PNG or WebP images:"
  " --config.data.source=folder:/path/to/images"
)


class Folder:
  """Image files of one split, in the order of their relative paths."""

  def __init__(
    self,
    root: Path,
    files: Sequence[str],
    labels: Sequence[int],
    label_names: Sequence[str],
    broken: Sequence[str],
    total: int,
  ):
    """`files` are relative to `root`; `labels` index `label_names`."""
    self._root, self._files, self._labels = root, files, labels
    self.label_names, self.broken, self.total = label_names, broken, total

  def __len__(self) -> int:
    """Number of images."""
    return len(self._files)

  def __getitem__(self, i: int) -> tuple[bytes, int]:
    """A whole file, undecoded, and its label.

    Raises:
      UserError: the file was there at opening and cannot be read now.
    """
    path = self._root / self._files[i]
    try:
      return path.read_bytes(), self._labels[i]
    except OSError as e:
      raise _gone(path, e) from e

  def classes(self) -> np.ndarray:
    """The labels."""
    return np.asarray(self._labels)

  def name(self, i: int) -> str:
    """Path relative to the folder."""
    return self._files[i]

  def identity(self) -> str:
    """A hash of names, labels, sizes and times of change, not of content."""
    h = hashlib.sha256(os.fsencode(self._root))
    for file, label in zip(self._files, self._labels, strict=True):
      try:
        stat = os.stat(f"{self._root}/{file}")
      except OSError as e:
        raise _gone(self._root / file, e) from e
      entry = f"\0{label}\0{stat.st_size}\0{stat.st_mtime_ns}\0"
      h.update(os.fsencode(file) + entry.encode())
    return h.hexdigest()


def _gone(path: Path, e: OSError) -> UserError:
  return UserError(
    f"Cannot read {path}, which was there at the start: {e.strerror}."
    " Put it back, or start again without it."
  )


def open_folder(path: str, test_share: float, split: str) -> Folder:
  """Lists the folder, checks how each file begins, and takes one split.

  Raises:
    UserError: the folder is missing, unreadable, or holds no images.
  """
  root = _root(path)
  files, foreign = _walk(root)
  _report_foreign(root, foreign)
  if not files:
    what = f"no image files among its {len(foreign)}" if foreign else "no files"
    raise UserError(f"The folder {root} holds {what}. {_HELP}")
  bad = _broken(root, files)
  if len(bad) == len(files):
    raise UserError(
      f"None of the {len(files)} image files in {root} is an image"
      f" ({', '.join(sorted(bad)[:3])}). {_HELP}"
    )

  tops = {f.split("/", 1)[0].lower(): f.split("/", 1)[0] for f in files}
  test_top = next((tops[t] for t in TESTS if t in tops), None)
  by_folder = "train" in tops and test_top is not None
  if by_folder:
    top = tops["train"] if split == "train" else test_top
    chosen = [f for f in files if f.startswith(f"{top}/")]
    used = [f for f in files if f.split("/", 1)[0] in (tops["train"], test_top)]
  else:
    test = held_out(str(root), files, test_share)
    chosen = [
      f for f, t in zip(files, test, strict=True) if t == (split == "test")
    ]
    used = files
  chosen = [f for f in chosen if f not in bad]
  if not chosen:
    raise UserError(
      f"The {split} split of {root} has no readable image. {_HELP}"
    )

  def label(file: str) -> str | None:
    parents = file.split("/")[1 if by_folder else 0 : -1]
    return parents[-1] if parents else None

  names = sorted({n for f in used if (n := label(f)) is not None})
  index = {n: i for i, n in enumerate(names)} | {None: -1}
  return Folder(
    root,
    chosen,
    [index[label(f)] for f in chosen],
    names,
    [f for f in used if f in bad],
    len(used),
  )


def _root(path: str) -> Path:
  """The folder meant by `path`, looked into where it only wraps another."""
  if not path:
    raise UserError(f"data.source=folder: names no folder. {_HELP}")
  root = Path(path).expanduser().absolute()
  if root.is_file():
    raise UserError(
      f"{root} is a file, not a folder. Unpack it if it is an archive"
      f" (unzip {root.name} -d images) and give the folder."
    )
  if not root.is_dir():
    raise UserError(f"The folder {root} does not exist. {_HELP}")
  while True:
    try:
      entries = [e for e in os.scandir(root) if not _hidden(e.name)]
    except OSError as e:
      raise UserError(f"Cannot read the folder {root}: {e.strerror}.") from e
    if len(entries) != 1 or not entries[0].is_dir():
      return root
    root = root / entries[0].name


def _hidden(name: str) -> bool:
  return name.startswith(".") or name == "__MACOSX"


def _walk(root: Path) -> tuple[list[str], list[str]]:
  """Image files and foreign files below `root`, relative, sorted."""
  files: list[str] = []
  foreign: list[str] = []

  def fail(e: OSError) -> None:
    raise UserError(f"Cannot read the folder {e.filename}: {e.strerror}.")

  seen = set()  # links may lead in a circle
  for at, folders, names in os.walk(root, followlinks=True, onerror=fail):
    folders[:] = [d for d in folders if not _hidden(d)]
    stat = os.stat(at)
    if (stat.st_dev, stat.st_ino) in seen:
      folders.clear()
      continue
    seen.add((stat.st_dev, stat.st_ino))
    below = Path(at).relative_to(root)
    for name in names:
      good = name.lower().endswith(ENDINGS) and not _hidden(name)
      (files if good else foreign).append((below / name).as_posix())
  return sorted(files), sorted(foreign)


def _report_foreign(root: Path, foreign: Sequence[str]) -> None:
  if foreign:
    more = ", ..." if len(foreign) > 5 else ""
    log.info(
      "%s: left out %d files that are not images by their names: %s%s",
      *(root, len(foreign), ", ".join(foreign[:5]), more),
    )


def _broken(root: Path, files: Sequence[str]) -> set[str]:
  """Those of `files` whose first bytes are no image's."""

  def check(part: Sequence[str]) -> list[str]:
    return [file for file in part if not good(f"{root}/{file}")]

  def good(path: str) -> bool:
    try:
      with open(path, "rb", buffering=0) as f:
        return begins_as_image(f.read(16))
    except OSError as e:
      raise UserError(
        f"Cannot read {path}: {e.strerror}. Mend or remove it."
      ) from e

  # Threads, since on a network drive each file is a wait.
  parts = [files[i : i + 256] for i in range(0, len(files), 256)]
  with concurrent.futures.ThreadPoolExecutor(16) as pool:
    return {file for bad in pool.map(check, parts) for file in bad}


def begins_as_image(head: bytes) -> bool:
  """Whether 16 bytes can begin a file of a format that `decode` reads."""
  return head.startswith(
    (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM")
  ) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")

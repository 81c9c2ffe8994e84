"""Image files, wherever they are kept: a folder, a zip file or tar files.

A source of files knows each by its name, a path relative to the top, and by
its head: what its two ends tell. `FileSource` makes a split of them.

Splits. If there are top-level folders `train` or `training` and one of `test`,
`testing`, `val`, `valid` or `validation` (the first of these that is there), in
upper or lower case, they are the splits. Otherwise a fixed share of the files
is held out by a hash of their names. The log says which.

Labels. The name of the innermost folder below the split's folder; -1 for a file
directly in it. A source may know better.
"""

import abc
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gamix_jax import marks
from gamix_jax.data import labels as labels_lib
from gamix_jax.data.formatting import listed, printable
from gamix_jax.data.settings import Settings
from gamix_jax.data.source import Source, hash_parts, hash_split
from gamix_jax.errors import UserError

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (
  *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"),
  *(".bmp", ".tif", ".tiff"),
)
TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")
END_BYTES = 4096  # bytes that are read at the start and at the end of a file


def is_hidden(name: str) -> bool:
  """Whether a file or folder of this name is never data."""
  return name.startswith(".") or name == "__MACOSX"


def named_as_image(name: str) -> bool:
  """Whether a file of this name should be an image of the user."""
  return name.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(name)


# ------------------------------------------------------------------- the heads


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


def head_of(size: int, head: bytes, tail: bytes) -> Head:
  """The head of a file that could be read.

  Args:
    size: in bytes.
    head: its first `END_BYTES`.
    tail: its last `END_BYTES`, without what is in `head`.
  """
  h = hashlib.blake2b(b"%d\0" % size, digest_size=8)
  h.update(head)
  h.update(tail)
  return Head(_fault(head), ours=marks.is_marked(head), ends=h.digest())


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


def users_files(
  where: str,
  heads: Mapping[str, Head],
  foreign: Sequence[str],
  ours: Sequence[str] = (),
) -> dict[str, Head]:
  """The user's own files; logs what is left out.

  Args:
    where: the source, for messages.
    heads: of the files that are images by their names.
    foreign: other files.
    ours: folders that this program wrote.

  Returns:
    Those of `heads`; empty if there are none.
  """
  special = [f"{f} ({h.special})" for f, h in heads.items() if h.special]
  found = {f: head for f, head in heads.items() if not head.special}
  marked = [f for f, head in found.items() if head.ours]
  asked_for = marked if len(marked) == len(found) else []
  found = {f: h for f, h in found.items() if asked_for or not h.ours}

  def log_files(names: Sequence[str], what: str, did: str = "left out") -> None:
    if names:
      log.info(
        "%s: %s %s (%d): %s", where, did, what, len(names), listed(names)
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
  return found


# ------------------------------------------------------------------ the source


class FileSource(Source):
  """Image files of one split, in the order of their names.

  A subclass calls `_take` at opening, and implements `_read` and `cache_key`.
  """

  takes_path = True

  def _take(
    self,
    where: str,
    heads: Mapping[str, Head],
    split: str,
    settings: Settings,
    *,
    usage: str,
    labels: Mapping[str, int | str] | None = None,
  ) -> None:
    """Takes one split of files and their labels.

    Args:
      where: the source, for messages.
      heads: of the user's files, in order; there are some.
      split: "train" or "test".
      settings: the section `data`.
      usage: what to give instead, for messages.
      labels: of files that have one, numbers or words; None: their folders.

    Raises:
      UserError: none of them is an image, or there is no image in the split.
    """
    broken = {f: head.fault for f, head in heads.items() if head.fault}
    files = list(heads)
    if len(broken) == len(files):
      named = "; ".join(f"{printable(f)}: {broken[f]}" for f in files[:3])
      raise UserError(
        f"None of the {len(files)} image files in {where} is an image"
        f" ({named}). {usage}"
      )
    train, test = _split_folders(where, files, settings.test_fraction)
    if by_folder := bool(train):
      wanted = train if split == "train" else test
      chosen = [f for f in files if _top(f) in wanted]
      used = [f for f in files if _top(f) in train | test]
    else:
      keep = hash_split(where, files, settings.test_fraction, split)
      chosen = [f for f, kept in zip(files, keep, strict=True) if kept]
      used = files
    self._files = tuple(f for f in chosen if f not in broken)
    if not self._files:
      raise UserError(
        f"The {split} split of {where} has no readable image. {usage}"
      )
    self._ends = tuple(heads[f].ends for f in self._files)
    if labels is None:
      numbers, self.label_names = _folder_labels(used, 1 if by_folder else 0)
    else:
      numbers, self.label_names = _given_labels(used, labels, where)
    self._labels = [numbers[f] for f in self._files]
    self.broken = {printable(f): broken[f] for f in used if f in broken}
    self.total = len(used)

  @abc.abstractmethod
  def _read(self, file: str) -> bytes:
    """A whole file.

    Raises:
      UserError: it was there at opening and cannot be read now.
    """

  def __len__(self) -> int:
    """Number of images."""
    return len(self._files)

  def __getitem__(self, i: int) -> dict[str, Any]:
    """A whole file, undecoded, and its label.

    Raises:
      UserError: the file was there at opening and cannot be read now.
    """
    return {"image": self._read(self._files[i]), "label": self._labels[i]}

  def labels(self) -> np.ndarray:
    """The labels."""
    return np.asarray(self._labels)

  def name(self, i: int) -> str:
    """Path relative to the top."""
    return printable(self._files[i])

  def fingerprint(self) -> str:
    """Of relative names, names of labels, sizes, and both ends of each file.

    So it is the same for a folder and for an archive of it.
    """
    return hash_parts(
      part
      for file, label, ends in zip(
        self._files, self._labels, self._ends, strict=True
      )
      for part in (os.fsencode(file), self._label_name(label).encode(), ends)
    )

  def _label_name(self, label: int) -> str:
    if label < 0:
      return ""
    return self.label_names[label] if self.label_names else str(label)


def _folder_labels(
  files: Sequence[str], depth: int
) -> tuple[dict[str, int], tuple[str, ...]]:
  """Labels by the innermost folder, the first `depth` folders left out."""

  def label(file: str) -> str | None:
    parents = file.split("/")[depth:-1]
    return parents[-1] if parents else None

  names = sorted({n for f in files if (n := label(f)) is not None})
  index = {n: i for i, n in enumerate(names)} | {None: -1}
  return {f: index[label(f)] for f in files}, tuple(map(printable, names))


def _given_labels(
  files: Sequence[str], labels: Mapping[str, int | str], where: str
) -> tuple[dict[str, int], tuple[str, ...]]:
  """Labels as class numbers, -1 for files without, and the names of classes.

  Raises:
    UserError: some are numbers and some are words.
  """
  there = {f: labels[f] for f in files if f in labels}
  words = [f for f, label in there.items() if isinstance(label, str)]
  if words and len(words) < len(there):
    number = next(f for f in there if f not in set(words))
    raise UserError(
      f"{where}: the label of {printable(words[0])} is"
      f" {there[words[0]]!r}, that of {printable(number)} is"
      f" {there[number]!r}. Make all of them numbers, or all of them words."
    )
  none = dict.fromkeys(files, -1)
  if not there:
    return none, ()
  if len(there) < len(files):
    log.info("%s: %d images have no label", where, len(files) - len(there))
  (made,), names = labels_lib.encode([np.array(list(there.values()))], where)
  return none | dict(zip(there, made.tolist(), strict=True)), names


# ------------------------------------------------------------------ the splits


def _top(file: str) -> str:
  """The top-level folder of a file; empty for a file in the root itself."""
  top, slash, _ = file.partition("/")
  return top if slash else ""


def _split_folders(
  where: str, files: Sequence[str], test_fraction: float
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
      *(where, f"{100 * test_fraction:g} %"),
    )
    return set(), set()
  used = train | test
  rest = [f for f in files if _top(f) not in used]
  log.info(
    "%s: trained on %s, held out %s%s",
    *(where, _folders(train), _folders(test)),
    f"; {len(rest)} images elsewhere are not used: {listed(rest, 3)}"
    if rest
    else "",
  )
  return train, test


def _folders(names: set[str]) -> str:
  return " and ".join(f"{printable(name)}/" for name in sorted(names))

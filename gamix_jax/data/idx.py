"""`idx:<folder>`: the files of MNIST and data sets like it.

A folder contains one file for each split and kind, compressed with gzip or not:

  train-images-idx3-ubyte[.gz]   train-labels-idx1-ubyte[.gz]
  t10k-images-idx3-ubyte[.gz]    t10k-labels-idx1-ubyte[.gz]

MNIST, Fashion-MNIST and KMNIST use these names. `test` in place of `t10k` and a
dot before `idx` are accepted too. EMNIST has the name of the set first, as in
`emnist-balanced-train-images-idx3-ubyte.gz`. If a folder contains several sets,
`idx:<folder>/emnist-balanced` chooses one. `idx:<folder>` alone means the set
without a prefix, or the only one.

Without test images a fixed share of the training images is held out by a hash
of their index. Without a labels file all labels of that split are -1.

EMNIST's files store each image transposed, so sets whose name begins with
`emnist` are transposed back.

The format: two zero bytes, a byte for the type (8: unsigned bytes), a byte for
the number of axes, the size of each axis as a big-endian uint32, then the
values.
"""

import gzip
import logging
import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gamix_jax.data import levels
from gamix_jax.data.formatting import printable
from gamix_jax.data.settings import Settings
from gamix_jax.data.source import ArraySource, hash_split
from gamix_jax.errors import UserError
from gamix_jax.paths import resolve

log = logging.getLogger(__name__)

# By the third byte of a file. Only unsigned bytes are supported.
DTYPES = {
  0x08: "unsigned bytes",
  0x09: "signed bytes",
  0x0B: "int16",
  0x0C: "int32",
  0x0D: "float32",
  0x0E: "float64",
}
AXES = {"images": 3, "labels": 1}

_NAME = re.compile(
  r"(?:(?P<prefix>.+)[-_.])?(?P<split>train|t10k|test)[-_.]"
  r"(?P<kind>images|labels)[-_.]idx\d+[-_.][a-z]+\d*(?:\.gz)?",
  re.IGNORECASE,
)
_GZIP = b"\x1f\x8b"
_HELP = (
  "Give the folder that holds train-images-idx3-ubyte.gz:"
  " --config.data.source=idx:/path/to/folder"
)

# {(split, kind): file} of one set of images.
Files = Mapping[tuple[str, str], Path]


class Idx(ArraySource):
  """One split of a set of idx files, read into memory."""

  takes_path = True
  takes_range = True

  def __init__(self, path: str, split: str, settings: Settings, seed: int):
    """Reads uint8 [n, h, w] images and int32 [n] labels, -1 without labels.

    Args:
      path: the folder; or the folder, a slash and a set's prefix.
      split: "train" or "test".
      settings: `test_fraction` of the training images is held out where there
        are no test images; `range` says what is black and white, see `levels`.
      seed: not used.

    Raises:
      UserError: no such folder or set, several sets and none named, a file
        that is missing, truncated, corrupt or not of the expected type, or
        pixels whose range is in doubt.
    """
    del seed
    try:
      where, prefix, files = _find(path)
    except OSError as e:
      raise UserError(
        f"{printable(path)} cannot be read: {e.strerror or e}. {_HELP}"
      ) from e
    _check_set(where, prefix, files)
    has_test = ("test", "images") in files
    chosen = split if has_test else "train"
    file = files[chosen, "images"]
    images = _read(file, "images")
    ends = levels.find_range([images], settings.stated_range, printable(file))
    labels = _labels(files, chosen, len(images))
    total = len(images)
    if has_test:
      other = "train" if split == "test" else "test"
      total += _shape(files[other, "images"], "images")[0]
    else:
      log.info(
        "%s: no test images in it, so %g %% are held out, by a hash of their"
        " index",
        *(printable(where), 100 * settings.test_fraction),
      )
      names = [str(i) for i in range(total)]
      keep = hash_split(printable(where), names, settings.test_fraction, split)
      images, labels = images[keep], labels[keep]
    if prefix.lower().startswith("emnist"):
      images = np.ascontiguousarray(images.transpose(0, 2, 1))
    images = levels.to_uint8(images, *ends)
    super().__init__(images, labels, title=printable(file.name), total=total)


# ------------------------------------------------------------------- the files


def _find(path: str) -> tuple[Path, str, Files]:
  """A set's path for messages, its prefix and its files."""
  given = resolve(path)
  if not path:
    raise UserError(f"data.source=idx: names no folder. {_HELP}")
  if given.is_file():
    raise UserError(
      f"{given} is a file, and the source idx reads a folder:"
      f" --config.data.source=idx:{given.parent}"
    )
  if given.is_dir():
    return _default_set(given)
  if not given.parent.is_dir():
    raise UserError(f"The folder {given} does not exist. {_HELP}")
  sets = _sets(given.parent)
  prefix = given.name.rstrip("-_.")
  if prefix not in sets:
    there = ", ".join(name for name in sorted(sets) if name)
    raise UserError(
      f"{given} does not exist, neither as a folder nor as a set of idx files"
      f" in {given.parent}. "
      + (f"The sets there are {there}." if there else _HELP)
    )
  return given, prefix, sets[prefix]


def _default_set(folder: Path) -> tuple[Path, str, Files]:
  """As `_find`: the folder's set without a prefix, or its only one."""
  sets = _sets(folder)
  if "" in sets:
    return folder, "", sets[""]
  if len(sets) > 1:
    choices = ", ".join(f"idx:{folder / name}" for name in sorted(sets))
    raise UserError(
      f"{folder} holds {len(sets)} sets of idx files."
      f" Choose one with --config.data.source: {choices}"
    )
  if not sets:
    below = next(
      (
        file.parent
        for depth in ("*", "*/*")
        for file in sorted(folder.glob(f"{depth}/*train*images*"))
        if _NAME.fullmatch(file.name) and file.is_file()
      ),
      None,
    )
    raise UserError(
      f"The folder {folder} holds no idx files"
      + (f", but {below} does: idx:{below}" if below else f". {_HELP}")
    )
  ((prefix, files),) = sets.items()
  return folder, prefix, files


def _check_set(where: Path, prefix: str, files: Files) -> None:
  """Raises UserError unless each file has the others that it needs."""
  if ("train", "images") not in files:
    raise UserError(
      f"{where} has {_listed(files)}, but no training images. Add"
      f" {_join(prefix, 'train-images-idx3-ubyte.gz')} to the folder."
    )
  for part in ("train", "test"):
    labels = files.get((part, "labels"))
    if labels and (part, "images") not in files:
      raise UserError(
        f"{labels} has no file of {part} images beside it. Add that, or remove"
        " the labels file to hold out a share of the training images."
      )


def _sets(folder: Path) -> dict[str, Files]:
  """The sets in a folder: {prefix: files}.

  If two files are the same part of a set, the uncompressed one is used, then
  the first one by name.
  """
  found = [
    (match, file)
    for file in folder.iterdir()
    if (match := _NAME.fullmatch(file.name)) and file.is_file()
  ]
  found.sort(key=lambda f: (f[1].suffix.lower() == ".gz", f[1].name))
  sets: dict[str, dict[tuple[str, str], Path]] = {}
  for match, file in found:
    split = "train" if match["split"].lower() == "train" else "test"
    files = sets.setdefault(match["prefix"] or "", {})
    files.setdefault((split, match["kind"].lower()), file)
  return sets


def _listed(files: Files) -> str:
  return ", ".join(sorted(file.name for file in files.values()))


def _join(prefix: str, name: str) -> str:
  return f"{prefix}-{name}" if prefix else name


# ------------------------------------------------------------------- one file


def _labels(files: Files, split: str, n: int) -> np.ndarray:
  """The split's labels, int32 [n]; all -1 without a file."""
  file = files.get((split, "labels"))
  if file is None:
    return np.full(n, -1, np.int32)
  labels = _read(file, "labels")
  if len(labels) != n:
    raise UserError(
      f"{file} holds {len(labels):,} labels, but"
      f" {files[split, 'images'].name} holds {n:,} images. Use two files that"
      " belong together, or remove the labels file to go without labels."
    )
  return labels.astype(np.int32)


def _read(file: Path, kind: str) -> np.ndarray:
  """A file's values: uint8 [n, h, w] for images, uint8 [n] for labels.

  Raises:
    UserError: the file cannot be read, is of another type, or is shorter or
      longer than its header says.
  """
  data = _bytes(file)
  shape = _parsed(data, file, kind)
  begin = _header_bytes(kind)
  expected, what = begin + math.prod(shape), "x".join(map(str, shape))
  if len(data) != expected:
    short = len(data) < expected
    raise UserError(
      f"{file}: its header says {what} {kind}, {expected:,} bytes in all, but"
      f" it has {len(data):,}; it is {'truncated' if short else 'damaged'}."
      " Download it again."
    )
  if 0 in shape:
    raise UserError(
      f"{file}: its header says {what} {kind}; there is nothing in it."
      " Download it again."
    )
  return np.frombuffer(data, np.uint8, offset=begin).reshape(shape)


def _shape(file: Path, kind: str) -> tuple[int, ...]:
  """The shape of what `_read` returns; reads only the header."""
  return _parsed(_bytes(file, _header_bytes(kind)), file, kind)


def _header_bytes(kind: str) -> int:
  return 4 + 4 * AXES[kind]


def _parsed(data: bytes, file: Path, kind: str) -> tuple[int, ...]:
  """The shape in the header of `data`, whose type is checked."""
  axes = AXES[kind]
  expected = f"0x{0x0800 + axes:08x} ({_type(0x08, axes)})"
  magic = int.from_bytes(data[:4])
  if len(data) >= 4 and magic != 0x0800 + axes:
    found = f"0x{magic:08x}"
    if data[:2] == b"\0\0" and data[2] in DTYPES:
      found += f" ({_type(data[2], data[3])})"
      action = (
        "Use the original file; other data can be stored with numpy.savez and"
        " read with data.source=npz:<path>."
      )
    else:
      found += ", which is not an idx file"
      action = "Download it again."
    raise UserError(
      f"{file}: expected {kind} with the magic number {expected}, found"
      f" {found}. {action}"
    )
  if len(data) < _header_bytes(kind):
    raise UserError(
      f"{file} has {len(data)} bytes, too few for the header of an idx file of"
      f" {kind}. Download it again."
    )
  return tuple(map(int, np.frombuffer(data, ">u4", axes, 4)))


def _type(code: int, axes: int) -> str:
  return f"{DTYPES[code]}, {axes} {'axis' if axes == 1 else 'axes'}"


def _bytes(file: Path, limit: int = -1) -> bytes:
  """A file's content or its first bytes, unpacked if the content is gzip.

  Raises:
    UserError: it cannot be read or unpacked.
  """
  try:
    with file.open("rb") as raw:
      packed = raw.read(2) == _GZIP
      raw.seek(0)
      if not packed:
        return raw.read(limit)
      with gzip.open(raw) as unpacked:
        return unpacked.read(limit)
  except EOFError as e:
    raise UserError(
      f"{file} is truncated: its gzip data ends after"
      f" {file.stat().st_size:,} bytes, before the end mark."
      " Download it again."
    ) from e
  except (gzip.BadGzipFile, zlib.error) as e:
    raise UserError(
      f"{file} is corrupt and cannot be unpacked: {e}. Download it again."
    ) from e
  except MemoryError as e:
    raise UserError(f"{file} does not fit into memory.") from e
  except OSError as e:
    raise UserError(
      f"{file} cannot be read: {e.strerror or e}. Check its permissions and"
      " the disk."
    ) from e

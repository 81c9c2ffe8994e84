"""`npz:<path>`: images in a NumPy archive (or a single `.npy`).

Entries; of several names, the first one that is there:

  images   x_train, train_images, images, x, data, arr_0 (NumPy's name for an
           array saved without one): [n, h, w] or [n, h, w, c], c 1 or 3
  labels   y_train, train_labels, labels, y: numbers, strings or one-hot, see
           `labels`; optional
  test     x_test, test_images; y_test, test_labels. Without them a fixed
           share of the images is held out by a hash of their index.
  range    two numbers, optional: the values that mean black and white

`data.range` takes precedence over the entry `range`. Without both, the range is
judged by the numbers of all images, or the archive is refused; see `levels`.
The log says which numbers were found and which range was chosen.

An archive is checked before it is read: no array is allocated that is larger
than the file can fill.
"""

import logging
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from gamix_jax.data import labels as labels_lib
from gamix_jax.data import levels
from gamix_jax.data.formatting import listed, printable
from gamix_jax.data.settings import Settings, is_range
from gamix_jax.data.source import ArraySource, hash_split
from gamix_jax.errors import UserError
from gamix_jax.paths import resolve

log = logging.getLogger(__name__)

IMAGES = ("x_train", "train_images", "images", "x", "data", "arr_0")
LABELS = ("y_train", "train_labels", "labels", "y")
TEST_IMAGES = ("x_test", "test_images")
TEST_LABELS = ("y_test", "test_labels")
_WANTED = {*IMAGES, *LABELS, *TEST_IMAGES, *TEST_LABELS, "range"}
_MAX_RATIO = 1100  # of an array to its compressed size in a zip file
_HELP = "Write it with numpy.savez(path, images=..., labels=...)."


class Npz(ArraySource):
  """One split of an archive, read into memory."""

  takes_path = True
  takes_range = True

  def __init__(self, path: str, split: str, settings: Settings, seed: int):
    """Reads the archive and takes one split.

    Raises:
      UserError: it is missing or no archive, or the arrays are not images.
    """
    del seed
    file = _file(path)
    where = printable(file)
    entries = _load(file)
    key = _first(entries, IMAGES)
    if key is None:
      raise UserError(
        f"{where} has no images: it holds {listed(entries) or 'nothing'}, and"
        f" none of {', '.join(IMAGES)}."
      )
    test_key = _first(entries, TEST_IMAGES)
    keys = {"train": key} | ({"test": test_key} if test_key else {})
    images = {k: _check(entries[v], where, v) for k, v in keys.items()}
    labels, names = _labels(entries, images, where)
    stated = settings.stated_range or _stated(entries, where)
    ends = levels.find_range(list(images.values()), stated, where)
    total = sum(map(len, images.values()))
    chosen = split if test_key else "train"
    x, y = images[chosen], labels[chosen]
    if test_key is None:
      log.info(
        "%s: no test images in it, so %g %% are held out, by a hash of their"
        " index",
        *(where, 100 * settings.test_fraction),
      )
      indices = [str(i) for i in range(total)]
      keep = hash_split(where, indices, settings.test_fraction, split)
      x, y = x[keep], y[keep]
    super().__init__(
      levels.to_uint8(x, *ends),
      y,
      title=f"{printable(file.name)}/{keys[chosen]}",
      total=total,
      label_names=names,
    )


# -------------------------------------------------------------------- the file


def _file(path: str) -> Path:
  """Raises UserError unless there is such a file."""
  if not path:
    raise UserError(
      "data.source=npz: names no file."
      " Give one with --config.data.source=npz:/path/to/images.npz"
    )
  file = resolve(path)
  try:
    if file.is_file():
      return file
    there = file.exists()
  except (OSError, ValueError):  # a name too long, a NUL in it
    there = False
  what = "is no file" if there else "does not exist"
  raise UserError(
    f"The file {printable(file)} {what}."
    " Give one with --config.data.source=npz:/path/to/images.npz"
  )


def _load(file: Path) -> Mapping[str, np.ndarray]:
  """The arrays of an archive with known names, or all if there are none.

  Raises:
    UserError: the file is damaged or not an archive.
  """
  try:
    with file.open("rb") as f, warnings.catch_warnings():
      warnings.simplefilter("ignore")  # about headers that Python 2 wrote
      size = file.stat().st_size
      if not size:
        raise UserError(f"there is nothing in the file. {_HELP}")
      begin = f.read(6)
      f.seek(0)
      if begin == np.lib.format.MAGIC_PREFIX:
        return {"images": _array(f, size, "the array")}
      with zipfile.ZipFile(f) as archive:
        return _members(archive, size)
  except UserError as e:
    raise UserError(f"{printable(file)}: {e}") from e
  except MemoryError as e:
    raise UserError(
      f"{printable(file)} does not fit into memory. Unpack it to image"
      " files and use --config.data.source=folder:<path>"
    ) from e
  # A damaged archive raises whatever comes first: OSError, ValueError,
  # zipfile.BadZipFile, zlib.error, tokenize.TokenError, NotImplementedError,
  # RuntimeError (it is encrypted), ...
  except Exception as e:
    text = getattr(e, "strerror", None) or str(e) or type(e).__name__
    reason = printable(text.splitlines()[0][:100])
    raise UserError(
      f"{printable(file)} cannot be read as a numpy archive: {reason}. If it is"
      f" damaged, get it again. {_HELP}"
    ) from e


def _members(archive: zipfile.ZipFile, whole: int) -> Mapping[str, np.ndarray]:
  """The arrays of an archive of `whole` bytes."""
  there = {
    member.filename.removesuffix(".npy"): member
    for member in archive.infolist()
    if member.filename.endswith(".npy")
  }
  arrays = {}
  for key in [k for k in there if k in _WANTED] or there:
    member = there[key]
    packed = 1 if member.compress_type == zipfile.ZIP_STORED else _MAX_RATIO
    size = min(member.file_size, packed * min(member.compress_size, whole))
    with archive.open(member) as f:
      arrays[key] = _array(f, size, printable(key))
  return arrays


def _array(f: IO[bytes], size: int, key: str) -> np.ndarray:
  """The array of a `.npy` file.

  Args:
    f: the file, at its start.
    size: the most bytes that it can have.
    key: the array's name, for messages.

  Raises:
    UserError: the header asks for more than `size`, or for Python objects.
    Exception: of any kind, if the file is damaged.
  """
  version = np.lib.format.read_magic(f)
  read = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }
  if version not in read:
    raise ValueError(f"{key} is of the format {version}, which is not known")
  shape, fortran, dtype = read[version](f)
  if dtype.hasobject:
    raise UserError(
      f"{key} is an array of Python objects, which cannot be read. Save it as"
      " numbers (numpy.stack(...)), or labels as strings (.astype(str))."
    )
  count = int(np.prod([int(n) for n in shape], dtype=object))
  need = count * dtype.itemsize
  if min(shape, default=0) < 0 or need > size:
    raise UserError(
      f"the header of {key} says {dtype} {list(shape)}, {need:,} bytes, but"
      f" there are at most {size:,}. It is damaged; get it again. {_HELP}"
    )
  data = f.read(need)
  if len(data) != need:
    raise UserError(
      f"{key} ends after {len(data):,} of {need:,} bytes. It is damaged; get it"
      f" again. {_HELP}"
    )
  f.read(1)  # zipfile verifies a member's checksum at its end
  values = np.frombuffer(data, dtype) if need else np.empty(count, dtype)
  if fortran:
    return values.reshape(shape[::-1]).transpose()
  return values.reshape(shape)


# ------------------------------------------------------------------ the arrays


def _first(entries: Mapping[str, np.ndarray], keys: Sequence[str]):
  return next((k for k in keys if k in entries), None)


def _check(images: np.ndarray, where: str, key: str) -> np.ndarray:
  """Raises UserError unless these are images."""
  shape = images.shape
  where = f"{where}: {key} is {images.dtype} {list(shape)}"
  wanted = "images are [n, h, w] or [n, h, w, 1 or 3]"
  grey, colour = 3, 4
  if images.ndim == colour and shape[1] in (1, 3) and shape[3] not in (1, 3):
    raise UserError(
      f"{where}, but {wanted}. Channels come last:"
      f" numpy.moveaxis({key}, 1, -1)."
    )
  if images.ndim not in (grey, colour) or (
    images.ndim == colour and shape[3] not in (1, 3)
  ):
    raise UserError(f"{where}, but {wanted}. Reshape it and save it again.")
  if 0 in shape:
    raise UserError(f"{where}: there is nothing in it.")
  if images.dtype.kind not in "buif":
    raise UserError(f"{where}, but pixels are uint8 or float numbers.")
  return images


def _labels(
  entries: Mapping[str, np.ndarray],
  images: Mapping[str, np.ndarray],
  where: str,
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
  """int32 labels of each split, all -1 without, and the names of classes.

  Raises:
    UserError: there is not one label for each image, or they are not labels.
  """
  keys = {"train": LABELS, "test": TEST_LABELS}
  found = {k: _first(entries, keys[k]) for k in images}
  there = {k: key for k, key in found.items() if key is not None}
  for split, key in there.items():
    n = len(images[split])
    if entries[key].shape[:1] != (n,):
      raise UserError(
        f"{where}: {key} is {entries[key].dtype} {list(entries[key].shape)},"
        f" but labels are one for each of the {n} images, [{n}]. Fix it or"
        " leave it out."
      )
  made, names = labels_lib.encode(
    [entries[key] for key in there.values()],
    f"{where}: {' and '.join(there.values())}",
  )
  none = {k: np.full(len(x), -1, np.int32) for k, x in images.items()}
  return none | dict(zip(there, made, strict=True)), names


def _stated(
  entries: Mapping[str, np.ndarray], where: str
) -> tuple[float, float] | None:
  """The archive's own range; None if it has none.

  Raises:
    UserError: it is not a range.
  """
  if "range" not in entries:
    return None
  stated = entries["range"].ravel()
  ends = stated.tolist() if stated.dtype.kind in "buif" else []
  if len(ends) != 2 or not is_range(*ends):
    raise UserError(
      f"{where}: range must be two numbers, black then white, not"
      f" {ends or stated.dtype}."
    )
  return ends[0], ends[1]

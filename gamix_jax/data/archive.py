"""Reading NumPy archives (`.npz`) and arrays (`.npy`) safely.

An archive is checked before it is read: no array is allocated that is larger
than the file can fill, and no Python objects are unpickled.
"""

import warnings
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from gamix_jax.data.formatting import printable
from gamix_jax.errors import UserError

EXAMPLE = "npz:/path/to/images.npz"  # of data.source, for messages
IMAGES_HELP = "Write it with numpy.savez(path, images=..., labels=...)."
_MAX_RATIO = 1100  # of an array to its compressed size in a zip file


def read_archive(
  file: Path,
  wanted: Collection[str],
  *,
  single: str | None,
  usage: str,
) -> Mapping[str, np.ndarray]:
  """The arrays of an archive with known names, or all if there are none.

  Args:
    file: the archive, or a single `.npy` array.
    wanted: the known names.
    single: the name of the array of a `.npy` file; None: it is refused.
    usage: how to write such an archive, for messages.

  Raises:
    UserError: the file is damaged or not an archive.
  """

  def read(f: IO[bytes], size: int) -> Mapping[str, np.ndarray]:
    begin = f.read(6)
    f.seek(0)
    if begin != np.lib.format.MAGIC_PREFIX:
      with zipfile.ZipFile(f) as archive:
        return _members(archive, size, wanted, usage)
    if single is None:
      raise UserError(f"it is a single array, not an archive. {usage}")
    return {single: _array(f, size, "the array", usage)}

  return _safely(file, read, "a numpy archive", usage)


def read_array(file: Path) -> np.ndarray:
  """The array of a `.npy` file.

  Raises:
    UserError: the file is damaged or not an array.
  """
  usage = "Write it with numpy.save(path, array)."
  return _safely(
    file, lambda f, size: _array(f, size, "the array", usage), "an array", usage
  )


def _safely(
  file: Path, read: Callable[[IO[bytes], int], Any], kind: str, usage: str
) -> Any:
  """What `read`, called with the file and its size, returns.

  Raises:
    UserError: it raises anything.
  """
  try:
    with file.open("rb") as f, warnings.catch_warnings():
      warnings.simplefilter("ignore")  # about headers that Python 2 wrote
      size = file.stat().st_size
      if not size:
        raise UserError(f"there is nothing in the file. {usage}")
      return read(f, size)
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
      f"{printable(file)} cannot be read as {kind}: {reason}. If it is"
      f" damaged, get it again. {usage}"
    ) from e


def _members(
  archive: zipfile.ZipFile, whole: int, wanted: Collection[str], usage: str
) -> Mapping[str, np.ndarray]:
  """The arrays of an archive of `whole` bytes."""
  there = {
    member.filename.removesuffix(".npy"): member
    for member in archive.infolist()
    if member.filename.endswith(".npy")
  }
  arrays = {}
  for key in [k for k in there if k in wanted] or there:
    member = there[key]
    packed = 1 if member.compress_type == zipfile.ZIP_STORED else _MAX_RATIO
    size = min(member.file_size, packed * min(member.compress_size, whole))
    with archive.open(member) as f:
      arrays[key] = _array(f, size, printable(key), usage)
  return arrays


def _array(f: IO[bytes], size: int, key: str, usage: str) -> np.ndarray:
  """The array of a `.npy` file.

  Args:
    f: the file, at its start.
    size: the most bytes that it can have.
    key: the array's name, for messages.
    usage: how to write such a file, for messages.

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
      f" there are at most {size:,}. It is damaged; get it again. {usage}"
    )
  data = f.read(need)
  if len(data) != need:
    raise UserError(
      f"{key} ends after {len(data):,} of {need:,} bytes. It is damaged; get it"
      f" again. {usage}"
    )
  f.read(1)  # zipfile verifies a member's checksum at its end
  values = np.frombuffer(data, dtype) if need else np.empty(count, dtype)
  if fortran:
    return values.reshape(shape[::-1]).transpose()
  return values.reshape(shape)

"""`zip:<file>`: image files in a zip file, such as img_align_celeba.zip.

They are what `folder:` would read where the file was unpacked: the same files,
splits, labels and order, so a run may continue with the other one. Compressed
members are decompressed when they are read; nothing is unpacked to a disk.

When it is first opened, all members are read once and their checksums compared;
a member that is damaged counts as a broken file. See `packed`.
"""

import errno
import zipfile
import zlib
from pathlib import Path
from typing import IO

from gamix_jax.data.find_file import find_file
from gamix_jax.data.formatting import printable
from gamix_jax.data.image_files import Head, users_files
from gamix_jax.data.packed import (
  Listing,
  PackedSource,
  Place,
  head_in,
  is_image_member,
  listing_of,
  progress,
  read_at,
  unreadable,
  unwrapped,
)
from gamix_jax.data.settings import Settings
from gamix_jax.errors import UserError

_EXAMPLE = "zip:/path/to/images.zip"
_HELP = f"Give a zip file of images: --config.data.source={_EXAMPLE}"
_HEADER_BYTES = 30  # of a local header, before the name and the extra field
_ENCRYPTED = 1  # bit of a member's flags


class Zip(PackedSource):
  """Image files of one split, in the order of their names."""

  def __init__(self, path: str, split: str, settings: Settings, seed: int):
    """Lists the file, reads all images if that was not done, takes one split.

    Raises:
      UserError: the file is missing, no zip file, or holds no images.
    """
    del seed
    super().__init__()
    file = find_file(path, "zip", _EXAMPLE)
    where = printable(file)
    listing = listing_of(file, "zip", _list)
    top = unwrapped([*listing.images, *listing.others])
    heads = {name[top:]: head for name, (_, head) in listing.images.items()}
    own = users_files(where, dict(sorted(heads.items())), listing.others)
    if not own:
      n = len(listing.images) + len(listing.others)
      what = f"no image files among its {n}" if n else "no files"
      raise UserError(f"{where} holds {what}. {_HELP}")
    self._take(where, own, split, settings, usage=_HELP)
    wanted = set(self._files)
    self._archives = (file,)
    self._places = {
      name[top:]: (0, place)
      for name, (place, _) in listing.images.items()
      if name[top:] in wanted
    }

  @staticmethod
  def _unpack(f: IO[bytes], place: Place) -> bytes:
    return _member(f, place)


def _list(file: Path) -> Listing:
  """The members of a zip file.

  Raises:
    UserError: it is no zip file, or is encrypted.
  """
  listing = Listing()
  try:
    with zipfile.ZipFile(file) as archive:
      members = archive.infolist()
  except OSError as e:
    raise unreadable(file, e) from e
  # A damaged directory raises whatever comes first: BadZipFile, ValueError,
  # struct.error, NotImplementedError, UnicodeDecodeError, ...
  except Exception as e:
    raise UserError(
      f"{printable(file)} is not a zip file, or not a whole one ({e})."
      f" Get it again, or unpack it and use folder:. {_HELP}"
    ) from e
  try:
    with file.open("rb", buffering=0) as f:
      for info in progress(members, file):
        if info.is_dir():
          continue
        if not is_image_member(info.filename):
          listing.others.append(info.filename)
          continue
        packed = info.compress_size
        if info.compress_type == zipfile.ZIP_STORED:
          packed = -1
        place = Place(info.header_offset, info.file_size, packed)
        listing.add(info.filename, place, _head(f, info, place, file))
  except OSError as e:
    raise unreadable(file, e) from e
  return listing


def _head(
  f: IO[bytes], info: zipfile.ZipInfo, place: Place, file: Path
) -> Head:
  """The head of a member, which is read whole.

  Raises:
    UserError: it cannot be decompressed without more than zlib.
  """
  name = f"{printable(info.filename)} in {printable(file)}"
  if info.flag_bits & _ENCRYPTED:
    raise UserError(f"{name} is encrypted. Unpack it and use folder:.")
  if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    method = zipfile.compressor_names.get(info.compress_type, "unknown")
    raise UserError(
      f"{name} is compressed with the method {method}. Pack the images with"
      " zip's usual one (zip -r images.zip images), or unpack them and use"
      " folder:."
    )
  try:
    data = _member(f, place)
  except (OSError, zlib.error) as e:
    why = getattr(e, "strerror", None) or e
    return Head(f"damaged in the zip file ({why})")
  if zlib.crc32(data) != info.CRC:
    return Head("damaged in the zip file (its checksum differs)")
  return head_in(data)


def _member(f: IO[bytes], place: Place) -> bytes:
  """A member of an open zip file.

  Raises:
    OSError: it is not there.
    zlib.error: it cannot be decompressed.
  """
  header = read_at(f, place.offset, _HEADER_BYTES)
  if header[:4] != b"PK\3\4":
    raise OSError(errno.EIO, "there is no member at its place")
  name, extra = (int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
  start = place.offset + _HEADER_BYTES + name + extra
  if place.packed < 0:
    return read_at(f, start, place.size)
  packed = read_at(f, start, place.packed)
  # At most one byte more than the directory says, whatever the stream asks for.
  data = zlib.decompressobj(-15).decompress(packed, place.size + 1)
  if len(data) != place.size:
    raise OSError(errno.EIO, "it has another size than the directory says")
  return data

"""How what this program writes is told from the data that users bring.

A picture says so in its PNG, a folder by the files that it holds. So a run
may lie below its own data, and its pictures never become training images.
"""

import os
import re
import zlib
from collections.abc import Collection
from pathlib import Path

# Of a PNG, for writers that take metadata (matplotlib, Pillow).
METADATA = {"Software": "gamix_jax"}
_TEXT = b"Software\0gamix_jax"
_AFTER_HEADER = 33  # bytes of a PNG: its signature and the chunk IHDR

# {file: what is in it and in no other program's file of that name}
_FILES = {
  "config.json": b'"data.source"',  # a workdir; exported weights
  "protocol.json": b'"images_written"',  # generate --format=folder
  "compare.csv": b"family,seed",  # the root of a comparison
}
_CACHE = re.compile(r"\.?(train|test)-[0-9a-f]{20}(\..+)?")  # of data.cache
_SNIFFED = 1 << 16  # bytes of such a file


def mark(png: bytes) -> bytes:
  """The same picture, marked as written by this program."""
  body = b"tEXt" + _TEXT
  chunk = len(_TEXT).to_bytes(4) + body + zlib.crc32(body).to_bytes(4)
  return png[:_AFTER_HEADER] + chunk + png[_AFTER_HEADER:]


def is_marked(head: bytes) -> bool:
  """Whether a file that begins so is a picture that this program wrote.

  Args:
    head: the file's first 4 KiB.
  """
  return head.startswith(b"\x89PNG") and b"tEXt" + _TEXT in head


def is_output(folder: str | os.PathLike[str], names: Collection[str]) -> bool:
  """Whether a folder is one that this program writes.

  Args:
    folder: where it is.
    names: of its entries.
  """
  return any(_CACHE.fullmatch(name) for name in names) or any(
    _has(Path(folder) / name, text)
    for name, text in _FILES.items()
    if name in names
  )


def _has(file: Path, text: bytes) -> bool:
  try:
    if not file.is_file():
      return False
    with file.open("rb") as f:
      return text in f.read(_SNIFFED)
  except OSError:
    return False

"""Recognises output of this program, so that it is not read as training data.

Pictures have a text chunk in their PNG; folders are recognised by their files.
So a workdir can be inside the data folder.
"""

import os
import re
import zlib
from collections.abc import Collection
from pathlib import Path

# PNG metadata, for writers that accept them (matplotlib, Pillow).
METADATA = {"Software": "gamix_jax"}
_TEXT = b"Software\0gamix_jax"
_HEADER_BYTES = 33  # of a PNG: its signature and the chunk IHDR

# {file name: text that only this program's file of that name contains}
_SIGNATURES = {
  "config.json": b'"data.source"',  # a workdir; exported weights
  "protocol.json": b'"images_written"',  # generate --format=folder
  "compare.csv": b"family,seed",  # the root of a comparison
}
_CACHE_NAME = re.compile(r"\.?(train|test)-[0-9a-f]{20}(\..+)?")  # data.cache
_SEARCHED_BYTES = 1 << 16  # at the beginning of such a file


def mark(png: bytes) -> bytes:
  """Returns the PNG with a text chunk that marks it as output."""
  body = b"tEXt" + _TEXT
  chunk = len(_TEXT).to_bytes(4) + body + zlib.crc32(body).to_bytes(4)
  return png[:_HEADER_BYTES] + chunk + png[_HEADER_BYTES:]


def is_marked(head: bytes) -> bool:
  """Whether a file is a picture that this program wrote.

  Args:
    head: the file's first 4 KiB.
  """
  return head.startswith(b"\x89PNG") and b"tEXt" + _TEXT in head


def is_output(folder: str | os.PathLike[str], names: Collection[str]) -> bool:
  """Whether this program wrote a folder.

  Args:
    folder: its path.
    names: of its entries.
  """
  return any(_CACHE_NAME.fullmatch(name) for name in names) or any(
    _contains(Path(folder) / name, text)
    for name, text in _SIGNATURES.items()
    if name in names
  )


def _contains(file: Path, text: bytes) -> bool:
  try:
    if not file.is_file():
      return False
    with file.open("rb") as f:
      return text in f.read(_SEARCHED_BYTES)
  except OSError:
    return False

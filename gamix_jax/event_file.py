"""TensorBoard event files: scalars, histograms and images.

An event file is a series of records, each with a protobuf message `Event` of
tensorflow/core/util/event.proto. The packages that define the messages import
TensorFlow or torch where these are installed, which takes seconds at every
start. A run needs few fields, so they are encoded here.
"""

import os
import struct
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

_VERSION = b"brain.Event:2"
_SESSION_START = 1
_CRC_MASK_DELTA = 0xA282EAD8


class EventFile:
  """Appends events to a new file.

  Every method raises an OSError if the file cannot be written.
  """

  def __init__(self, path: Path, first_step: int) -> None:
    """Creates the file.

    Args:
      path: a name with "tfevents" in it, which TensorBoard looks for.
      first_step: TensorBoard drops what earlier files of the folder say about
        this step and later ones.
    """
    self._file = path.open("xb")
    self._write(_bytes(3, _VERSION))
    start = _bytes(7, _int(1, _SESSION_START))  # session_log.status
    self._write(_int(2, first_step) + start)

  def write(self, step: int, values: Iterable[bytes]) -> None:
    """Writes values of a step, and returns when they are on the disk.

    Args:
      step: 0 or larger.
      values: of `scalar`, `histogram` and `image`.
    """
    for value in values:
      self._write(_int(2, step) + _bytes(5, _bytes(1, value)))  # summary.value
    self._file.flush()
    os.fsync(self._file.fileno())

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def _write(self, fields: bytes) -> None:
    event = _double(1, time.time()) + fields
    size = struct.pack("<Q", len(event))
    self._file.write(size + _checksum(size) + event + _checksum(event))


def scalar(tag: str, value: float) -> bytes:
  """A number, kept as float32."""
  return _bytes(1, tag.encode()) + _float(2, value)


def image(tag: str, png: bytes, shape: tuple[int, int, int]) -> bytes:
  """An image [h, w, c] as the content of a PNG file."""
  h, w, c = shape
  body = _int(1, h) + _int(2, w) + _int(3, c) + _bytes(4, png)
  return _bytes(1, tag.encode()) + _bytes(4, body)


def histogram(tag: str, values: np.ndarray) -> bytes:
  """A histogram of finite numbers [n], n > 0, with NumPy's "auto" bins."""
  x = np.asarray(values, np.float64)
  counts, edges = np.histogram(x, bins="auto")
  # A bucket has a right limit only: an empty one gives the left edge.
  counts = np.concatenate([[0], counts])
  body = b"".join(
    _double(i, v)
    for i, v in enumerate((x.min(), x.max(), x.size, x.sum(), x @ x), 1)
  )
  body += _bytes(6, edges.astype("<f8").tobytes())
  body += _bytes(7, counts.astype("<f8").tobytes())
  return _bytes(1, tag.encode()) + _bytes(5, body)


# --- protobuf fields ---


def _varint(n: int) -> bytes:
  out = bytearray()
  while n > 0x7F:
    out.append(n & 0x7F | 0x80)
    n >>= 7
  out.append(n)
  return bytes(out)


def _int(field: int, value: int) -> bytes:
  return _varint(field << 3) + _varint(value)


def _double(field: int, value: float) -> bytes:
  return _varint(field << 3 | 1) + struct.pack("<d", value)


def _bytes(field: int, value: bytes) -> bytes:
  """Bytes, text, a message or packed numbers."""
  return _varint(field << 3 | 2) + _varint(len(value)) + value


def _float(field: int, value: float) -> bytes:
  with np.errstate(over="ignore"):  # too large for float32: infinity
    return _varint(field << 3 | 5) + np.asarray(value, "<f4").tobytes()


# --- checksums of records ---


def _crc_table() -> list[int]:
  """CRC-32C of every byte; zlib's crc32 is another polynomial."""
  table = list(range(256))
  for _ in range(8):
    table = [crc >> 1 ^ (0x82F63B78 if crc & 1 else 0) for crc in table]
  return table


_TABLE = _crc_table()


def _checksum(data: bytes) -> bytes:
  """The masked CRC-32C of a record's size or content."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
  crc ^= 0xFFFFFFFF
  masked = (crc >> 15 | crc << 17) + _CRC_MASK_DELTA
  return struct.pack("<I", masked & 0xFFFFFFFF)

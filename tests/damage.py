"""Damages a file's bytes as disks, interrupted copies and kills do."""

from collections.abc import Iterator

import numpy as np

MAX_BYTES = 64  # maximum number of bytes inserted or flipped at once


def damages(data: bytes, n: int, seed: int = 0) -> Iterator[bytes]:
  """Yields damaged copies of a file, deterministically.

  The kinds of damage alternate, so that a few copies cover all of them.

  Args:
    data: the file's content; may be empty.
    n: number of copies.
    seed: determines what is damaged, and where.

  Yields:
    bytes of any length, including 0; occasionally equal to `data`.
  """
  rng = np.random.default_rng(seed)
  for i in range(n):
    yield KINDS[i % len(KINDS)](data, rng)


def _span(data: bytes, rng: np.random.Generator) -> tuple[int, int]:
  """Returns begin <= end, two positions in the file."""
  begin, end = np.sort(rng.integers(0, len(data) + 1, 2))
  return int(begin), int(end)


def _flip_bits(data: bytes, rng: np.random.Generator) -> bytes:
  """Flips one bit in each of a few bytes."""
  out = np.frombuffer(data, np.uint8).copy()
  if out.size:
    where = rng.integers(0, out.size, rng.integers(1, 9))
    out[where] ^= np.uint8(1) << rng.integers(0, 8, where.size, np.uint8)
  return out.tobytes()


def _replace(data: bytes, rng: np.random.Generator) -> bytes:
  """Replaces a few consecutive bytes."""
  begin, _ = _span(data, rng)
  end = min(len(data), begin + int(rng.integers(1, MAX_BYTES)))
  return data[:begin] + rng.bytes(end - begin) + data[end:]


def _cut_end(data: bytes, rng: np.random.Generator) -> bytes:
  """Truncates, like a write that was killed or hit a full disk."""
  return data[: _span(data, rng)[0]]


def _cut_begin(data: bytes, rng: np.random.Generator) -> bytes:
  return data[_span(data, rng)[1] :]


def _cut_middle(data: bytes, rng: np.random.Generator) -> bytes:
  begin, end = _span(data, rng)
  return data[:begin] + data[end:]


def _insert(data: bytes, rng: np.random.Generator) -> bytes:
  begin, _ = _span(data, rng)
  return data[:begin] + rng.bytes(rng.integers(1, MAX_BYTES)) + data[begin:]


def _zero(data: bytes, rng: np.random.Generator) -> bytes:
  """Zeroes a range, like blocks that were never written."""
  begin, end = _span(data, rng)
  return data[:begin] + bytes(end - begin) + data[end:]


def _repeat(data: bytes, rng: np.random.Generator) -> bytes:
  """Duplicates a range."""
  begin, end = _span(data, rng)
  return data[:end] + data[begin:end] + data[end:]


def _repeat_line(data: bytes, rng: np.random.Generator) -> bytes:
  lines = data.splitlines(keepends=True)
  if lines:
    which, to = rng.integers(0, len(lines), 2)
    lines.insert(int(to), lines[int(which)])
  return b"".join(lines)


def _drop_line(data: bytes, rng: np.random.Generator) -> bytes:
  lines = data.splitlines(keepends=True)
  if lines:
    del lines[int(rng.integers(0, len(lines)))]
  return b"".join(lines)


KINDS = (
  _flip_bits,
  _replace,
  _cut_end,
  _cut_begin,
  _cut_middle,
  _insert,
  _zero,
  _repeat,
  _repeat_line,
  _drop_line,
)

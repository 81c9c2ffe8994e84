"""Damage to a file's bytes, of the kinds that disks, copies and kills do."""

from collections.abc import Iterator

import numpy as np

LONGEST = 64  # bytes inserted or flipped at a time


def damages(data: bytes, n: int, seed: int = 0) -> Iterator[bytes]:
  """Damaged copies of a file, the same for the same arguments.

  The kinds take turns, so that a few copies have each of them.

  Args:
    data: the whole file; may be empty.
    n: how many copies.
    seed: of what is damaged and where.

  Yields:
    bytes of any length, 0 included; now and then equal to `data`.
  """
  rng = np.random.default_rng(seed)
  for i in range(n):
    yield KINDS[i % len(KINDS)](data, rng)


def _span(data: bytes, rng: np.random.Generator) -> tuple[int, int]:
  """begin <= end, two places in the file."""
  begin, end = np.sort(rng.integers(0, len(data) + 1, 2))
  return int(begin), int(end)


def _flip_bits(data: bytes, rng: np.random.Generator) -> bytes:
  """One bit each of a few bytes."""
  out = np.frombuffer(data, np.uint8).copy()
  if out.size:
    where = rng.integers(0, out.size, rng.integers(1, 9))
    out[where] ^= np.uint8(1) << rng.integers(0, 8, where.size, np.uint8)
  return out.tobytes()


def _replace(data: bytes, rng: np.random.Generator) -> bytes:
  """A few bytes in a row become others."""
  begin, _ = _span(data, rng)
  end = min(len(data), begin + int(rng.integers(1, LONGEST)))
  return data[:begin] + rng.bytes(end - begin) + data[end:]


def _cut_end(data: bytes, rng: np.random.Generator) -> bytes:
  """A write that a kill or a full disk ended."""
  return data[: _span(data, rng)[0]]


def _cut_begin(data: bytes, rng: np.random.Generator) -> bytes:
  return data[_span(data, rng)[1] :]


def _cut_middle(data: bytes, rng: np.random.Generator) -> bytes:
  begin, end = _span(data, rng)
  return data[:begin] + data[end:]


def _insert(data: bytes, rng: np.random.Generator) -> bytes:
  begin, _ = _span(data, rng)
  return data[:begin] + rng.bytes(rng.integers(1, LONGEST)) + data[begin:]


def _zero(data: bytes, rng: np.random.Generator) -> bytes:
  """A hole: blocks that were never written."""
  begin, end = _span(data, rng)
  return data[:begin] + bytes(end - begin) + data[end:]


def _repeat(data: bytes, rng: np.random.Generator) -> bytes:
  """A part stands twice."""
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

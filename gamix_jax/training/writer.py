"""Writes a run's metrics and images: metrics.jsonl and PNG.

`trackers` has other places for them, TensorBoard among these.
"""

import contextlib
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gamix_jax import pictures
from gamix_jax.files import write_bytes, writing

log = logging.getLogger(__name__)


class Writer:
  """A place for metrics and images; this one ignores all of them.

  It is what all processes have except the main one. Subclasses override what
  they can show.
  """

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes numbers after a step; some may not be finite."""

  def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
    """Writes the distributions of arrays [d]; some may not be finite."""

  def images(self, step: int, panels: Mapping[str, np.ndarray]) -> None:
    """Writes images, uint8 [h, w, 1 or 3]."""

  def close(self) -> None:
    """Ends it; an exception that is being handled means that the run failed."""


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
  """The values that are finite, or arrays all of whose values are."""
  return {k: v for k, v in values.items() if np.all(np.isfinite(v))}


class FileWriter(Writer):
  """Writes to a workdir; a continued run appends after its checkpoint."""

  def __init__(self, folder: Path, step: int):
    """Opens metrics.jsonl.

    Args:
      folder: the workdir.
      step: the step of the restored checkpoint, or 0. Lines of later steps,
        written by an interrupted run, are dropped.

    Raises:
      UserError: the folder cannot be written to.
    """
    self._folder, self._jsonl = folder, folder / "metrics.jsonl"
    _truncate_after(self._jsonl, step)
    with writing(self._jsonl):
      self._file = self._jsonl.open("ab", buffering=0)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes a line of metrics.jsonl; non-finite values become null."""
    line = {"step": step} | {
      k: v if math.isfinite(v) else None for k, v in values.items()
    }
    self._append(f"{json.dumps(line)}\n".encode())

  def images(self, step: int, panels: Mapping[str, np.ndarray]) -> None:
    """Writes uint8 [h, w, c] to images/<name>_<step>.png."""
    for name, image in panels.items():
      path = self._folder / "images" / f"{name}_{step:07d}.png"
      with writing(path):
        pictures.save_png(path, image)

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def _append(self, line: bytes) -> None:
    """Appends a complete line; on an error, nothing."""
    with writing(self._jsonl):
      begin, rest = os.fstat(self._file.fileno()).st_size, memoryview(line)
      try:
        while rest:
          rest = rest[self._file.write(rest) :]
      except OSError:
        with contextlib.suppress(OSError):
          self._file.truncate(begin)
        raise


class MultiWriter(Writer):
  """Writes to several, in their order."""

  def __init__(self, writers: Sequence[Writer]):
    """Takes them over: `close` closes all."""
    self._writers = tuple(writers)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Of all."""
    for writer in self._writers:
      writer.scalars(step, values)

  def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
    """Of all."""
    for writer in self._writers:
      writer.histograms(step, values)

  def images(self, step: int, panels: Mapping[str, np.ndarray]) -> None:
    """Of all."""
    for writer in self._writers:
      writer.images(step, panels)

  def close(self) -> None:
    """Closes all, whether or not one of them fails."""
    with contextlib.ExitStack() as stack:
      for writer in reversed(self._writers):
        stack.callback(writer.close)


def rows(path: Path) -> Iterator[dict[str, Any]]:
  """Yields the undamaged lines of metrics.jsonl, as dicts with a "step".

  Raises:
    OSError: the file cannot be read.
  """
  lines = path.read_bytes().split(b"\n")
  return (row for row in map(_parse_row, lines) if row is not None)


def _parse_row(line: bytes) -> dict[str, Any] | None:
  """Parses a line of metrics.jsonl; None if it is damaged."""
  try:
    row = json.loads(line)
  except (ValueError, RecursionError):
    return None
  valid = isinstance(row, dict) and type(row.get("step")) is int
  return row if valid else None


def _truncate_after(path: Path, step: int) -> None:
  """Drops the lines after a step and damaged lines."""
  if not path.is_file():
    return
  with writing(path):
    lines = path.read_bytes().split(b"\n")
  parsed = [_parse_row(line) for line in lines]
  # The last entry follows the last newline: it is empty, or a partial line of a
  # run that was killed.
  damaged = sum(row is None for row in parsed[:-1])
  if damaged:
    log.warning("%s: %d damaged lines are left out.", path, damaged)
  kept = [
    line + b"\n"
    for line, row in zip(lines, parsed, strict=True)
    if row is not None and row["step"] <= step
  ]
  write_bytes(path, b"".join(kept))

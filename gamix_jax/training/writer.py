"""Writes a run's metrics and images: metrics.jsonl, TensorBoard and PNG."""

import contextlib
import json
import logging
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from gamix_jax import pictures
from gamix_jax.files import write_bytes, writing

log = logging.getLogger(__name__)


class Writer:
  """Writes metrics and images; a continued run appends after its checkpoint."""

  def __init__(self, folder: Path, step: int):
    """Opens the files.

    Args:
      folder: the workdir.
      step: the step of the restored checkpoint, or 0. Entries of later steps,
        written by an interrupted run, are dropped.

    Raises:
      UserError: the folder cannot be written to.
    """
    self._folder = folder
    self._jsonl, self._events = folder / "metrics.jsonl", folder / "tensorboard"
    _truncate_after(self._jsonl, step)
    with writing(self._jsonl):
      self._file = self._jsonl.open("ab", buffering=0)
    try:
      self._board = self._open_board(step)
    except BaseException:
      self._file.close()
      raise

  def _open_board(self, step: int) -> RecordWriter:
    # Not a SummaryWriter: on a full disk its thread ends without an error, and
    # the next call waits for it forever.
    with writing(self._events):
      self._events.mkdir(exist_ok=True)
      name = f"{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
      name += f".{len(list(self._events.iterdir()))}"  # makes it unique
      board = RecordWriter(str(self._events / f"events.out.tfevents.{name}"))
    # With SessionLog.START TensorBoard drops entries of later steps, which an
    # interrupted run wrote.
    start = SessionLog(status=SessionLog.START)
    for head in (
      Event(file_version="brain.Event:2"),
      Event(step=step + 1, session_log=start),
    ):
      head.wall_time = time.time()
      board.write(head.SerializeToString())
    return board

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes a line of metrics.jsonl; non-finite values become null."""
    finite = {k: v for k, v in values.items() if math.isfinite(v)}
    line = {"step": step} | {k: finite.get(k) for k in values}
    self._append(f"{json.dumps(line)}\n".encode())
    self._write_events(step, [summary.scalar(k, v) for k, v in finite.items()])

  def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
    """Writes histograms of arrays [d]; skips arrays with non-finite values."""
    finite = {k: v for k, v in values.items() if np.all(np.isfinite(v))}
    self._write_events(
      step, [summary.histogram(k, v, "auto") for k, v in finite.items()]
    )

  def images(self, step: int, panels: Mapping[str, np.ndarray]) -> None:
    """Writes uint8 [h, w, c] to images/<name>_<step>.png and TensorBoard."""
    for name, image in panels.items():
      path = self._folder / "images" / f"{name}_{step:07d}.png"
      with writing(path):
        pictures.save_png(path, image)
    self._write_events(
      step,
      [summary.image(k, v, dataformats="HWC") for k, v in panels.items()],
    )

  def close(self) -> None:
    """Closes the files.

    Raises:
      UserError: the last writes failed.
    """
    self._file.close()
    with writing(self._events):
      self._board.close()

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

  def _write_events(self, step: int, summaries: list[Any]) -> None:
    with writing(self._events):
      for each in summaries:
        event = Event(wall_time=time.time(), step=step, summary=each)
        self._board.write(event.SerializeToString())
      self._board.flush()


class NullWriter:
  """Writes nothing; used by all processes except the main one."""

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Does nothing."""

  def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
    """Does nothing."""

  def images(self, step: int, panels: Mapping[str, np.ndarray]) -> None:
    """Does nothing."""

  def close(self) -> None:
    """Does nothing."""


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

"""The tracker `tensorboard`: event files in the workdir."""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from gamix_jax.config import ConfigDict
from gamix_jax.files import writing
from gamix_jax.training.writer import Writer, finite


class TensorBoard(Writer):
  """Writes to <workdir>/tensorboard/."""

  def __init__(self, folder: Path, step: int, config: ConfigDict):
    """Opens a new event file; see `trackers`.

    Raises:
      UserError: the folder cannot be written to.
    """
    del config
    self._events = folder / "tensorboard"
    # Not a SummaryWriter: on a full disk its thread ends without an error, and
    # the next call waits for it forever.
    with writing(self._events):
      self._events.mkdir(exist_ok=True)
      name = f"{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
      name += f".{len(list(self._events.iterdir()))}"  # makes it unique
      path = self._events / f"events.out.tfevents.{name}"
      self._board = RecordWriter(str(path))
    # With SessionLog.START TensorBoard drops entries of later steps, which an
    # interrupted run wrote.
    start = SessionLog(status=SessionLog.START)
    for head in (
      Event(file_version="brain.Event:2"),
      Event(step=step + 1, session_log=start),
    ):
      head.wall_time = time.time()
      self._board.write(head.SerializeToString())

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes the finite ones."""
    values = finite(values)
    self._write(step, [summary.scalar(k, v) for k, v in values.items()])

  def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
    """Writes those of finite arrays."""
    values = finite(values)
    self._write(
      step, [summary.histogram(k, v, "auto") for k, v in values.items()]
    )

  def images(self, step: int, panels: Mapping[str, np.ndarray]) -> None:
    """Writes them."""
    self._write(
      step,
      [summary.image(k, v, dataformats="HWC") for k, v in panels.items()],
    )

  def close(self) -> None:
    """Closes the file.

    Raises:
      UserError: the last writes failed.
    """
    with writing(self._events):
      self._board.close()

  def _write(self, step: int, summaries: list[Any]) -> None:
    with writing(self._events):
      for each in summaries:
        event = Event(wall_time=time.time(), step=step, summary=each)
        self._board.write(event.SerializeToString())
      self._board.flush()

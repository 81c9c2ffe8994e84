"""Starts, watches and stops a training from a notebook."""

import atexit
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gamix_jax import cli, paths
from gamix_jax.errors import UserError
from gamix_jax.notebook import panels

OUTPUT_LINES = 12  # of the program's output, below the picture
OUTPUT_BYTES = 8192  # read from the end of the output
_running: dict[Path, "Run"] = {}


class Run:
  """A process of `python -m gamix_jax.main`.

      run = Run("configs/digits.py", "runs/digits", {"steps": 600})
      run.watch()

  Attributes:
    workdir: workdir of the run.
    process: the training process.
  """

  def __init__(
    self,
    config: str,
    workdir: str | os.PathLike[str],
    keys: Mapping[str, Any] | None = None,
  ) -> None:
    """Starts a training, or continues the one in the workdir.

    Args:
      config: a file in configs/, as in --config.
      workdir: where the run is stored.
      keys: {config key: value}, as in --config.KEY=VALUE.

    Raises:
      UserError: if this notebook is already training in that workdir.
    """
    self.workdir = paths.resolve(workdir)
    other = _running.get(self.workdir)
    if other is not None and other.process.poll() is None:
      raise UserError(
        f"{workdir} is being trained by process {other.process.pid}; wait for "
        "it, or interrupt its cell."
      )
    flags = [f"--config={config}", f"--workdir={self.workdir}"]
    flags += [f"--config.{k}={v}" for k, v in (keys or {}).items()]
    self._output = tempfile.TemporaryFile()  # noqa: SIM115  (open until the end)
    # A new session, since interrupting the cell signals the notebook's complete
    # process group; `watch` forwards the signal, once.
    self.process = subprocess.Popen(
      [sys.executable, "-m", "gamix_jax.main", *flags],
      stdin=subprocess.DEVNULL,
      stdout=self._output,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )
    _running[self.workdir] = self

  def said(self) -> str:
    """Returns the end of the program's output so far."""
    # pread does not move the file position, which the program shares.
    file = self._output.fileno()
    start = max(0, os.fstat(file).st_size - OUTPUT_BYTES)
    return os.pread(file, OUTPUT_BYTES, start).decode(errors="replace")

  def watch(self, every: float = 5.0) -> None:
    """Shows the run until it ends; interrupting the cell saves and stops it.

    Args:
      every: seconds between updates.

    Raises:
      UserError: if the program reported a usage error.
      RuntimeError: if it failed otherwise; the message has its last output.
    """
    screen = _Screen()
    try:
      while self.process.poll() is None:
        screen.show(self)
        try:
          self.process.wait(every)
        except subprocess.TimeoutExpired:
          continue
    except KeyboardInterrupt:
      print("Stopping; saving the current step.", flush=True)
      self.stop()
    screen.show(self)
    self._check_exit()

  def stop(self) -> None:
    """Requests a save and a stop, and waits for the process to end."""
    if self.process.poll() is None:
      self.process.send_signal(signal.SIGTERM)
    self.process.wait()

  def _check_exit(self) -> None:
    """Raises the error that the exit code stands for, if any."""
    code, output = self.process.returncode, self.said()
    self._output.close()
    del _running[self.workdir]
    if code == cli.USER_ERROR:
      raise UserError(output.rpartition("gamix_jax: ")[2].strip())
    if code == -signal.SIGTERM:
      print("Stopped before the first step; there is nothing new to save.")
    elif code:
      raise RuntimeError(f"The training ended with code {code}:\n{output}")


class _Screen:
  """A picture and output lines in a cell, both updated in place."""

  def __init__(self) -> None:
    self._handles: list[Any] = []
    self._shown: Any = None

  def show(self, run: Run) -> None:
    """Updates the cell if the output or the metrics have changed."""
    from IPython.display import Image, Pretty, display  # noqa: PLC0415

    lines = "\n".join(run.said().strip().splitlines()[-OUTPUT_LINES:])
    state = lines, panels.rows(run.workdir)[-1:]
    if state == self._shown:
      return
    self._shown = state
    lines = lines or "Starting; compiling the first step takes a minute."
    outputs = Image(data=panels.draw(run.workdir)), Pretty(lines)
    if self._handles:
      for handle, output in zip(self._handles, outputs, strict=True):
        handle.update(output)
    else:
      self._handles = [display(each, display_id=True) for each in outputs]


def train(
  config: str,
  workdir: str | os.PathLike[str],
  keys: Mapping[str, Any] | None = None,
  *,
  every: float = 5.0,
) -> None:
  """Trains and shows the progress; the same call continues a stopped run.

  Args:
    config: see `Run`.
    workdir: see `Run`.
    keys: see `Run`.
    every: see `Run.watch`.

  Raises:
    UserError: as `Run` and `Run.watch`.
    RuntimeError: as `Run.watch`.
  """
  Run(config, workdir, keys).watch(every)


@atexit.register
def _stop_all() -> None:
  """Stops all trainings when the notebook ends or restarts."""
  for run in _running.values():
    if run.process.poll() is None:
      run.process.send_signal(signal.SIGTERM)

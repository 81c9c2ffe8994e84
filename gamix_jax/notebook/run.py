"""A training started from a notebook, watched and stopped."""

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

LINES = 12  # of what the program said, under the picture
TAIL = 8192  # bytes of it that are read
_running: dict[Path, "Run"] = {}


class Run:
  """One process of `python -m gamix_jax.main`.

      run = Run("configs/digits.py", "runs/digits", {"steps": 600})
      run.watch()

  Attributes:
    workdir: the run's.
    process: the program's.
  """

  def __init__(
    self,
    config: str,
    workdir: str | os.PathLike[str],
    keys: Mapping[str, Any] | None = None,
  ) -> None:
    """Starts it, or goes on with what the workdir holds.

    Args:
      config: a file of configs/, as --config has it.
      workdir: all that the run writes.
      keys: {key of the config: value}, as --config.KEY=VALUE.

    Raises:
      UserError: this notebook has a training of that workdir under way.
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
    self._said = tempfile.TemporaryFile()  # noqa: SIM115  (as long as it runs)
    # A session of its own: what interrupts the cell goes to the notebook's
    # whole process group, and is for `watch` to pass on, once.
    self.process = subprocess.Popen(
      [sys.executable, "-m", "gamix_jax.main", *flags],
      stdin=subprocess.DEVNULL,
      stdout=self._said,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )
    _running[self.workdir] = self

  def said(self) -> str:
    """The end of what the program has said so far."""
    # pread, since the program writes on at the file's own position.
    size = os.fstat(self._said.fileno()).st_size
    begin = max(0, size - TAIL)
    return os.pread(self._said.fileno(), TAIL, begin).decode(errors="replace")

  def watch(self, every: float = 5.0) -> None:
    """Shows the run until it ends; interrupting the cell stops it, saved.

    Args:
      every: seconds between looks.

    Raises:
      UserError: the program ended with a mistake that can be fixed.
      RuntimeError: it ended in another way; the end of what it said.
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
      print("Stopping; the step it is at is being saved.", flush=True)
      self.stop()
    screen.show(self)
    self._conclude()

  def stop(self) -> None:
    """Asks it to save and end, and waits for that."""
    if self.process.poll() is None:
      self.process.send_signal(signal.SIGTERM)
    self.process.wait()

  def _conclude(self) -> None:
    """Raises what the exit code means."""
    code, said = self.process.returncode, self.said()
    self._said.close()
    del _running[self.workdir]
    if code == cli.USER_ERROR:
      raise UserError(said.rpartition("gamix_jax: ")[2].strip())
    if code == -signal.SIGTERM:
      print("Stopped before its first step: nothing new to save.")
    elif code:
      raise RuntimeError(f"The training ended with code {code}:\n{said}")


class _Screen:
  """A picture and a few lines in a cell's output, both redrawn in place."""

  def __init__(self) -> None:
    self._handles: list[Any] = []
    self._shown: Any = None

  def show(self, run: Run) -> None:
    """Draws what there is, if it is not what is shown."""
    from IPython.display import Image, Pretty, display  # noqa: PLC0415

    lines = "\n".join(run.said().strip().splitlines()[-LINES:])
    state = lines, panels.rows(run.workdir)[-1:]
    if state == self._shown:
      return
    self._shown = state
    lines = lines or "Starting; the first step takes a minute to compile."
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
  """Trains and shows how it goes; the same call again continues it.

  Args:
    config: see `Run`.
    workdir: see `Run`.
    keys: see `Run`.
    every: see `Run.watch`.

  Raises:
    UserError: as `Run`, as `Run.watch`.
    RuntimeError: as `Run.watch`.
  """
  Run(config, workdir, keys).watch(every)


@atexit.register
def _stop_all() -> None:
  """A notebook that ends, or is restarted, leaves no training behind."""
  for run in _running.values():
    if run.process.poll() is None:
      run.process.send_signal(signal.SIGTERM)

"""Profiler trace of selected training steps.

--config.profile=20:25 traces the steps 20 to 25 and writes the trace to
profile/ in the workdir. To view it, open
profile/plugins/profile/<time>/*.trace.json.gz in https://ui.perfetto.dev, or
the .xplane.pb next to it in XProf (pip install xprof; xprof
--logdir=DIR/profile), also available as a TensorBoard plugin.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from gamix_jax import config as configs
from gamix_jax.config import ConfigDict

FOLDER = "profile"


class Profile:
  """Traces the steps of `config.profile` that this process runs."""

  def __init__(self, config: ConfigDict, path: Path, shown: bool = True):
    """Creates the profiler.

    Args:
      config: of the run.
      path: the workdir.
      shown: whether this process writes the trace; False: it does nothing.
    """
    self._folder = path / FOLDER
    self._steps = configs.profiled(config) if shown else range(0)
    self._tracing = False

  @contextlib.contextmanager
  def around(self, done: int) -> Iterator[None]:
    """Context of step `done`, counted from 1; marks it in the trace."""
    if done not in self._steps:
      yield
      return
    if not self._tracing:
      jax.profiler.start_trace(self._folder)
      self._tracing = True
    with jax.profiler.StepTraceAnnotation("train", step_num=done):
      yield

  def after(self, done: int, state: Any) -> bool:
    """Ends the trace after its last step; returns whether one was written.

    It then waits for `state`, so that the trace contains the complete steps.
    """
    if not self._tracing or done < self._steps[-1]:
      return False
    jax.block_until_ready(state)
    self.close()
    return True

  def close(self) -> None:
    """Ends the trace if one is running, as after an interrupted run."""
    if self._tracing:
      self._tracing = False
      jax.profiler.stop_trace()

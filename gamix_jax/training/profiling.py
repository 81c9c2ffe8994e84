"""Some steps of a run traced: where their time goes, operation by operation.

--config.profile=20:25 writes profile/ into the workdir, of the steps 20 to 25.
In it, under plugins/profile/<time>/, the file that ends in .trace.json.gz opens
in https://ui.perfetto.dev; the .xplane.pb in XProf (pip install xprof; xprof
--logdir=DIR/profile), which runs inside TensorBoard too.
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
  """Traces the steps that `config.profile` names, of those that are done."""

  def __init__(self, config: ConfigDict, path: Path, shown: bool = True):
    """`path` is the workdir; a process that is not `shown` traces nothing."""
    self._folder = path / FOLDER
    self._steps = configs.profiled(config) if shown else range(0)
    self._tracing = False

  @contextlib.contextmanager
  def around(self, done: int) -> Iterator[None]:
    """Around step `done`, from 1; the trace shows it as one."""
    if done not in self._steps:
      yield
      return
    if not self._tracing:
      jax.profiler.start_trace(self._folder)
      self._tracing = True
    with jax.profiler.StepTraceAnnotation("train", step_num=done):
      yield

  def after(self, done: int, state: Any) -> bool:
    """Ends the trace with its last step; whether one was written.

    Waits for `state` then, so that the steps are in it to their end.
    """
    if not self._tracing or done < self._steps[-1]:
      return False
    jax.block_until_ready(state)
    self.close()
    return True

  def close(self) -> None:
    """Ends a trace that is still going on, of a run that was ended."""
    if self._tracing:
      self._tracing = False
      jax.profiler.stop_trace()

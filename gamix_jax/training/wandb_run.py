"""The tracker `wandb`: a run of Weights & Biases.

The package's own variables choose where it goes: WANDB_PROJECT (default:
gamix_jax), WANDB_ENTITY, WANDB_MODE=offline, WANDB_API_KEY, ... Its files are
in <workdir>/wandb. The run is named after the workdir; its steps are those of
the training.
"""

import os
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gamix_jax import config as configs
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.training.tracker import Tracker, first_line
from gamix_jax.training.writer import finite


class Wandb(Tracker):
  """Scalars, histograms and images of a run, and its config."""

  name: ClassVar[str] = "wandb"
  needs: ClassVar[tuple[str, str]] = ("wandb", "wandb")

  def __init__(self, folder: Path, step: int, config: ConfigDict):
    """Begins the run, or continues the one that the workdir names.

    Raises:
      UserError: the package is missing, or it cannot begin a run.
    """
    del step
    self._wandb = wandb = self.module()
    run = self.saved_id(folder)
    if run is None:
      run = uuid.uuid4().hex[:8]
      self.save_id(folder, run)
    try:
      self._run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "gamix_jax"),
        name=os.environ.get("WANDB_NAME", folder.name),
        id=run,
        resume="allow",
        dir=str(folder),
        # Keys that may change are another value when a run is continued.
        config=configs.flat(config),
        allow_val_change=True,
        settings=wandb.Settings(console="off"),
      )
    except Exception as e:  # UsageError, CommError, OSError, ...
      raise UserError(
        f"track=wandb cannot begin a run ({type(e).__name__}: {first_line(e)})."
        " Log in by `wandb login`, or set WANDB_MODE=offline to keep it in the"
        " workdir."
      ) from e

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Sends the finite ones."""
    self._log(step, finite(values))

  def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
    """Sends those of finite arrays."""
    histogram = self._wandb.Histogram
    self._log(step, {k: histogram(v) for k, v in finite(values).items()})

  def images(self, step: int, panels: Mapping[str, np.ndarray]) -> None:
    """Sends them."""
    self._log(step, {k: self._wandb.Image(v) for k, v in panels.items()})

  def _log(self, step: int, values: dict[str, Any]) -> None:
    # A continued run repeats the steps after its checkpoint. Those that were
    # sent before are there, and steps of wandb only grow.
    if values and step >= self._run.step:
      self.send(self._run.log, values, step=step)

  def close(self) -> None:
    """Waits until everything is sent."""
    self.send(self._run.finish, exit_code=int(sys.exception() is not None))

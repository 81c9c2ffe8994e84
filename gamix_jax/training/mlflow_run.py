"""The tracker `mlflow`: a run of an MLflow server or local store.

The package's own variables choose where it goes: MLFLOW_TRACKING_URI (default:
mlflow's own, a file mlflow.db here) and MLFLOW_EXPERIMENT_NAME (default:
gamix_jax). The run is named after the workdir; its parameters are the keys of
the config with which it began, and config.json is an artifact of each start.
MLflow has no histograms.

A thread sends, in order, so the training does not wait for a server.
"""

import concurrent.futures
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gamix_jax import config as configs
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.training.tracker import Tracker, first_line
from gamix_jax.training.writer import finite

_PARAMS = 100  # parameters in one request, MLflow's limit
_LONGEST = 6_000  # characters of a parameter's value, MLflow's limit


class Mlflow(Tracker):
  """Scalars and images of a run, and its config."""

  name: ClassVar[str] = "mlflow"
  needs: ClassVar[tuple[str, str]] = ("mlflow", "mlflow")

  def __init__(self, folder: Path, step: int, config: ConfigDict):
    """Begins the run, or continues the one that the workdir names.

    Raises:
      UserError: the package is missing, or it cannot begin a run or find it.
    """
    del step
    mlflow = self.module()
    self._metric = mlflow.entities.Metric
    run = self.saved_id(folder)
    try:
      self._client = mlflow.MlflowClient()
      if run is None:
        run = self._begin(mlflow, folder.name, config)
        self.save_id(folder, run)
      else:
        self._client.update_run(run, status="RUNNING")
      self._client.log_artifact(run, str(folder / "config.json"))
    except UserError:
      raise
    except Exception as e:  # MlflowException, and those of any store
      what = "begin a run" if run is None else f"continue the run {run}"
      raise UserError(
        f"track=mlflow cannot {what} ({type(e).__name__}: {first_line(e)}). Set"
        " MLFLOW_TRACKING_URI to a store or server that can"
        + (
          f", or delete {folder / 'trackers.json'} to begin another."
          if run
          else "."
        )
      ) from e
    self._run = run
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "mlflow")

  def _begin(self, mlflow: Any, name: str, config: ConfigDict) -> str:
    """Creates a run with the config; returns its id."""
    client = self._client
    title = os.environ.get("MLFLOW_EXPERIMENT_NAME", "gamix_jax")
    experiment = client.get_experiment_by_name(title)
    number = (
      client.create_experiment(title)
      if experiment is None
      else experiment.experiment_id
    )
    run = client.create_run(number, run_name=name).info.run_id
    params = [
      mlflow.entities.Param(key, str(value)[:_LONGEST])
      for key, value in configs.flat(config).items()
    ]
    for i in range(0, len(params), _PARAMS):
      client.log_batch(run, params=params[i : i + _PARAMS])
    return run

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Sends the finite ones."""
    now = int(1000 * time.time())
    metrics = [
      self._metric(_key(k), float(v), now, step)
      for k, v in finite(values).items()
    ]
    self._submit(self._client.log_batch, self._run, metrics=metrics)

  def images(self, step: int, panels: Mapping[str, np.ndarray]) -> None:
    """Sends them."""
    for name, image in panels.items():
      self._submit(
        self._client.log_image, self._run, image, key=_key(name), step=step
      )

  def close(self) -> None:
    """Waits until everything is sent."""
    status = "FINISHED" if sys.exception() is None else "FAILED"
    self._submit(self._client.set_terminated, self._run, status)
    self._thread.shutdown(wait=True)

  def _submit(self, call: Any, *args: Any, **kwargs: Any) -> None:
    self._thread.submit(self.send, call, *args, **kwargs)


def _key(name: str) -> str:
  """A name with MLflow's characters only."""
  return re.sub(r"[^\w\-./ ]", "_", name)

"""What a model of several modalities is judged on."""

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import gamix_jax
from gamix_jax import data, inference, modality
from gamix_jax.config import get
from gamix_jax.errors import UserError
from gamix_jax.evaluate import classifiers, observations
from gamix_jax.evaluate.classifiers import Classifiers
from gamix_jax.evaluate.observations import Observations
from gamix_jax.locate import Location
from gamix_jax.posterior import Posterior

CLASSIFIER_ROWS = 20_000  # training observations for the classifiers, at most
# Keys of the config in the protocol of every number.
_KEYS = (
  *("data.modalities", "data.missing", "data.missing_test", "data.missing_by"),
  *("multimodal.fusion", "multimodal.private", "multimodal.subsets"),
)


@dataclasses.dataclass
class MultimodalInputs:
  """A model and what it is judged on.

  Attributes:
    model: see `inference.MultimodalModel`.
    settings: the section `eval`.
    classifiers: of the modalities.
    test: observations that it is judged on.
    train: training observations, for probes and samplers.
    split: that `test` is of.
    sources: the true sources of `test`, [n, k], where these are known.
  """

  model: Any
  settings: ConfigDict
  classifiers: Classifiers
  test: Observations
  train: Observations
  split: str = "test"
  sources: np.ndarray | None = None

  @property
  def protocol(self) -> dict[str, Any]:
    """What holds for every number."""
    config, model = self.model.config, self.model
    return {
      "data": config.data.source,
      "split": self.split,
      "split_observations": self.test.total,
      **{key.split(".")[1]: get(config, key) for key in _KEYS},
      "weights": {"ema": "averaged (ema)", "raw": "raw"}[model.which],
      "step": model.step,
      "posterior": config.posterior.name,
      "objective": config.objective.name,
      "dtype": config.dtype,
      "seed": self.settings.seed,
      "gamix_jax": gamix_jax.__version__,
      "jax": jax.__version__,
      "scikit-learn": importlib.metadata.version("scikit-learn"),
      "platform": jax.default_backend(),
    }

  def key(self, *uses: int) -> jax.Array:
    """A PRNG key of the settings' seed, another one for each use."""
    key = jax.random.key(self.settings.seed)
    for use in uses:
      key = jax.random.fold_in(key, use)
    return key

  @property
  def separate(self) -> bool:
    """Whether every modality has latents of its own."""
    return self.model.spec.vae.posterior_type.separate

  @property
  def likelihood(self) -> str:
    """What p(x | z) is, in words."""
    weight = self.model.config.weights.recon
    return "; ".join(
      f"{name}: {m.likelihood.describe(m.size, weight * m.weight)}"
      for name, m in self.model.spec.modalities.items()
    )

  @cached_property
  def q(self) -> Posterior:
    """Posteriors of `test`, given all that is observed."""
    return self.model.encode(self.observed(self.test))

  def observed(self, rows: Observations) -> dict[str, np.ndarray]:
    """What the model's `encode` takes: modalities, and a mask if one is 0."""
    whole = bool((rows.mask > 0).all())
    return rows.x if whole else {**rows.x, "mask": rows.mask}


def open_run(
  workdir: str | Path | Location,
  settings: ConfigDict,
  *,
  data_now: Mapping[str, str] | None = None,
  which: str = "ema",
  step: int | None = None,
  split: str = "test",
) -> MultimodalInputs:
  """Opens a run's model and data, as `eval_inputs.open_run`.

  Raises:
    UserError: as `inference.load` and `data.open_dataset`; another split.
  """
  if split not in ("test", "train"):
    raise UserError(f"--split={split} must be one of test, train.")
  model = inference.load(workdir, which, step, data=data_now)
  config = model.config
  judged = data.open_dataset(config.data, split, config.seed)
  test = observations.chosen(judged, settings.images, settings.seed)
  train_set = data.open_dataset(config.data, "train", config.seed)
  found = train_classifiers(config, settings, model.workdir / "eval")
  found.judge(test)
  return MultimodalInputs(
    model,
    settings,
    found,
    test,
    observations.chosen(train_set, settings.train_images, settings.seed),
    split=split,
    sources=true_sources(judged, test),
  )


def train_classifiers(
  config: ConfigDict, settings: ConfigDict, cache: Path
) -> Classifiers:
  """Classifiers of a config's modalities, trained or read from `cache`.

  Raises:
    UserError: as `data.open_dataset`.
  """
  dataset = data.open_dataset(config.data, "train", config.seed)
  rows = observations.chosen(dataset, CLASSIFIER_ROWS, settings.seed)
  modalities = modality.of_config(config)
  return classifiers.train(rows, modalities, settings, cache)


def true_sources(
  dataset: data.MultimodalDataset, rows: Observations
) -> np.ndarray | None:
  """The true sources of observations, if the data set knows them."""
  if not dataset.settings.source.startswith("ivae"):
    return None
  latents = getattr(dataset.source, "latents", None)
  return None if latents is None else latents[rows.index]

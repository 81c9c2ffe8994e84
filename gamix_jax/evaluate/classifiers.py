"""Classifiers of single modalities, which say what was generated."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from gamix_jax import metrics, pictures
from gamix_jax.evaluate.observations import Observations
from gamix_jax.evaluate.settings import STEPS_EACH
from gamix_jax.modality import Modalities, Modality

CHUNK = 1024  # observations that are classified at a time


class Classifier:
  """Says which class an observation of one modality has.

  Attributes:
    name: of the features; "" if there are none.
    protocol: of numbers that are made with it.
    accuracy: share of held-out observations that it classifies correctly; NaN
      before `judge`.
  """

  name: str = ""
  protocol: Mapping[str, Any] = MappingProxyType({})
  accuracy: float = float("nan")

  def classes(self, x: np.ndarray) -> np.ndarray:
    """Classes [n] of observations [n, ...]."""
    return self.with_features(x)[1]

  def with_features(
    self, x: np.ndarray
  ) -> tuple[np.ndarray | None, np.ndarray]:
    """Features [n, f], if it has some, and classes [n]."""
    raise NotImplementedError


class OfImages(Classifier):
  """A small network that was trained on the modality's images."""

  def __init__(
    self,
    x: np.ndarray,
    labels: np.ndarray,
    settings: ConfigDict,
    cache: Path,
  ):
    """Trains it, or reads it from the folder `cache`; see `train`."""
    steps = settings.classifier_steps or STEPS_EACH
    self._network = metrics.classifier_features(
      x, labels, settings.seed, cache, steps
    )
    self.name = self._network.name
    self.protocol = {
      "features": self.name,
      "features, sha256": self._network.sha256,
      "classifier trained on": len(x),
      "classifier's steps": steps,
    }

  def with_features(
    self, x: np.ndarray
  ) -> tuple[np.ndarray | None, np.ndarray]:
    features, classes = [], []
    for start in range(0, len(x), CHUNK):
      part = x[start : start + CHUNK]
      if part.dtype != np.uint8:
        part = pictures.to_uint8(part)
      f, c = self._network.with_classes(pictures.to_float(part))
      features.append(f)
      classes.append(c)
    return np.concatenate(features), np.concatenate(classes)


class OfClasses(Classifier):
  """The most likely class of a categorical modality, which is the label."""

  protocol = MappingProxyType({"classifier": "the most likely class"})

  def with_features(
    self, x: np.ndarray
  ) -> tuple[np.ndarray | None, np.ndarray]:
    return None, x.argmax(axis=-1)


@dataclasses.dataclass
class Classifiers:
  """A classifier of each modality that can have one.

  Attributes:
    of: by modality.
    reasons: why the others have none, by modality.
  """

  of: dict[str, Classifier]
  reasons: dict[str, str]

  def judge(self, held_out: Observations) -> None:
    """Sets the accuracies, from held-out observations."""
    for name, classifier in self.of.items():
      rows = held_out.rows_with([name])
      right = classifier.classes(held_out.x[name][rows])
      right = right == held_out.labels[rows]
      classifier.accuracy = float(np.mean(right)) if len(rows) else np.nan


def train(
  train_set: Observations,
  modalities: Modalities,
  settings: ConfigDict,
  cache: Path,
) -> Classifiers:
  """Trains a classifier of each modality.

  Args:
    train_set: training observations.
    modalities: of these.
    settings: the section `eval`: seed and steps.
    cache: a folder where trained ones are kept.
  """
  found = Classifiers({}, {})
  for name, modality in modalities.items():
    rows = train_set.rows_with([name])
    labels = train_set.labels[rows]
    reason = _reason(modality, train_set.x[name][rows], labels)
    if reason:
      found.reasons[name] = f"{name}: {reason}"
    elif modality.is_image:
      x = train_set.x[name][rows]
      found.of[name] = OfImages(x, labels, settings, cache)
    else:
      found.of[name] = OfClasses()
  return found


def _reason(modality: Modality, x: np.ndarray, labels: np.ndarray) -> str:
  """Why a modality has no classifier; empty if it has one."""
  if len(labels) == 0 or labels.min() < 0 or len(np.unique(labels)) < 2:
    return "the data has no labels of two classes"
  if modality.is_image:
    return ""
  if not modality.likelihood.categorical:
    return "it is neither images nor classes, so there is no classifier of it"
  if len(modality.shape) > 1:
    return "it has several classes an observation"
  if not np.array_equal(x.argmax(axis=-1), labels):
    return "its classes are not the labels"
  return ""

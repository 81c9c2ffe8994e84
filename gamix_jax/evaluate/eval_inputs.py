"""The model that is judged, and the images that it is judged on."""

import dataclasses
import importlib.metadata
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import gamix_jax
from gamix_jax import data, inference, metrics, pictures
from gamix_jax.config import image_shape
from gamix_jax.errors import UserError
from gamix_jax.inference.fitting import read_images
from gamix_jax.posterior import Posterior

AT_ONCE = 512  # images that are there as floats
SHOWN = 64  # samples that are kept for a picture


@dataclasses.dataclass
class Images:
  """Some of a split, in an order that a seed decides.

  Attributes:
    x: uint8 [n, h, w, c].
    labels: int [n], -1 where there is none.
    of: how many there are in the split.
  """

  x: np.ndarray
  labels: np.ndarray
  of: int

  def __len__(self) -> int:
    """How many these are."""
    return len(self.x)

  @property
  def labelled(self) -> bool:
    """Whether every image has a label, and they are of two classes or more."""
    return self.labels.min() >= 0 and len(np.unique(self.labels)) > 1


def some_images(
  dataset: data.Dataset,
  at_most: int,
  seed: int,
  among: np.ndarray | None = None,
) -> Images:
  """Random ones of a data set, or of those `among` it, without repeats."""
  among = np.arange(len(dataset)) if among is None else among
  order = np.random.Generator(np.random.PCG64(seed)).permutation(among)
  x, labels = read_images(dataset, order[:at_most])
  return Images(x, labels.astype(np.int64), len(among))


@dataclasses.dataclass
class ImageStats:
  """What was seen of a set of images.

  Attributes:
    features: [n, f], of the images as 8 bits; None without an extractor.
    sharpness: [n].
    shown: the first of the images, in [-1, 1].
  """

  features: np.ndarray | None
  sharpness: np.ndarray
  shown: np.ndarray


def slices(n: int) -> Iterator[slice]:
  """So many rows at a time as may be there as floats."""
  return (slice(i, min(i + AT_ONCE, n)) for i in range(0, n, AT_ONCE))


def extractor(kind: str, train: Images, seed: int, cache: Path) -> Any:
  """Features that need no file, of images like those that are trained on.

  Args:
    kind: classifier, random; auto: classifier where there are labels.
    train: of the training split.
    seed: of the classifier.
    cache: a folder where the trained classifier is kept.

  Raises:
    UserError: there cannot be one: no labels, images too small.
  """
  if kind == "auto":
    kind = "classifier" if train.labelled else "random"
  if kind == "classifier":
    return metrics.classifier_features(train.x, train.labels, seed, cache)
  return metrics.random_features(train.x.shape[1:], 0)


def look(source: Any, features: Any) -> ImageStats:
  """Looks at images, uint8, or at what a function makes of a slice of rows.

  Args:
    source: uint8 [n, h, w, c]; or n and a function of a slice, to [-1, 1].
    features: an extractor, or None.
  """
  n, make = source if isinstance(source, tuple) else (len(source), None)
  found, sharpness, shown = [], [], []
  for rows in slices(n):
    x = pictures.to_uint8(make(rows)) if make else source[rows]
    x = np.asarray(x, np.float32) / 127.5 - 1
    if features is not None:
      found.append(features(x))
    if min(x.shape[1:3]) > 2:
      sharpness.append(np.asarray(metrics.sharpness(x), np.float64))
    if rows.start < SHOWN:
      shown.append(x[:SHOWN])
  return ImageStats(
    np.concatenate(found) if found else None,
    np.concatenate(sharpness) if sharpness else np.full(n, np.nan),
    np.concatenate(shown)[:SHOWN],
  )


class EvalInputs:
  """A model, images of the two splits, and what looks at them.

  Attributes:
    model: see `inference.Model`.
    settings: the section `eval`.
    split: that is judged on.
    images: of that split, without classes that were not trained on.
    odd: images of those classes, of the same split; None where there are none.
    train: of the training split.
    excluded: those classes, by name where they have names.
  """

  def __init__(
    self,
    workdir: Path,
    settings: ConfigDict,
    *,
    data_now: Mapping[str, str] | None = None,
    which: str = "ema",
    step: int | None = None,
    split: str = "test",
  ):
    """Opens model and data.

    Args:
      workdir: of the run.
      settings: the section `eval`.
      data_now: where its images lie now, see `inference.load`.
      which: of the weights.
      step: of the checkpoint; the newest if left out.
      split: "test" or "train".

    Raises:
      UserError: as `inference.load`, as `data.open_dataset`; another split.
    """
    if split not in ("test", "train"):
      raise UserError(f"--split={split} must be one of test, train.")
    self.model = inference.load(workdir, which, step, data=data_now)
    self.settings, self.split, self.workdir = settings, split, workdir
    config = self.model.config
    test = data.open_dataset(config.data, "test", config.seed)
    train = data.open_dataset(config.data, "train", config.seed)
    self.train = some_images(train, settings.train_images, settings.seed)
    judged = {"test": test, "train": train}[split]
    known, odd = None, np.arange(0)
    if judged.excluded:
      out = np.isin(judged.labels(), judged.excluded)
      known, odd = np.flatnonzero(~out), np.flatnonzero(out)
    take = partial(some_images, judged, seed=settings.seed)
    self.images = take(settings.images, among=known)
    self.odd = take(settings.bound_images, among=odd) if len(odd) else None
    names = test.label_names
    self.excluded = [names[k] if names else str(k) for k in test.excluded]

  @property
  def protocol(self) -> dict[str, Any]:
    """What holds for every number."""
    config, model = self.model.config, self.model
    section = config.data
    h, w, c = image_shape(config)
    statistics = ", running averages" if config.model.norm == "batch" else ""
    return {
      "data": section.source,
      "split": self.split,
      "split_images": self.images.of,
      "excluded_classes": self.excluded,
      "size": f"{h}x{w}x{c}",
      "crop": section.crop,
      "resize": section.resize,
      "weights": {"ema": "averaged (ema)", "raw": "raw"}[model.which],
      "step": model.step,
      "posterior": config.posterior.name,
      "objective": config.objective.name,
      "norm": f"{config.model.norm}{statistics}",
      "dtype": config.dtype,
      "seed": self.settings.seed,
      "gamix_jax": gamix_jax.__version__,
      "jax": jax.__version__,
      "scikit-learn": importlib.metadata.version("scikit-learn"),
      "platform": jax.default_backend(),
    }

  @cached_property
  def features(self) -> Any:
    """The extractor that is asked for.

    Raises:
      UserError: there cannot be one: no labels, images too small.
    """
    settings = self.settings
    if settings.features == "inception" or settings.inception_weights:
      return metrics.inception_features(settings.inception_weights)
    return extractor(
      *(settings.features, self.train, settings.seed, self.workdir / "eval")
    )

  def key(self, use: int) -> jax.Array:
    """The key of a use."""
    return jax.random.fold_in(jax.random.key(self.settings.seed), use)

  @cached_property
  def q(self) -> Posterior:
    """Posteriors of `images`."""
    return self.model.encode(self.images.x)

  @cached_property
  def train_codes(self) -> np.ndarray:
    """Posterior means of `train`."""
    return np.asarray(self.model.encode(self.train.x).mean())

  def look(self, source: Any) -> ImageStats:
    """As the function `look`, with the features that are asked for."""
    return look(source, self.features)

  @property
  def likelihood(self) -> str:
    """What p(x | z) is, in words."""
    image, weight = self.model.recipe.image, self.model.config.weights.recon
    return image.likelihood.describe(image.size, weight)

"""What is judged: a model, images, and the features to compare them on."""

import dataclasses
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
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
from gamix_jax.evaluate.settings import STEPS
from gamix_jax.inference.fitting import read_images
from gamix_jax.locate import Location
from gamix_jax.posterior import Posterior

CHUNK = 512  # images that are held as floats at a time
PICTURED = 64  # images of each set that are kept for a picture


@dataclasses.dataclass
class Images:
  """Images of a split.

  Attributes:
    x: uint8 [n, h, w, c].
    labels: int [n], -1 where there is none.
    total: how many the split has to choose from.
  """

  x: np.ndarray
  labels: np.ndarray
  total: int

  def __len__(self) -> int:
    """How many these are."""
    return len(self.x)

  @property
  def labelled(self) -> bool:
    """Whether every image has a label, and they are of two classes or more."""
    return self.labels.min() >= 0 and len(np.unique(self.labels)) > 1


def spread_images(
  dataset: data.Dataset, at_most: int, among: np.ndarray | None = None
) -> Images:
  """Images at even distances in a data set, or all of them.

  Args:
    dataset: to choose from.
    at_most: how many.
    among: the indices to choose from; all if left out.
  """
  among = np.arange(len(dataset)) if among is None else among
  rows = among[data.spread_rows(len(among), at_most)]
  x, labels = read_images(dataset, rows)
  return Images(x, labels.astype(np.int64), len(among))


def known_and_unseen(
  dataset: data.Dataset,
) -> tuple[np.ndarray, np.ndarray]:
  """Indices of the classes that were trained on, and of the excluded ones."""
  if not dataset.excluded:
    return np.arange(len(dataset)), np.arange(0)
  is_excluded = np.isin(dataset.labels(), dataset.excluded)
  return np.flatnonzero(~is_excluded), np.flatnonzero(is_excluded)


def excluded_names(dataset: data.Dataset) -> list[str]:
  """The classes that were not trained on, by name where they have names."""
  names = dataset.label_names
  return [names[k] if names else str(k) for k in dataset.excluded]


def random_images(
  dataset: data.Dataset,
  at_most: int,
  seed: int,
  among: np.ndarray | None = None,
) -> Images:
  """Random images of a data set, without repeats.

  Args:
    dataset: to choose from.
    at_most: how many.
    seed: decides which, and their order.
    among: the indices to choose from; all if left out.
  """
  among = np.arange(len(dataset)) if among is None else among
  order = np.random.Generator(np.random.PCG64(seed)).permutation(among)
  x, labels = read_images(dataset, order[:at_most])
  return Images(x, labels.astype(np.int64), len(among))


def chunks(n: int) -> Iterator[slice]:
  """Slices of n rows, `CHUNK` or fewer each."""
  return (slice(i, min(i + CHUNK, n)) for i in range(0, n, CHUNK))


@dataclasses.dataclass
class ImageStats:
  """What is measured of every image of a set.

  Attributes:
    features: [n, f], of the images as 8 bits; None without an extractor.
    sharpness: [n]; NaN of images that are too small for it.
    first: up to `PICTURED` of the images, in [-1, 1].
  """

  features: np.ndarray | None
  sharpness: np.ndarray
  first: np.ndarray


def image_stats(source: Any, extract: Any) -> ImageStats:
  """Measures images, a chunk at a time.

  Args:
    source: uint8 [n, h, w, c]; or n and a function that makes the images of
      a slice of rows, in [-1, 1].
    extract: see `Features`.
  """
  n, make = source if isinstance(source, tuple) else (len(source), None)
  features, sharpness, first = [], [], []
  for rows in chunks(n):
    x = pictures.to_uint8(make(rows)) if make else source[rows]
    x = pictures.to_float(x)
    if extract is not None:
      features.append(extract(x))
    if min(x.shape[1:3]) > 2:
      sharpness.append(np.asarray(metrics.sharpness(x), np.float64))
    if rows.start < PICTURED:
      first.append(x[:PICTURED])
  return ImageStats(
    np.concatenate(features) if features else None,
    np.concatenate(sharpness) if sharpness else np.full(n, np.nan),
    np.concatenate(first)[:PICTURED],
  )


@dataclasses.dataclass
class Features:
  """The features that sets of images are compared on.

  Attributes:
    extract: images [b, h, w, c] in [-1, 1] -> [b, f]; None if there can be
      none, see `reason`.
    protocol: of the numbers that are made of them.
    reason: why there are none.
  """

  extract: Any
  protocol: dict[str, Any]
  reason: str = ""

  @property
  def fd(self) -> str:
    """The name of a Frechet distance, up to the set of images."""
    return "fid" if self._official else f"fd{self._name}"

  @property
  def kd(self) -> str:
    """The name of a kernel distance, up to the set of images."""
    return "kid" if self._official else f"kd{self._name}"

  @property
  def _official(self) -> bool:
    return getattr(self.extract, "official", False)

  @property
  def _name(self) -> str:
    return f"_{self.extract.name}" if self.extract else ""


def choose_features(
  settings: ConfigDict, train: Images, cache: Path
) -> Features:
  """The features that the settings ask for.

  Args:
    settings: the section `eval`.
    train: training images, that a classifier learns from.
    cache: a folder where the trained classifier is kept.

  Returns:
    Features; with `features` "auto" and images that are too small, none and
    the reason.

  Raises:
    UserError: there cannot be those that were asked for by name.
  """
  try:
    extract = _extractor(settings, train, cache)
  except UserError as e:
    if settings.features != "auto":
      raise
    return Features(None, {}, str(e))
  protocol = {"resize": "none"}
  if settings.inception_weights:
    protocol["resize"] = "299x299, as TensorFlow 1 did"
  if hasattr(extract, "sha256"):
    protocol["sha256"] = extract.sha256
  if hasattr(extract, "accuracy"):
    protocol["classes"] = len(np.unique(train.labels))
    protocol["trained on images"] = len(train)
  named = {f"features, {k}": v for k, v in protocol.items()}
  return Features(extract, {"features": extract.name} | named)


def _extractor(settings: ConfigDict, train: Images, cache: Path) -> Any:
  kind = settings.features
  if kind == "inception" or settings.inception_weights:
    return metrics.inception_features(settings.inception_weights)
  if kind == "auto":
    kind = "classifier" if train.labelled else "random"
  if kind == "classifier":
    return metrics.classifier_features(
      train.x,
      train.labels,
      settings.seed,
      cache,
      settings.classifier_steps or STEPS,
    )
  return metrics.random_features(train.x.shape[1:], 0)


@dataclasses.dataclass
class EvalInputs:
  """A model and what it is judged on.

  Attributes:
    model: see `inference.Model`.
    settings: the section `eval`.
    features: see `Features`.
    images: that it is judged on, without classes that were not trained on.
    split: that these are of.
    train: images of the training split; None where only what needs no such
      images is measured.
    unseen: images of `split` of classes that were not trained on; None where
      there are none.
    excluded: those classes, by name where they have names.
  """

  model: inference.Model
  settings: ConfigDict
  features: Features
  images: Images
  split: str = "test"
  train: Images | None = None
  unseen: Images | None = None
  excluded: Sequence[str] = ()

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
      "split_images": self.images.total,
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

  def key(self, use: int) -> jax.Array:
    """A PRNG key of the settings' seed, another one for each use."""
    return jax.random.fold_in(jax.random.key(self.settings.seed), use)

  @cached_property
  def q(self) -> Posterior:
    """Posteriors of `images`."""
    return self.model.encode(self.images.x)

  def image_stats(self, source: Any) -> ImageStats:
    """As the function `image_stats`, with the features of `features`."""
    return image_stats(source, self.features.extract)

  @property
  def likelihood(self) -> str:
    """What p(x | z) is, in words."""
    image, weight = self.model.spec.image, self.model.config.weights.recon
    return image.likelihood.describe(image.size, weight)


def open_run(
  workdir: str | Path | Location,
  settings: ConfigDict,
  *,
  data_now: Mapping[str, str] | None = None,
  which: str = "ema",
  step: int | None = None,
  split: str = "test",
) -> EvalInputs:
  """Opens a run's model and data, as `evaluate` judges it.

  Args:
    workdir: of the run, or another name of a model, see `inference.load`; the
      `eval/` of `model.workdir` keeps a trained classifier.
    settings: the section `eval`.
    data_now: where its images are now, see `inference.load`.
    which: of the weights, "ema" or "raw".
    step: of the checkpoint; the newest if left out.
    split: "test" or "train".

  Raises:
    UserError: as `inference.load`, `data.open_dataset`, `choose_features`;
      another split.
  """
  if split not in ("test", "train"):
    raise UserError(f"--split={split} must be one of test, train.")
  model = inference.load(workdir, which, step, data=data_now)
  config = model.config
  test = data.open_dataset(config.data, "test", config.seed)
  train = data.open_dataset(config.data, "train", config.seed)
  train_images = random_images(train, settings.train_images, settings.seed)
  judged = {"test": test, "train": train}[split]
  known, unseen = known_and_unseen(judged)
  take = partial(random_images, judged, seed=settings.seed)
  images = take(settings.images, among=known)
  features = choose_features(settings, train_images, model.workdir / "eval")
  if hasattr(features.extract, "accuracy") and images.labels.min() >= 0:
    features.protocol["features, accuracy"] = _accuracy(
      features.extract, images
    )
  return EvalInputs(
    model,
    settings,
    features,
    images,
    split=split,
    train=train_images,
    unseen=take(settings.bound_images, among=unseen) if len(unseen) else None,
    excluded=excluded_names(test),
  )


def _accuracy(classifier: Any, images: Images) -> float:
  """The share of the images that it classifies correctly, 4 digits."""
  correct = sum(
    classifier.accuracy(pictures.to_float(images.x[rows]), images.labels[rows])
    * (rows.stop - rows.start)
    for rows in chunks(len(images))
  )
  return round(correct / len(images), 4)

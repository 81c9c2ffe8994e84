"""The images of the bench, and the classifier whose features judge.

The weights of methods are chosen on validation images, a part of the training
split that no run trains on. The test split is read only for the final runs.
"""

import dataclasses
from pathlib import Path

import numpy as np

from gamix_jax import data, files, metrics
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError

CLASSIFIED = 20_000  # training images that the classifier learns from, at most
# Its steps, for this many images: right on 96 % of MNIST. The 400 steps of
# `evaluate` are right on 81 %.
CLASSIFIER_STEPS = 4_000
VALIDATION = 6  # one image in so many is held out for validation
LEAST = 100  # images that a judge needs


@dataclasses.dataclass(frozen=True)
class Images:
  """Images of one part.

  Attributes:
    x: uint8 [n, h, w, c].
    labels: int [n].
  """

  x: np.ndarray
  labels: np.ndarray

  def __len__(self) -> int:
    """How many these are."""
    return len(self.x)


def training_parts(config: ConfigDict) -> tuple[Images, Images]:
  """Reads the training split; returns training and validation images.

  The parts are a random division that does not depend on the run's seed.

  Raises:
    UserError: as `data.open_dataset`.
  """
  found = _read(config, "train")
  order = np.random.Generator(np.random.PCG64(0)).permutation(len(found))
  first = len(order) // VALIDATION
  held_out, rest = np.sort(order[:first]), np.sort(order[first:])
  return (
    Images(found.x[rest], found.labels[rest]),
    Images(found.x[held_out], found.labels[held_out]),
  )


def test_images(config: ConfigDict) -> Images:
  """Reads the test split.

  Raises:
    UserError: as `data.open_dataset`.
  """
  return _read(config, "test")


def _read(config: ConfigDict, split: str) -> Images:
  dataset = data.open_dataset(config.data, split, config.seed)
  batch = dataset.load_batch(np.arange(len(dataset)))
  return Images(batch["image"], batch["label"])


def features(train: Images, folder: Path) -> metrics.classifier_features:
  """Trains the judge's classifier once; other processes read its file.

  Args:
    train: training images.
    folder: the output folder, which keeps it.

  Raises:
    UserError: if the images have no labels.
  """
  steps = CLASSIFIER_STEPS * min(len(train), CLASSIFIED) // CLASSIFIED
  folder.mkdir(parents=True, exist_ok=True)
  with files.exclusive(folder / ".classifier"):
    return metrics.classifier_features(
      train.x[:CLASSIFIED], train.labels[:CLASSIFIED], 0, folder, steps
    )


def judged(images: Images, at_most: int) -> Images:
  """The first images of a part, which judge a run.

  Raises:
    UserError: if there are too few for Frechet distances.
  """
  if min(len(images), at_most) < LEAST:
    raise UserError(
      f"The judge needs {LEAST} images or more; there are {len(images)} in "
      f"this part, and --judged={at_most}."
    )
  return Images(images.x[:at_most], images.labels[:at_most])

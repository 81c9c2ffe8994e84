"""Loads the images for a picture: from the test split, or from files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gamix_jax import data, paths
from gamix_jax.config import ConfigDict
from gamix_jax.data.decode import BrokenImage, ImageTransform
from gamix_jax.errors import UserError
from gamix_jax.inference.fitting import read_images
from gamix_jax.plots import named


def first(config: ConfigDict, n: int) -> tuple[np.ndarray, np.ndarray, tuple]:
  """Returns the first n held-out images, their labels and the label names."""
  dataset = data.open_dataset(config.data, "test", config.seed)
  x, labels = read_images(dataset, range(min(n, len(dataset))))
  return x, labels, dataset.label_names


def images(
  config: ConfigDict, words: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
  """Loads the images of --images: uint8 [n, h, w, c] and a name for each.

  Args:
    config: the run's config. Files are cropped and resized like its data.
    words: indices in the test split, or files.

  Raises:
    UserError: as `data.open_dataset`, if an index is out of range, or if a file
      is missing or broken.
  """
  dataset = None
  loaded = []
  for word in words:
    if not word.lstrip("-").isdecimal():
      loaded.append(_load_file(config, word))
      continue
    if dataset is None:
      dataset = data.open_dataset(config.data, "test", config.seed)
    if not 0 <= int(word) < len(dataset):
      raise UserError(
        f"--images={word}: the test split has images 0 to {len(dataset) - 1}."
      )
    loaded.append(dataset[int(word)]["image"])
  names = [named(Path(w).name) for w in words]
  return np.stack(loaded), names


def _load_file(config: ConfigDict, name: str) -> np.ndarray:
  settings = data.Settings.from_config(config.data)
  prepare = ImageTransform.from_settings(settings)
  try:
    return prepare(paths.resolve(name).read_bytes())
  except OSError as e:
    raise UserError(
      f"--images={name} is neither an index of the test split nor a file that "
      f"can be read ({e.strerror})."
    ) from e
  except BrokenImage as e:
    raise UserError(f"--images={name} is not a complete image: {e}.") from e

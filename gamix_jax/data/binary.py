"""Binary images: each pixel is black or white, at random by its grey level.

A pixel of grey level g becomes white (255) with probability g / 255, else black
(0). This is how likelihoods of MNIST are usually reported (Burda et al.,
arXiv:1509.00519, section 5): under `objective.reconstruction=bernoulli` the
bounds of ln p(x) are then those of discrete data.

    fixed     one draw for each image, the same in every epoch
    dynamic   in training a new draw in each step; elsewhere as `fixed`

Fixed draws depend on the split and the image's index alone, so all models are
judged with the same pixels.
"""

import concurrent.futures
from collections.abc import Callable
from typing import Any

import numpy as np

from gamix_jax.data.dataset import Broken, Dataset

_WHITE = 255
_SPLITS = ("train", "test")


def draw_levels(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  """Draws the grey levels above which pixels are white: uint8, 0 to 254."""
  return rng.integers(0, _WHITE, shape, dtype=np.uint8)


def binarize(images: np.ndarray, levels: np.ndarray) -> np.ndarray:
  """White where an image is brighter than the level, else black.

  Args:
    images: uint8 [..., h, w, c].
    levels: from `draw_levels`, of the same shape.

  Returns:
    uint8 of that shape, 0 or 255; 255 with probability images / 255.
  """
  return (images > levels).astype(np.uint8) * np.uint8(_WHITE)


class BinaryDataset(Dataset):
  """A data set whose images are binary, with one draw for each image.

  Attributes:
    grey: the same data set as it was.
    dynamic: whether training draws anew in each step.
  """

  def __init__(self, grey: Dataset):
    """Takes over everything but the images from `grey`."""
    self._take_over(grey)
    self.grey = grey
    self.dynamic = grey.settings.binarize == "dynamic"
    self.in_memory = grey.in_memory

  def load(self, i: int) -> dict[str, Any]:
    """As `Dataset.load`."""
    item = self.grey.load(i)
    return item | {"image": binarize(item["image"], self._levels(i))}

  def load_batch(
    self,
    rows: np.ndarray,
    pool: concurrent.futures.Executor | None = None,
    report: Callable[[Broken], None] | None = None,
  ) -> dict[str, np.ndarray]:
    """As `Dataset.load_batch`."""
    batch = self.grey.load_batch(rows, pool, report)
    levels = np.empty((len(rows), *self.shape), np.uint8)
    for k, i in enumerate(rows):
      levels[k] = self._levels(int(i))
    return batch | {"image": binarize(batch["image"], levels)}

  def _levels(self, i: int) -> np.ndarray:
    rng = np.random.default_rng((_SPLITS.index(self.split), i))
    return draw_levels(rng, self.shape)

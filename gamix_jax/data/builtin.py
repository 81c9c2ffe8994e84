"""`digits` and `synthetic[:<n>]`: sources that need no files."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from gamix_jax.data.settings import Settings
from gamix_jax.data.source import ArraySource, Source, hash_parts, hash_split
from gamix_jax.errors import UserError


class Digits(ArraySource):
  """`digits`: scikit-learn's 1,797 handwritten digits, 8x8 grey.

  They are split by hash.
  """

  def __init__(self, rest: str, split: str, settings: Settings, seed: int):
    """Raises UserError if anything follows `digits`."""
    del seed
    if rest:
      raise UserError(f"data.source=digits takes nothing after it, not :{rest}")
    images, labels = _load_digits()
    images = np.round(images * (255 / 16)).astype(np.uint8)
    names = [f"digits/{i}" for i in range(len(images))]
    keep = hash_split("digits", names, settings.test_fraction, split)
    super().__init__(
      images[keep],
      labels[keep],
      title=f"digits/{split}",
      total=len(images),
      label_names=tuple("0123456789"),
    )


def _load_digits() -> tuple[np.ndarray, np.ndarray]:
  """Images [n, 8, 8] with values 0..16, and labels [n]."""
  # Read from scikit-learn's file if possible: importing sklearn.datasets takes
  # more than half a second.
  package = Path(importlib.util.find_spec("sklearn").origin).parent
  file = package / "datasets" / "data" / "digits.csv.gz"
  if file.is_file():
    table = np.loadtxt(file, delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(int)
  from sklearn.datasets import load_digits  # noqa: PLC0415

  digits = load_digits()
  return digits.images, digits.target


class Synthetic(Source):
  """`synthetic` or `synthetic:<n>`: n smooth random images, 256 by default.

  The test split has n // 4 images, at least one. Image i is a function of
  (seed, split, i): noise on a 4x4 grid, enlarged with cubic interpolation to
  the size that is asked for, in colour. Images have no labels.
  """

  def __init__(self, rest: str, split: str, settings: Settings, seed: int):
    """Raises UserError if a number is expected and something else found."""
    if rest and not (rest.isdecimal() and int(rest) > 0):
      raise UserError(
        f"data.source=synthetic:{rest}: give a number of images, or none (256)."
      )
    train = int(rest) if rest else 256
    test = max(1, train // 4)
    self._n, self.total = test if split == "test" else train, train + test
    self._size, self._split, self._seed = settings.shape[:2], split, seed

  def __len__(self) -> int:
    """Number of images in this split."""
    return self._n

  def __getitem__(self, i: int) -> dict[str, Any]:
    """Image i, uint8 [h, w, 3]; no label."""
    import cv2  # noqa: PLC0415

    key = (self._seed % 2**63, self._split == "test", i)
    grid = np.random.default_rng(key).uniform(0, 255, (4, 4, 3))
    h, w = self._size
    image = cv2.resize(grid, (w, h), interpolation=cv2.INTER_CUBIC)
    return {"image": np.round(image).clip(0, 255).astype(np.uint8)}

  def labels(self) -> np.ndarray:
    """-1, for none."""
    return np.full(self._n, -1)

  def name(self, i: int) -> str:
    """Its index within the split."""
    return f"synthetic/{self._split}[{i}]"

  def fingerprint(self) -> str:
    """Of the arguments that the images are a function of."""
    return hash_parts([self.cache_key().encode()])

  def cache_key(self) -> str:
    """These arguments."""
    return repr(("synthetic 1", self._n, self._size, self._split, self._seed))

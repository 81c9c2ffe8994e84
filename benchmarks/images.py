"""A synthetic batch of images for benchmarks."""

from collections.abc import Sequence

import numpy as np

from gamix_jax.config import ConfigDict, image_shape


def smooth(config: ConfigDict, seed: int) -> np.ndarray:
  """Returns smooth uint8 images [b, h, w, c] with some noise."""
  return smooth_of((config.data.batch_size, *image_shape(config)), seed)


def smooth_of(shape: Sequence[int], seed: int) -> np.ndarray:
  """As `smooth`, of a shape (b, h, w, c)."""
  b, h, w, c = shape
  rng = np.random.default_rng(seed)
  a = rng.normal(size=(4, b, 1, 1, c))
  i = np.linspace(0, 6, h)[:, None, None]
  j = np.linspace(0, 6, w)[:, None]
  x = np.tanh(a[0] * np.sin(i + a[1]) + a[2] * np.cos(j + a[3]))
  noise = rng.uniform(-0.1, 0.1, x.shape)
  return np.clip(127.5 * (x + noise) + 127.5, 0, 255).astype(np.uint8)

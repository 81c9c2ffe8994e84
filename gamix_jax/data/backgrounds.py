"""Backgrounds of the views of a digit: crops of one picture for each view.

A view's picture is drawn by code, or it is one of scikit-image's. Those drawn
by code have a texture and a colour of their own, and each channel stays well
away from the middle grey, always on the same side of it: so a digit whose
pixels are the background's inverted is legible everywhere. The pictures of
scikit-image are as they are; PolyMNIST's backgrounds were made like this
(Sutter et al., arXiv:2105.02470).
"""

from collections.abc import Callable

import numpy as np

from gamix_jax.errors import UserError

VIEWS = 5
SIZE = 256  # pixels of a side of those drawn by code
# Of scikit-image, in its wheel (nothing is downloaded) and without people.
PICTURES = (
  "coffee.png",
  "chelsea.png",
  "hubble_deep_field.jpg",
  "ihc.png",
  "motorcycle_left.png",
)


def drawn(view: int) -> np.ndarray:
  """The background of a view, drawn by code: uint8 [SIZE, SIZE, 3]."""
  texture, low, high = _DRAWN[view]
  t = texture(np.random.default_rng((20_240, view)))
  low, high = np.array(low), np.array(high)
  return np.round(low + t * (high - low)).astype(np.uint8)


def picture(view: int) -> np.ndarray:
  """A picture of scikit-image: uint8 [h, w, 3].

  Raises:
    UserError: scikit-image is not installed.
  """
  try:
    import skimage  # noqa: PLC0415
  except ImportError as e:
    raise UserError(
      "backgrounds=pictures are scikit-image's, which is not installed: pip"
      " install scikit-image, or leave the option out."
    ) from e
  from pathlib import Path  # noqa: PLC0415

  from PIL import Image  # noqa: PLC0415

  file = Path(skimage.__file__).parent / "data" / PICTURES[view]
  if not file.is_file():
    raise UserError(
      f"scikit-image {skimage.__version__} has no picture {file.name}, which"
      " backgrounds=pictures needs. Leave the option out."
    )
  with Image.open(file) as image:
    return np.array(image.convert("RGB"))


def crop(background: np.ndarray, places: np.ndarray, size: int) -> np.ndarray:
  """Windows of a background.

  Args:
    background: uint8 [h, w, 3].
    places: the upper left corners, row and column in [0, 1): float [n, 2].
    size: of a window, in pixels; at most h and w.

  Returns:
    uint8 [n, size, size, 3], a new array.
  """
  h, w, c = background.shape
  # A row of a window is contiguous, so windows of the flat rows are copied as
  # runs of size * c bytes.
  rows = np.lib.stride_tricks.sliding_window_view(
    background.reshape(h, w * c), (size, size * c)
  )
  room = np.array([h - size + 1, w - size + 1])
  y, x = np.floor(places * room).astype(np.intp).T
  return rows[y, c * x].reshape(-1, size, size, c)


# ------------------------------------------------ textures, [SIZE, SIZE, 3 | 1]


def _waves(rng: np.random.Generator) -> np.ndarray:
  """Slow gradients, of each channel on its own."""
  i, j = np.indices((SIZE, SIZE, 1))[:2] / 16
  angle, phase = rng.uniform(0, 2 * np.pi, (2, 6, 3))
  speed = rng.uniform(0.4, 1.2, (6, 3))
  total = sum(
    np.sin(speed[k] * (i * np.cos(angle[k]) + j * np.sin(angle[k])) + phase[k])
    for k in range(6)
  )
  return _stretched(total)


def _checks(rng: np.random.Generator) -> np.ndarray:
  """Squares of 4 pixels, light and dark in turn."""
  i, j = np.indices((SIZE, SIZE)) // 4
  shade = rng.uniform(0, 0.3, (SIZE // 4, SIZE // 4))
  return (0.7 * ((i + j) % 2) + shade[i, j])[..., None]


def _stripes(rng: np.random.Generator) -> np.ndarray:
  """Slanted stripes of 5 pixels that bend a little."""
  i, j = np.indices((SIZE, SIZE))
  bend = 3 * np.sin(i / 19 + rng.uniform(0, 6)) + 3 * np.sin(j / 23)
  return (((0.8 * i + j + bend) % 5 < 2.5) * 1.0)[..., None]


def _blobs(rng: np.random.Generator) -> np.ndarray:
  """Discs of several shades."""
  import cv2  # noqa: PLC0415

  t = np.full((SIZE, SIZE), 0.0, np.float32)
  for _ in range(900):
    y, x = map(int, rng.integers(0, SIZE, 2))
    radius, shade = int(rng.integers(2, 5)), float(rng.uniform(0, 1))
    cv2.circle(t, (x, y), radius, shade, -1)
  return t[..., None]


def _noise(rng: np.random.Generator) -> np.ndarray:
  """Every pixel and channel on its own."""
  return rng.uniform(0, 1, (SIZE, SIZE, 3))


def _stretched(t: np.ndarray) -> np.ndarray:
  """To 0..1 in each channel."""
  low, high = t.min((0, 1)), t.max((0, 1))
  return (t - low) / (high - low)


# Each with the colours of 0 and of 1.
_DRAWN: tuple[
  tuple[Callable[[np.random.Generator], np.ndarray], tuple, tuple], ...
] = (
  (_waves, (0, 0, 0), (75, 75, 85)),
  (_checks, (170, 175, 0), (255, 250, 70)),
  (_stripes, (0, 20, 165), (40, 85, 255)),
  (_blobs, (175, 0, 20), (255, 85, 90)),
  (_noise, (165, 185, 165), (255, 255, 255)),
)

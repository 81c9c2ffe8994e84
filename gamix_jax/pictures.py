"""Images as uint8 and as floats, and grids of them as PNG."""

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from gamix_jax import files, marks

SMALL_SIDE = 64  # pixels; smaller images are enlarged
LINE = 2  # pixels between images


def to_float(x: np.ndarray) -> np.ndarray:
  """uint8 to float32 in [-1, 1]; also of JAX arrays, inside of `jit`."""
  return x.astype(np.float32) / 127.5 - 1


def to_uint8(x: np.ndarray) -> np.ndarray:
  """Maps [-1, 1] to 0..255, clipped; NaN becomes black."""
  x = np.nan_to_num(np.asarray(x), nan=-1)
  return np.rint((np.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8)


def grid(images: np.ndarray, columns: int) -> np.ndarray:
  """Lays images [n, h, w, c] in [-1, 1] out in a grid, uint8 [H, W, c].

  Small images are enlarged by a whole factor, each pixel to a square.
  """
  images = to_uint8(images)
  n, h, w, c = images.shape
  factor = max(1, SMALL_SIDE // max(h, w))
  images = images.repeat(factor, axis=1).repeat(factor, axis=2)
  h, w = h * factor + LINE, w * factor + LINE
  rows = math.ceil(n / columns)
  out = np.full((rows * h + LINE, columns * w + LINE, c), 255, np.uint8)
  for i, image in enumerate(images):
    y, x = i // columns * h + LINE, i % columns * w + LINE
    out[y : y + h - LINE, x : x + w - LINE] = image
  return out


def rows(batches: Sequence[np.ndarray]) -> np.ndarray:
  """A grid with a row for each batch [n, h, w, c] in [-1, 1], uint8 [H, W, c].

  Sizes may differ: smaller images are enlarged to the largest side, and grey
  ones become colour if others have it.
  """
  size = tuple(max(x.shape[i] for x in batches) for i in (1, 2, 3))
  n = max(map(len, batches))
  return grid(np.concatenate([fitted(x, size) for x in batches]), n)


def fitted(images: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
  """Images [n, h, w, c] resized to (height, width, channels), float32."""
  h, w, c = size
  x = np.asarray(images, np.float32)
  x = np.broadcast_to(x, (*x.shape[:-1], c))
  if x.shape[1:3] == (h, w):
    return x
  return np.stack(
    [cv2.resize(i, (w, h), interpolation=cv2.INTER_NEAREST) for i in x]
  ).reshape(-1, h, w, c)


def pairs(above: np.ndarray, below: np.ndarray, columns: int) -> np.ndarray:
  """Rows of `above` over rows of `below`, as one batch for `grid`.

  Args:
    above: [n, h, w, c].
    below: of the same shape.
    columns: images per row of the grid; images that fill no row are left out.
  """
  n = len(above) // columns * columns
  shape = (n // columns, columns, *above.shape[1:])
  both = np.stack([above[:n].reshape(shape), below[:n].reshape(shape)], axis=1)
  return both.reshape(-1, *above.shape[1:])


def save_png(path: Path, image: np.ndarray) -> None:
  """Writes uint8 [h, w, c], c 1 or 3, as PNG with our mark, or nothing.

  Raises:
    OSError: it cannot be written.
  """
  if image.shape[-1] > 1:
    image = image[..., ::-1]  # OpenCV's order is blue, green, red
  _, data = cv2.imencode(".png", image)
  with files.atomic(path) as temporary:
    temporary.write_bytes(marks.mark(data.tobytes()))

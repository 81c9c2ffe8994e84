"""Computes the pictures of the page from images and latents; without Gradio.

Pictures are uint8 [h, w] or [h, w, 3], as Pillow takes them.
"""

import io
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from sklearn.decomposition import PCA

from gamix_jax import data, metrics, pictures
from gamix_jax.data.decode import FORMATS, BrokenImage, ImageTransform
from gamix_jax.errors import UserError
from gamix_jax.inference import Model
from gamix_jax.inference.fitting import read_images

IMAGES = 512  # held-out images that are encoded
SLIDERS = 8
SPAN = 3.0  # of a slider: +- standard deviations
MAX_BYTES = 10 * 2**20  # of an uploaded file
MAX_PIXELS = 40_000_000
MAP_SIDE = 640  # pixels
THUMBNAIL = 28  # larger side, pixels
THUMBNAILS = 150
MIN_REACH = 1e-6  # least half width of the map, in latent units
MARK_COLOR = (220, 30, 30)  # of the cross
PICTURE_SIDE = 256  # approximate size of an enlarged picture, pixels
SAMPLES = 16


class View:
  """A model and images of its run's data.

  Attributes:
    model: see `gamix_jax.load`.
    images: uint8 [n, h, w, c].
    held_out: whether they are real ones, not samples of the model.
    mu: posterior means of the images, [n, d].
    std: standard deviation of mu over the images, [d]; the sliders' unit.
    active: up to SLIDERS latents, in descending order of the variance of mu.
  """

  def __init__(
    self, model: Model, images: np.ndarray, held_out: bool = True
  ) -> None:
    """Encodes the images.

    Raises:
      UserError: as `Model.encode`, or if there are fewer than 2 images or 2
        latents.
    """
    self.model, self.images, self.held_out = model, images, held_out
    self.mu = np.asarray(model.encode(images).mean(), np.float64)
    if min(self.mu.shape) < 2:
      raise UserError(
        "The page needs 2 held-out images and 2 latents or more; there are "
        f"{self.mu.shape[0]} and {self.mu.shape[1]}."
      )
    self.std = self.mu.std(axis=0)
    self.active = metrics.by_activity(self.mu)[:SLIDERS]
    with np.errstate(invalid="ignore"):  # 0 / 0 if all codes are equal
      self._pca = PCA(2, svd_solver="full").fit(self.mu)
    self._points = self._pca.transform(self.mu)
    self._reach = np.maximum(1.15 * np.abs(self._points).max(axis=0), MIN_REACH)
    self._prepare = ImageTransform.from_settings(
      data.Settings.from_config(model.config.data)
    )
    self._map = self._draw_map()

  # --- an image ------------------------------------------------------------

  def open(self, path: str | Path) -> np.ndarray:
    """Loads an uploaded file like the training data: uint8 [h, w, c].

    Raises:
      UserError: if the file is too large or not a complete image.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_BYTES:
      raise UserError(
        f"The file has {size / 2**20:.1f} MB; up to {MAX_BYTES >> 20} are "
        "accepted."
      )
    raw = path.read_bytes()
    try:
      with Image.open(io.BytesIO(raw), formats=FORMATS) as file:
        width, height = file.size
    # Pillow raises many kinds of errors for damaged files and huge images.
    except Exception as e:
      raise UserError(
        f"The file is not a readable image; use {', '.join(FORMATS)}."
      ) from e
    if width * height > MAX_PIXELS:
      raise UserError(
        f"The image has {width} x {height} pixels; up to "
        f"{MAX_PIXELS // 10**6} million are accepted."
      )
    try:
      return self._prepare(raw)
    except BrokenImage as e:
      raise UserError(f"The image is broken: {e}.") from e

  def code(self, image: np.ndarray) -> np.ndarray:
    """Returns the posterior mean [d] of an image."""
    return np.asarray(self.model.encode(image).mean(), np.float64)[0]

  def shown(self, image: np.ndarray) -> np.ndarray:
    """Renders an input image, uint8 [h, w, c]."""
    return _enlarged(image)

  def picture(self, z: np.ndarray) -> np.ndarray:
    """Decodes and renders a latent [d]."""
    return _enlarged(pictures.to_uint8(self.model.decode(z)))

  def moved(self, z: np.ndarray, by: list[float]) -> np.ndarray:
    """Moves the active dimensions of a latent, in units of `std`."""
    z = np.array(z, np.float64)
    z[self.active] += np.asarray(by) * self.std[self.active]
    return z

  # --- the map -------------------------------------------------------------

  def place(self, z: np.ndarray) -> tuple[int, int]:
    """Returns the pixel (x, y) of a latent on the map, clipped to its edge."""
    at = self._pca.transform(np.asarray(z)[None])[0] / self._reach
    x, y = np.clip((at * (1, -1) + 1) / 2 * MAP_SIDE, 0, MAP_SIDE - 1)
    return round(x), round(y)

  def at(self, x: int, y: int) -> np.ndarray:
    """Returns the latent [d] in the map's plane at a pixel.

    PCA's inverse is exact in the plane: `place` of this latent is the pixel.
    """
    at = np.array([x, y]) / MAP_SIDE * 2 - 1
    return self._pca.inverse_transform((at * (1, -1) * self._reach)[None])[0]

  def map(self, mark: tuple[int, int] | None = None) -> np.ndarray:
    """Renders the map of held-out images, with a cross at `mark`."""
    out = self._map.copy()
    if mark is not None:
      x, y = mark
      top, left = max(y - 6, 0), max(x - 6, 0)
      out[top : y + 7, max(x - 1, 0) : x + 2] = MARK_COLOR
      out[max(y - 1, 0) : y + 2, left : x + 7] = MARK_COLOR
    return out

  def _draw_map(self) -> np.ndarray:
    out = np.full((MAP_SIDE, MAP_SIDE, 3), 255, np.uint8)
    for z, image in zip(self.mu[:THUMBNAILS], self.images, strict=False):
      small = Image.fromarray(_squeeze_grey(image)).convert("RGB")
      scale = THUMBNAIL / max(small.size)
      width, height = (max(1, round(s * scale)) for s in small.size)
      small = np.asarray(small.resize((width, height), Image.Resampling.BOX))
      x, y = self.place(z)
      left = min(max(x - width // 2, 0), MAP_SIDE - width)
      top = min(max(y - height // 2, 0), MAP_SIDE - height)
      out[top : top + height, left : left + width] = small
    return out

  # --- mixing and sampling -------------------------------------------------

  def mixed(self, z0: np.ndarray, z1: np.ndarray, share: float) -> np.ndarray:
    """Renders (1 - share) z0 + share z1."""
    return self.picture((1 - share) * np.asarray(z0) + share * np.asarray(z1))

  def samples(self, seed: int, temperature: float) -> np.ndarray:
    """Renders a grid of new images from the prior.

    Raises:
      UserError: if the temperature is negative or the seed out of range.
    """
    if seed < 0 or seed >= 2**32:
      raise UserError(f"The seed {seed} must be from 0 to {2**32 - 1}.")
    key = jax.random.key(seed)
    images = self.model.sample(key, SAMPLES, temperature=temperature)
    return _squeeze_grey(pictures.grid(images, 4))


def held_out(model: Model) -> np.ndarray:
  """Loads held-out images of the run's data: uint8 [n, h, w, c].

  Raises:
    UserError: as `data.open_dataset`.
  """
  dataset = data.open_dataset(model.config.data, "test", model.config.seed)
  images, _ = read_images(dataset, range(min(len(dataset), IMAGES)))
  return images


def stand_ins(model: Model) -> np.ndarray:
  """Samples of the model, for use where its data are not at hand.

  Returns:
    uint8 [n, h, w, c].
  """
  return pictures.to_uint8(model.sample(jax.random.key(0), IMAGES))


def _squeeze_grey(image: np.ndarray) -> np.ndarray:
  return image[..., 0] if image.shape[-1] == 1 else image


def _enlarged(image: np.ndarray) -> np.ndarray:
  """Enlarges by an integer factor, so that pixels stay sharp."""
  factor = max(1, PICTURE_SIDE // max(image.shape[:2]))
  return _squeeze_grey(image).repeat(factor, axis=0).repeat(factor, axis=1)

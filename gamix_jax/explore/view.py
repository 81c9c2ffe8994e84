"""The pictures of the page, made of images and latents; without Gradio.

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
SPAN = 3.0  # of a slider, standard deviations to each side
MAX_BYTES = 10 * 2**20  # of an uploaded file
MAX_PIXELS = 40_000_000
MAP_SIDE = 640  # pixels
THUMBNAIL = 28  # its larger side, pixels
THUMBNAILS = 150
MIN_REACH = 1e-6  # half the map's width, at least, in latent units
MARK = (220, 30, 30)  # color of the cross
SIDE = 256  # pixels that single pictures are enlarged to, about
SAMPLES = 16


class View:
  """A model and held-out images of its run's data.

  Attributes:
    model: see `gamix_jax.load`.
    images: uint8 [n, h, w, c].
    mu: the means of their posteriors, [n, d].
    std: of mu over the images, [d]: the sliders' unit.
    active: the latents whose mu varies most, most first, [SLIDERS] or less.
  """

  def __init__(self, model: Model, images: np.ndarray) -> None:
    """Encodes the images.

    Raises:
      UserError: as `Model.encode`; fewer than 2 of them, or one latent only,
        of which there is no map.
    """
    self.model, self.images = model, images
    self.mu = np.asarray(model.encode(images).mean(), np.float64)
    if min(self.mu.shape) < 2:
      raise UserError(
        "The page needs 2 held-out images and 2 latents or more; there are "
        f"{self.mu.shape[0]} and {self.mu.shape[1]}."
      )
    self.std = self.mu.std(axis=0)
    self.active = metrics.by_activity(self.mu)[:SLIDERS]
    with np.errstate(invalid="ignore"):  # of equal codes PCA divides 0 by 0
      self._pca = PCA(2, svd_solver="full").fit(self.mu)
    self._places = self._pca.transform(self.mu)
    self._reach = np.maximum(1.15 * np.abs(self._places).max(axis=0), MIN_REACH)
    self._prepare = ImageTransform.from_settings(
      data.Settings.from_config(model.config.data)
    )
    self._map = self._draw_map()

  # --- an image ------------------------------------------------------------

  def open(self, path: str | Path) -> np.ndarray:
    """An uploaded file, prepared as the training data: uint8 [h, w, c].

    Raises:
      UserError: too large, or no whole image.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_BYTES:
      raise UserError(
        f"The file has {size / 2**20:.1f} MB; up to {MAX_BYTES >> 20} are "
        "taken."
      )
    raw = path.read_bytes()
    try:
      with Image.open(io.BytesIO(raw), formats=FORMATS) as file:
        width, height = file.size
    # Pillow raises all kinds of errors for a damaged file or a bomb.
    except Exception as e:
      raise UserError(
        f"This is no image that can be read ({', '.join(FORMATS)} can)."
      ) from e
    if width * height > MAX_PIXELS:
      raise UserError(
        f"The image has {width} x {height} pixels; up to "
        f"{MAX_PIXELS // 10**6} million are taken."
      )
    try:
      return self._prepare(raw)
    except BrokenImage as e:
      raise UserError(f"This image is broken: {e}.") from e

  def code(self, image: np.ndarray) -> np.ndarray:
    """The mean of its posterior, [d]."""
    return np.asarray(self.model.encode(image).mean(), np.float64)[0]

  def shown(self, image: np.ndarray) -> np.ndarray:
    """The picture of an image as the model gets it, uint8 [h, w, c]."""
    return _enlarged(image)

  def picture(self, z: np.ndarray) -> np.ndarray:
    """The picture of a latent [d], decoded."""
    return _enlarged(pictures.to_uint8(self.model.decode(z)))

  def moved(self, z: np.ndarray, by: list[float]) -> np.ndarray:
    """A latent with its active dimensions moved, in units of `std`."""
    z = np.array(z, np.float64)
    z[self.active] += np.asarray(by) * self.std[self.active]
    return z

  # --- the map -------------------------------------------------------------

  def place(self, z: np.ndarray) -> tuple[int, int]:
    """The pixel (x, y) of a latent on the map, clipped to its edge."""
    at = self._pca.transform(np.asarray(z)[None])[0] / self._reach
    x, y = np.clip((at * (1, -1) + 1) / 2 * MAP_SIDE, 0, MAP_SIDE - 1)
    return round(x), round(y)

  def at(self, x: int, y: int) -> np.ndarray:
    """The latent [d] of the map's plane at a pixel.

    PCA's inverse is exact in the plane: this latent's place is the pixel.
    """
    at = np.array([x, y]) / MAP_SIDE * 2 - 1
    return self._pca.inverse_transform((at * (1, -1) * self._reach)[None])[0]

  def map(self, mark: tuple[int, int] | None = None) -> np.ndarray:
    """The held-out images at their codes' places, by PCA; a place marked."""
    out = self._map.copy()
    if mark is not None:
      x, y = mark
      top, left = max(y - 6, 0), max(x - 6, 0)
      out[top : y + 7, max(x - 1, 0) : x + 2] = MARK
      out[max(y - 1, 0) : y + 2, left : x + 7] = MARK
    return out

  def _draw_map(self) -> np.ndarray:
    out = np.full((MAP_SIDE, MAP_SIDE, 3), 255, np.uint8)
    for z, image in zip(self.mu[:THUMBNAILS], self.images, strict=False):
      small = Image.fromarray(_flat(image)).convert("RGB")
      scale = THUMBNAIL / max(small.size)
      width, height = (max(1, round(s * scale)) for s in small.size)
      small = np.asarray(small.resize((width, height), Image.Resampling.BOX))
      x, y = self.place(z)
      left = min(max(x - width // 2, 0), MAP_SIDE - width)
      top = min(max(y - height // 2, 0), MAP_SIDE - height)
      out[top : top + height, left : left + width] = small
    return out

  # --- several -------------------------------------------------------------

  def mixed(self, z0: np.ndarray, z1: np.ndarray, share: float) -> np.ndarray:
    """The picture of (1 - share) z0 + share z1."""
    return self.picture((1 - share) * np.asarray(z0) + share * np.asarray(z1))

  def samples(self, seed: int, temperature: float) -> np.ndarray:
    """A grid of new images from the prior.

    Raises:
      UserError: a negative temperature or seed.
    """
    if seed < 0 or seed >= 2**32:
      raise UserError(f"The seed {seed} must be from 0 to {2**32 - 1}.")
    key = jax.random.key(seed)
    images = self.model.sample(key, SAMPLES, temperature=temperature)
    return _flat(pictures.grid(images, 4))


def held_out(model: Model) -> np.ndarray:
  """Held-out images of the run's data: uint8 [n, h, w, c].

  Raises:
    UserError: the data are not there.
  """
  dataset = data.open_dataset(model.config.data, "test", model.config.seed)
  images, _ = read_images(dataset, range(min(len(dataset), IMAGES)))
  return images


def _flat(image: np.ndarray) -> np.ndarray:
  return image[..., 0] if image.shape[-1] == 1 else image


def _enlarged(image: np.ndarray) -> np.ndarray:
  """By a whole factor, so that pixels stay pixels."""
  factor = max(1, SIDE // max(image.shape[:2]))
  return _flat(image).repeat(factor, axis=0).repeat(factor, axis=1)

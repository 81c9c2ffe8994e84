"""Metrics of images: absolute error, PSNR, SSIM, sharpness."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gamix_jax.errors import UserError

SSIM_WINDOW = 11  # pixels; Gaussian of standard deviation 1.5


def sharpness(x: Float[Array, "b h w c"]) -> Float[Array, " b"]:
  """Variance of the response to the 3x3 Laplacian; larger is sharper.

  The kernel is [[0, 1, 0], [1, -4, 1], [0, 1, 0]], without padding. Grey is
  the plain mean of the channels. The images are mapped to [0, 1] first, as the
  published values are of such (Qin & Huang, arXiv:2405.12783, experiments);
  in [-1, 1] they would be 4 times as large.

  Args:
    x: [b, h, w, c] in [-1, 1].

  Returns:
    [b]; 0 of a constant image, 20 sigma^2 of noise with variance sigma^2 (on
    [0, 1]) in every pixel of a grey image.

  Raises:
    UserError: if h or w is under 3, or x has not 4 axes.
  """
  if x.ndim != 4 or min(x.shape[1:3]) < 3:
    raise UserError(
      f"sharpness needs images [b, h, w, c] of 3x3 or more, not {x.shape}."
    )
  grey = jnp.mean((x + 1) / 2, axis=-1)
  middle = grey[:, 1:-1, 1:-1]
  beside = grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
  above = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1]
  return jnp.var(beside + above - 4 * middle, axis=(1, 2))


def _pair(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Converts two sets of images to float64.

  Raises:
    UserError: they are not images of one shape.
  """
  x, y = (np.asarray(v, np.float64) for v in (x, y))
  if x.ndim != 4 or x.shape != y.shape:
    raise UserError(
      f"Two sets of images [b, h, w, c] are needed, not {x.shape}, {y.shape}."
    )
  return x, y


def absolute_error(
  x: Float[np.ndarray, "b h w c"], y: Float[np.ndarray, "b h w c"]
) -> Float[np.ndarray, " b"]:
  """Mean |x - y| over pixels and channels, [b]; of [-1, 1], so 0 to 2.

  Raises:
    UserError: the images differ in shape.
  """
  x, y = _pair(x, y)
  return np.abs(x - y).mean(axis=(1, 2, 3))


def psnr(
  x: Float[np.ndarray, "b h w c"], y: Float[np.ndarray, "b h w c"]
) -> Float[np.ndarray, " b"]:
  """Peak signal-to-noise ratio in dB, [b]: 10 log10(4 / mean (x - y)^2).

  4 is the square of the range of [-1, 1]. At most 106: a mean square under
  1e-10 counts as that, so that equal images have a number.

  Raises:
    UserError: the images differ in shape.

  Example:
    >>> black, grey = np.full((1, 4, 4, 1), -1.0), np.zeros((1, 4, 4, 1))
    >>> psnr(black, grey).round(2).tolist()
    [6.02]
  """
  x, y = _pair(x, y)
  square = np.square(x - y).mean(axis=(1, 2, 3))
  return 10 * np.log10(4 / np.maximum(square, 1e-10))


def ssim(
  x: Float[np.ndarray, "b h w c"], y: Float[np.ndarray, "b h w c"]
) -> Float[np.ndarray, " b"]:
  """Structural similarity, [b]; 1 of equal images.

  Wang et al., IEEE TIP 13(4), 2004: an 11x11 Gaussian window of standard
  deviation 1.5, K1 = 0.01, K2 = 0.03, means over the places where the window
  is inside the image, of each channel separately; dm-pix computes it.

  Args:
    x: [b, h, w, c] in [-1, 1], h and w 11 or more.
    y: the same.

  Raises:
    UserError: the images differ in shape, or are smaller than the window.
  """
  import dm_pix  # noqa: PLC0415

  _pair(x, y)
  if min(x.shape[1:3]) < SSIM_WINDOW:
    raise UserError(
      f"SSIM has a window of {SSIM_WINDOW}x{SSIM_WINDOW}; the images are "
      f"{x.shape[1]}x{x.shape[2]}."
    )
  # Range 1: dm-pix keeps variances over an absolute floor.
  a, b = ((jnp.asarray(v, jnp.float32) + 1) / 2 for v in (x, y))
  each = jax.jit(jax.vmap(dm_pix.ssim))(a, b)
  return np.asarray(each, np.float64)

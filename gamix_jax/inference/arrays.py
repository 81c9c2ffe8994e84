"""Validates input images and latents."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gamix_jax.errors import UserError
from gamix_jax.step import TrainSpec

# A float image may exceed [-1, 1] by this much (an eighth of a grey level), to
# allow for rounding.
RANGE_TOLERANCE = 1e-3


def images(
  spec: TrainSpec, x: ArrayLike, *, bounded: bool = True
) -> np.ndarray:
  """Validates images and returns them as uint8 or in the run's float dtype.

  Args:
    spec: the model's.
    x: [b, h, w, c] or [h, w, c].
    bounded: whether the values must be in [-1, 1] (or uint8).

  Raises:
    UserError: if shape, dtype or range is wrong, or a value is not finite.
  """
  x, shape = np.asarray(x), spec.image.shape
  if x.shape[-3:] != shape or x.ndim not in (3, 4) or not x.size:
    size = ", ".join(map(str, shape))
    raise UserError(
      f"Images have shape {x.shape}; it must be [b, {size}] or [{size}]."
    )
  if x.dtype == np.uint8 and bounded:
    return x
  x = floats(x, "Images", spec.dtype)
  if bounded and np.abs(x).max() > 1 + RANGE_TOLERANCE:
    raise UserError(
      f"Images have values from {x.min():.4g} to {x.max():.4g}; they must be "
      "floats in [-1, 1] (use x / 127.5 - 1 if they go to 255) or uint8."
    )
  return x


def batch(spec: TrainSpec, x: ArrayLike, **kwargs) -> np.ndarray:
  """Validates images and returns them as [b, h, w, c]; b = 1 for one image."""
  return images(spec, x, **kwargs).reshape(-1, *spec.image.shape)


def single(spec: TrainSpec, x: ArrayLike, what: str) -> np.ndarray:
  """Validates one image and returns it as [1, h, w, c].

  Raises:
    UserError: as `images`, or if there are several images.
  """
  x = batch(spec, x)
  if len(x) != 1:
    raise UserError(f"{what} needs exactly one image; {len(x)} were given.")
  return x


def latents(z: ArrayLike, latent: int, dtype: Any) -> np.ndarray:
  """Validates latents [..., d].

  Raises:
    UserError: if shape or dtype is wrong, or a value is not finite.
  """
  z = np.asarray(z)
  if z.shape[-1:] != (latent,) or not z.size:
    raise UserError(
      f"Latents have shape {z.shape}; it must be [..., {latent}]."
    )
  return floats(z, "Latents", dtype)


def floats(values: np.ndarray, what: str, dtype: Any) -> np.ndarray:
  """Casts floats to `dtype`.

  Raises:
    UserError: if the values are not floats, or not finite.
  """
  if not jnp.issubdtype(values.dtype, jnp.floating):
    also = " in [-1, 1], or uint8 from 0 to 255" if what == "Images" else ""
    raise UserError(
      f"{what} have dtype {values.dtype}; they must be floats{also}."
    )
  bad = values.size - np.isfinite(values).sum()
  if bad:
    raise UserError(
      f"{what} must be finite; {bad} of {values.size} values are not."
    )
  return values.astype(dtype)

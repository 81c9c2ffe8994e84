"""Images and latents as they come in, checked."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gamix_jax.errors import UserError
from gamix_jax.step import TrainSpec

# A float image may pass [-1, 1] by this, an eighth of a grey level: rounding.
SLACK = 1e-3


def images(
  spec: TrainSpec, x: ArrayLike, *, bounded: bool = True
) -> np.ndarray:
  """Checked images, [b, h, w, c] or [h, w, c], uint8 or this run's float.

  Raises:
    UserError: another shape, type or range, a number that is not finite.
  """
  x, shape = np.asarray(x), spec.image.shape
  if x.shape[-3:] != shape or x.ndim not in (3, 4) or not x.size:
    size = ", ".join(map(str, shape))
    raise UserError(
      f"Images of shape {x.shape} were given; wanted are [b, {size}] or "
      f"[{size}]."
    )
  if x.dtype == np.uint8 and bounded:
    return x
  x = floats(x, "Images", spec.dtype)
  if bounded and np.abs(x).max() > 1 + SLACK:
    raise UserError(
      f"Images from {x.min():.4g} to {x.max():.4g} were given; wanted are "
      "floats in [-1, 1] (x / 127.5 - 1 if they go to 255) or uint8."
    )
  return x


def batch(spec: TrainSpec, x: ArrayLike, **kwargs) -> np.ndarray:
  """`images` as [b, h, w, c]: a single one has b = 1."""
  return images(spec, x, **kwargs).reshape(-1, *spec.image.shape)


def single(spec: TrainSpec, x: ArrayLike, what: str) -> np.ndarray:
  """One image as [1, h, w, c].

  Raises:
    UserError: as `images`; there are several.
  """
  x = batch(spec, x)
  if len(x) != 1:
    raise UserError(f"{what} is of one image; given were {len(x)}.")
  return x


def latents(z: ArrayLike, latent: int, dtype: Any) -> np.ndarray:
  """Checked latents [..., d].

  Raises:
    UserError: another shape or type, a number that is not finite.
  """
  z = np.asarray(z)
  if z.shape[-1:] != (latent,) or not z.size:
    raise UserError(
      f"Latents of shape {z.shape} were given; wanted is [..., {latent}]."
    )
  return floats(z, "Latents", dtype)


def floats(values: np.ndarray, what: str, dtype: Any) -> np.ndarray:
  """Floats of this precision.

  Raises:
    UserError: they are none, or not finite.
  """
  if not jnp.issubdtype(values.dtype, jnp.floating):
    also = " in [-1, 1], or uint8 from 0 to 255" if what == "Images" else ""
    raise UserError(
      f"{what} of type {values.dtype} were given; wanted are floats{also}."
    )
  bad = values.size - np.isfinite(values).sum()
  if bad:
    raise UserError(
      f"{what} with {bad} of {values.size} numbers not finite were given."
    )
  return values.astype(dtype)

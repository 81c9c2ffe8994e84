"""Validates input images, observations of several modalities, and latents."""

import difflib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gamix_jax.errors import UserError
from gamix_jax.modality import MASK, Modality
from gamix_jax.step import TrainSpec

# A float image may exceed [-1, 1] by this much (an eighth of a grey level), to
# allow for rounding.
RANGE_TOLERANCE = 1e-3
# Probabilities may sum to 1 up to this.
SUM_TOLERANCE = 1e-3
LABEL = "label"  # entry of batches that no model reads


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
  return _pixels(x, "Images", spec.dtype, bounded)


def _pixels(
  x: np.ndarray, what: str, dtype: Any, bounded: bool = True
) -> np.ndarray:
  """Validates the values of images."""
  if x.dtype == np.uint8 and bounded:
    return x
  x = floats(x, what, dtype, " in [-1, 1], or uint8 from 0 to 255")
  if bounded and np.abs(x).max(initial=0) > 1 + RANGE_TOLERANCE:
    raise UserError(
      f"{what} have values from {x.min():.4g} to {x.max():.4g}; they must be "
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


def hidden(spec: TrainSpec, boxes: ArrayLike, b: int) -> np.ndarray:
  """Validates rectangles of b images and returns them as int32 [b, 4].

  Raises:
    UserError: another shape or type, or one that is not inside its image.
  """
  boxes = np.asarray(boxes)
  h, w, _ = spec.image.shape
  if boxes.shape != (b, 4) or boxes.dtype.kind not in "iu":
    raise UserError(
      f"hidden has shape {boxes.shape} and dtype {boxes.dtype}; it must be int "
      f"[{b}, 4]: first row, first column, height, width."
    )
  if (boxes < 0).any() or (boxes[:, :2] + boxes[:, 2:] > (h, w)).any():
    raise UserError(f"hidden has a rectangle that leaves an image of {h}x{w}.")
  return boxes.astype(np.int32)


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


def floats(
  values: np.ndarray, what: str, dtype: Any, also: str = ""
) -> np.ndarray:
  """Casts floats to `dtype`.

  Args:
    values: any array.
    what: the subject of messages, in the plural.
    dtype: of the result.
    also: what else can be given, for the message.

  Raises:
    UserError: if the values are not floats, or not finite.
  """
  if not jnp.issubdtype(values.dtype, jnp.floating):
    raise UserError(
      f"{what} have dtype {values.dtype}; they must be floats{also}."
    )
  bad = values.size - np.isfinite(values).sum()
  if bad:
    raise UserError(
      f"{what} must be finite; {bad} of {values.size} values are not."
    )
  return values.astype(dtype)


# ---------------------------------------------------------- several modalities


def observations(
  spec: TrainSpec, x: Mapping[str, ArrayLike]
) -> dict[str, np.ndarray]:
  """Validates observations of any subset of the modalities.

  Args:
    spec: the model's.
    x: by modality, [b, *shape]: uint8 or floats in [-1, 1] for images; classes
      as int [b, ...] or as probabilities [b, ..., classes]; otherwise floats.
      Optionally "mask" [b, m], 1 where a modality is observed, with a column
      for every modality of the model. A "label", as batches have it, is
      ignored.

  Returns:
    All modalities and the mask, float32 [b, m]. Whatever is missing is zeros.

  Raises:
    UserError: a modality that the model does not have, or none at all; arrays
      of different lengths or of a wrong shape, type or range; a row of which
      nothing is observed.
  """
  names = tuple(spec.modalities)
  given = _given(x, names)
  arrays = {k: np.asarray(x[k]) for k in given}
  for k, v in arrays.items():
    _check_shape(k, v, spec.modalities[k])
  rows = {k: len(v) for k, v in arrays.items()}
  b = rows[given[0]]
  if len(set(rows.values())) > 1:
    raise UserError(
      f"The modalities have different numbers of rows: {rows}; row i of all "
      "must be one observation. Mark missing ones in the mask."
    )
  mask = np.ones((b, len(names)), np.float32)
  if MASK in x:
    mask = _mask(np.asarray(x[MASK]), b, names)
  mask = mask * np.array([k in arrays for k in names], np.float32)
  check_rows(mask, "no observed modality, by mask and arrays together")
  out = {}
  for seen, (k, m) in zip(mask.T > 0, spec.modalities.items(), strict=True):
    values = np.zeros((0, *m.shape), m.dtype)
    if k in arrays:
      # What is missing is not looked at: it may be anything, also NaN.
      values = _values(arrays[k][seen], k, m, spec.dtype)
    out[k] = np.zeros((b, *m.shape), values.dtype)
    out[k][seen] = values
  return out | {MASK: mask}


def check_rows(mask: np.ndarray, problem: str) -> None:
  """Raises UserError if a row of a mask [b, m] is all zeros."""
  empty = np.flatnonzero(~mask.any(axis=1))
  if len(empty):
    raise UserError(
      f"{len(empty)} of {len(mask)} rows (the first is row {empty[0]}) have "
      f"{problem}; leave them out."
    )


def _given(
  x: Mapping[str, ArrayLike], names: tuple[str, ...]
) -> tuple[str, ...]:
  """The modalities that x has, in the model's order."""
  listed = ", ".join(names)
  if not isinstance(x, Mapping):
    raise UserError(
      "Observations of several modalities are a dict of arrays by name, as "
      f"{{{names[0]!r}: ...}}; this model has {listed}."
    )
  for k in x:
    if k not in (*names, MASK, LABEL):
      near = difflib.get_close_matches(str(k), names, 1)
      hint = f" (did you mean {near[0]!r}?)" if near else ""
      raise UserError(
        f"This model has no modality {k!r}{hint}; it has {listed}."
      )
  given = tuple(k for k in names if k in x)
  if not given:
    raise UserError(
      f"No modality is given; the dict needs one or more of {listed}."
    )
  return given


def _check_shape(name: str, x: np.ndarray, modality: Modality) -> None:
  """Raises UserError if x is not [b, *shape], or [b, ...] of classes."""
  shape = modality.shape
  classes = modality.likelihood.categorical and _is_indices(x)
  fits = x.shape[1:] == shape or (classes and x.shape[1:] == shape[:-1])
  if x.ndim and len(x) and fits:
    return
  size = "".join(f", {n}" for n in shape)
  also = ""
  if modality.likelihood.categorical:
    size_of_classes = "".join(f", {n}" for n in shape[:-1])
    also = f", or whole numbers of shape [b{size_of_classes}]"
  raise UserError(
    f"{name} has shape {x.shape}; it must be [b{size}]{also}, b > 0."
  )


def _is_indices(x: np.ndarray) -> bool:
  return np.issubdtype(x.dtype, np.integer)


def _mask(mask: np.ndarray, b: int, names: tuple[str, ...]) -> np.ndarray:
  if mask.shape != (b, len(names)):
    raise UserError(
      f"The mask has shape {mask.shape}; it must be [{b}, {len(names)}], with "
      f"a column for each of {', '.join(names)}."
    )
  if not np.isin(mask, (0, 1)).all():
    raise UserError(
      "The mask must be 1 where a modality is observed and 0 where it is "
      "missing; it has other values."
    )
  return mask.astype(np.float32)


def _values(
  x: np.ndarray, name: str, modality: Modality, dtype: Any
) -> np.ndarray:
  """Validates the observed rows of one modality; [n, *shape]."""
  what = f"Values of {name}"
  if modality.is_image:
    return _pixels(x, what, dtype)
  if not modality.likelihood.categorical:
    return floats(x, what, dtype)
  classes = modality.shape[-1]
  if _is_indices(x) and x.shape[1:] == modality.shape[:-1]:
    if x.size and not 0 <= x.min() <= x.max() < classes:
      raise UserError(
        f"{name} has classes from {x.min()} to {x.max()}; they must be from 0 "
        f"to {classes - 1}. Mark missing ones in the mask."
      )
    return np.eye(classes, dtype=dtype)[x]
  x = floats(x.astype(dtype) if _is_indices(x) else x, what, dtype)
  total = x.sum(axis=-1)
  if x.min(initial=0) < 0 or np.abs(total - 1).max(initial=0) > SUM_TOLERANCE:
    raise UserError(
      f"{what} must be probabilities of {classes} classes, which sum to 1, or "
      "numbers of classes."
    )
  return x

"""Arrays of a source as arrays of a batch: types, shapes and values checked."""

from typing import Any

import numpy as np

from gamix_jax.data.decode import ImageTransform
from gamix_jax.data.modalities import ModalitySpec, shape_text
from gamix_jax.data.multimodal import check_finite
from gamix_jax.errors import UserError

_TOLERANCE = 1e-3  # of sums of probabilities, and of the ends of ranges


def prepare(
  spec: ModalitySpec,
  array: np.ndarray,
  seen: np.ndarray,
  transform: ImageTransform | None,
  where: str,
) -> np.ndarray:
  """One modality of several observations, as batches have it.

  Args:
    spec: of the modality.
    array: [n, ...], as `MultimodalArrays` takes it.
    seen: bool [n]: whether each is there. The values of others do not matter.
    transform: of images; None for others.
    where: the source, for messages.

  Returns:
    uint8 [n, h, w, c] of images, float32 [n, *shape] of others.

  Raises:
    UserError: the array has another shape or type than the entry in
      `data.modalities` says, or values out of its likelihood's range.
  """
  if transform is not None:
    return _images(spec, array, transform, where)
  if spec.is_categorical:
    return _classes(spec, array, seen, where)
  if spec.shape == (1,) and array.ndim == 1:
    array = array[:, None]
  if array.shape[1:] != spec.shape or array.dtype.kind not in "buif":
    raise _mismatch(spec, array, where)
  values = _floats(array)
  check_finite(values, seen, f"{where}: {spec.name}")
  if spec.likelihood == "bernoulli":
    _check_range(spec, values, seen, where)
  return values


def mean_values(spec: ModalitySpec, prepared: np.ndarray) -> np.ndarray:
  """The mean value of each observation, float64 [n]; of classes their number.

  Args:
    spec: of the modality.
    prepared: from `prepare`, [n, ...].
  """
  if spec.is_categorical:
    prepared = prepared @ np.arange(spec.shape[-1], dtype=np.float32)
  return prepared.reshape(len(prepared), -1).mean(axis=1, dtype=np.float64)


def _images(
  spec: ModalitySpec, array: np.ndarray, transform: ImageTransform, where: str
) -> np.ndarray:
  grey, colour = 3, 4
  if (
    array.dtype != np.uint8
    or array.ndim not in (grey, colour)
    or (array.ndim == colour and array.shape[3] not in (1, 3))
  ):
    raise _mismatch(spec, array, where, "images are uint8 [n, h, w, 1 or 3]")
  if array.ndim == grey:
    array = array[..., None]
  if array.shape[1:] == spec.shape:
    return array
  out = np.empty((len(array), *spec.shape), np.uint8)
  for i, image in enumerate(array):
    out[i] = transform(image)
  return out


def _classes(
  spec: ModalitySpec, array: np.ndarray, seen: np.ndarray, where: str
) -> np.ndarray:
  """One-hot from class numbers, or probabilities as they are."""
  k = spec.shape[-1]
  name = f"{where}: {spec.name}"
  if k > 1 and array.shape[1:] == (*spec.shape[:-1], 1):
    array = array[..., 0]
  if array.dtype.kind in "iu" and array.shape[1:] == spec.shape[:-1]:
    outside = seen & ((array < 0) | (array >= k)).reshape(len(array), -1).any(1)
    if outside.any():
      row = np.flatnonzero(outside)[0]
      raise UserError(
        f"{name} has the class {_text(array[row])} in row {row}, but"
        f" data.modalities says {k} classes, 0 to {k - 1}. Give their number,"
        " or a mask of 0 where there is no class."
      )
    return np.eye(k, dtype=np.float32)[array.clip(0, k - 1)]
  if array.shape[1:] != spec.shape or array.dtype.kind not in "buif":
    raise _mismatch(
      spec,
      array,
      where,
      f"classes are whole numbers [n] from 0 to {k - 1}, or probabilities"
      f" [n, {k}]",
    )
  values = _floats(array)
  check_finite(values, seen, name)
  wrong = (values < -_TOLERANCE) | (
    np.abs(values.sum(-1, keepdims=True) - 1) > _TOLERANCE
  )
  rows = np.flatnonzero(seen & wrong.reshape(len(values), -1).any(axis=1))
  if len(rows):
    raise UserError(
      f"{name}: row {rows[0]} holds no probabilities of {k} classes, which are"
      " 0 or more and sum to 1. Give these, or class numbers [n]."
    )
  return values


def _floats(array: np.ndarray) -> np.ndarray:
  """The array as float32; numbers that are too large become infinity."""
  with np.errstate(over="ignore", invalid="ignore"):
    return array.astype(np.float32, copy=False)


def _check_range(
  spec: ModalitySpec, values: np.ndarray, seen: np.ndarray, where: str
) -> None:
  """Raises UserError for Bernoulli values out of [-1, 1]."""
  there = values if seen.all() else values[seen]
  low, high = there.min(initial=0), there.max(initial=0)
  if low < -1 - _TOLERANCE or high > 1 + _TOLERANCE:
    raise UserError(
      f"{where}: {spec.name} has values from {low:g} to {high:g}, but those of"
      " bernoulli are from -1 (off) to 1 (on). Rescale them."
    )


def _mismatch(
  spec: ModalitySpec, array: np.ndarray, where: str, wanted: str = ""
) -> UserError:
  shape = array.shape[1:]
  said = f"data.modalities says {spec}"
  if wanted:
    what = f"{said}, and {wanted}."
  elif array.dtype.kind not in "buif":
    what = f"{said}, which are numbers."
  else:
    entry = f"{spec.name} {shape_text(shape or (1,))} {spec.likelihood}"
    what = f"{said}. Write {entry!r} there, or reshape the array."
  return UserError(
    f"{where}: {spec.name} is {array.dtype} {list(array.shape)},"
    f" [{', '.join(map(str, shape)) or 'one number'}] an observation; {what}"
  )


def _text(value: Any) -> str:
  return str(value if np.ndim(value) == 0 else value.tolist())

"""Labels in arrays of any type, as class numbers and names.

Labels that are numbers from 0 to 65,535 stay as they are. All others, words or
numbers out of that range, are sorted and numbered 0, 1, ...; they are the names
of the classes then. -1 always means no label.
"""

import logging
from collections.abc import Sequence

import numpy as np

from gamix_jax.errors import UserError

log = logging.getLogger(__name__)

MAX_CLASSES = 1 << 16  # a label from this number on is not a class number


def encode(
  arrays: Sequence[np.ndarray], where: str
) -> tuple[list[np.ndarray], tuple[str, ...]]:
  """Class numbers of the labels of one data set.

  Args:
    arrays: the labels of each split: [n] or [n, 1] of whole numbers of any
      type, booleans or strings; or one-hot [n, k].
    where: the source, for messages.

  Returns:
    int32 [n] for each split, and the names of the classes, empty where labels
    stay as they are.

  Raises:
    UserError: the arrays are something else.
  """
  flat = [_flat(a, where) for a in arrays]
  none = sum(int((a == -1).sum()) for a in flat if a.dtype.kind == "i")
  if none:
    log.info("%s: -1 is no label; %d images have none", where, none)
  if all(a.dtype.kind in "iu" for a in flat):
    small = [a[a != -1] if a.dtype.kind == "i" else a for a in flat]
    small = [a for a in small if len(a)]
    if all(a.min() >= 0 and a.max() < MAX_CLASSES for a in small):
      return [a.astype(np.int32) for a in flat], ()
  elif any(a.dtype.kind in "iu" for a in flat):
    raise UserError(f"{where}: the labels are numbers in one split only.")
  values = np.unique(np.concatenate([np.unique(a) for a in flat]))
  if values.dtype.kind == "i":
    values = values[values != -1]
  log.info("%s: %d classes, numbered from 0 in their order", where, len(values))
  return [_places(a, values) for a in flat], tuple(map(_word, values))


def _places(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
  """The index of each label in the sorted values: int32 [n]; -1 stays -1."""
  places = np.searchsorted(values, labels).astype(np.int32)
  if labels.dtype.kind == "i":
    places[labels == -1] = -1
  return places


def _word(value: np.generic) -> str:
  if isinstance(value, bytes):
    return value.decode("utf-8", "backslashreplace")
  return str(value).encode("utf-8", "backslashreplace").decode()


def _flat(labels: np.ndarray, where: str) -> np.ndarray:
  """The labels as an array [n] of whole numbers or words.

  Raises:
    UserError: they are neither.
  """
  kind = labels.dtype.kind
  # Floats that are whole numbers exactly, which nan is not.
  whole = kind == "f" and bool(
    ((labels == np.floor(labels)) & (np.abs(labels) < 2.0**53)).all()
  )
  if kind == "b" or whole:
    labels, kind = labels.astype(np.int64), "i"
  if labels.ndim == 2 and labels.shape[1] == 1:
    labels = labels[:, 0]
  if labels.ndim == 1 and kind in "iuSU":
    return labels
  one_hot = labels.ndim == 2 and kind in "iu" and np.isin(labels, (0, 1)).all()
  if one_hot and (labels.sum(axis=1) == 1).all():
    return labels.argmax(axis=1)
  raise UserError(
    f"{where} is {labels.dtype} {list(labels.shape)}, but labels are whole"
    " numbers or strings [n], or one-hot [n, classes], one for each image. Fix"
    " it or leave it out."
  )

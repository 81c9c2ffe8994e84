"""Labels as archives have them, as the numbers that this package counts with.

A label is kept as it is where it is a number from 0 to 65,535, which may be
the number of a class. Words, and numbers that cannot, get the numbers 0, 1,
... in their order, and are the classes' names. -1 is no label, always.
"""

import logging
from collections.abc import Sequence

import numpy as np

from gamix_jax.errors import UserError

log = logging.getLogger(__name__)

MAX_CLASSES = 1 << 16  # from this number on a label cannot be that of a class


def encode(
  arrays: Sequence[np.ndarray], where: str
) -> tuple[list[np.ndarray], tuple[str, ...]]:
  """Labels of the splits of one set, as numbers.

  Args:
    arrays: labels [n] or [n, 1]: whole numbers of any type, booleans, strings;
      or one-hot [n, k].
    where: for messages.

  Returns:
    int32 [n] of each, and the classes' names, empty where the numbers are
    their names.

  Raises:
    UserError: they are something else.
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
  """Where each label is in the sorted values: int32 [n]; -1 stays."""
  places = np.searchsorted(values, labels).astype(np.int32)
  if labels.dtype.kind == "i":
    places[labels == -1] = -1
  return places


def _word(value: np.generic) -> str:
  if isinstance(value, bytes):
    return value.decode("utf-8", "backslashreplace")
  return str(value).encode("utf-8", "backslashreplace").decode()


def _flat(labels: np.ndarray, where: str) -> np.ndarray:
  """[n], of whole numbers or words.

  Raises:
    UserError: they are neither.
  """
  kind = labels.dtype.kind
  # Floats that hold whole numbers exactly; nan is none.
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

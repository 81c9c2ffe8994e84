"""The range of arrays that do not state it: which number is black, which white.

Known ranges are 0..1 and -1..1 for floats, 0..255 for floats and integers,
0..65535 for uint16, and booleans. One of them is chosen if the numbers fit it
and leave no doubt: they reach its brighter half and, for -1..1, its lowest
eighth. So integers in 0/1 or 0..16 and floats in [-0.5, 0.5] or [0, 0.004] are
refused, and the user has to set `data.range`. Only uint8 arrays of a single
value, and zeros of any type, are accepted as they are, since there is nothing
to judge by.

Numbers that are outside by rounding, up to a thousandth of the range, are
clipped.
"""

import logging
from collections.abc import Sequence

import numpy as np

from gamix_jax.errors import UserError

log = logging.getLogger(__name__)

TOLERANCE = 1e-3  # of the range
# By the kind of the dtype; the first one that fits is chosen.
KNOWN_RANGES = {
  "b": ((0, 1),),
  "u": ((0, 255),),
  "i": ((0, 255),),
  "f": ((0, 1), (-1, 1), (0, 255)),
}


def find_range(
  arrays: Sequence[np.ndarray],
  stated: tuple[float, float] | None,
  where: str,
) -> tuple[float, float]:
  """The numbers that mean black and white; logged with the numbers found.

  Args:
    arrays: images of one data set: booleans, integers or floats.
    stated: (black, white) if the user stated them; None: judged by the
      numbers.
    where: the source, for messages.

  Raises:
    UserError: numbers that are not finite or not in the stated range, or none
      is stated and the numbers leave a doubt.
  """
  with np.errstate(invalid="ignore"):
    ends = [(a.dtype, a.min(), a.max()) for a in arrays]
  low, high = min(e[1] for e in ends), max(e[2] for e in ends)
  if not all(np.isfinite(v) for e in ends for v in e[1:]):
    raise UserError(f"{where}: the images hold values that are not finite.")
  dtype = np.result_type(*arrays)
  found = f"{where}: {dtype} pixels from {low!s} to {high!s}"
  chosen = stated or _evident(dtype, float(low), float(high))
  # Two splits may have different ranges, each of them without doubt.
  each = {_evident(d, float(v), float(w)) for d, v, w in ends if v != w}
  if chosen is None or (not stated and len(each - {None, chosen})):
    raise UserError(
      f"{found}: it is in doubt which number is black and which is white. Say"
      f" it with --config.data.range, {_choices(dtype, low, high)}."
    )
  black, white = chosen
  if not _fit(float(low), float(high), black, white):
    raise UserError(
      f"{found} are not in the stated range, from {black} (black) to"
      f' {white} (white). State theirs: --config.data.range="(BLACK,WHITE)".'
    )
  how = "stated" if stated else "taken; data.range can say otherwise"
  log.info("%s, black is %s and white %s (%s)", found, black, white, how)
  return black, white


def _fit(low: float, high: float, black: float, white: float) -> bool:
  noise = TOLERANCE * (white - black)
  return black - noise <= low and high <= white + noise


def _known(dtype: np.dtype) -> tuple[tuple[float, float], ...]:
  wide = ((0, 65535),) if dtype == np.uint16 else ()
  return (*KNOWN_RANGES[dtype.kind], *wide)


def _evident(
  dtype: np.dtype, low: float, high: float
) -> tuple[float, float] | None:
  """The known range of the numbers; None if there is a doubt."""
  known = _known(dtype)
  if dtype.kind == "b" or (low == high and (dtype == np.uint8 or high == 0)):
    return known[0]
  for black, white in known:
    begins = black == 0 or low <= black + (white - black) / 8
    if _fit(low, high, black, white) and begins and high >= (black + white) / 2:
      return black, white
  return None


def _choices(dtype: np.dtype, low, high) -> str:
  """Ranges to choose from, as flags: the one found, and known ones that fit."""
  whole = (0 if low > -TOLERANCE else low, high)
  fitting = [r for r in _known(dtype) if _fit(float(low), float(high), *r)]
  choices = dict.fromkeys([whole, *fitting])
  return " or ".join(f'"({b!s},{w!s})"' for b, w in choices if b < w)


def to_uint8(images: np.ndarray, black: float, white: float) -> np.ndarray:
  """Images as uint8: `black` becomes 0 and `white` 255, others are clipped."""
  if images.dtype == np.uint8 and (black, white) == (0, 255):
    return images
  out = np.empty(images.shape, np.uint8)
  # A slice at a time, to save memory.
  for i in range(0, len(images), 1024):
    part = images[i : i + 1024].astype(np.float32)
    part = np.round((part - black) * (255 / (white - black)))
    out[i : i + 1024] = part.clip(0, 255)
  return out

"""Which number is black and which is white, in arrays that do not say.

Known are 0..1 and -1..1 for floats, 0..255 for both, 0..65535 for uint16, and
booleans. One of them is taken where the numbers fit it and leave no doubt:
they reach the brighter half and, for -1..1, an eighth of it from below. So 0/1
or 0..16 in integers, [-0.5, 0.5] or [0, 0.004] in floats are refused, and
`data.range` settles it. Only uint8 of one value, or zeros of any type, are
taken as they are: there is nothing in them to judge by.

What lies outside by rounding, up to a thousandth of the range, is clipped.
"""

import logging
from collections.abc import Sequence

import numpy as np

from gamix_jax.errors import UserError

log = logging.getLogger(__name__)

TOLERANCE = 1e-3  # of the range
# Of a dtype's kind, the first that fits is taken.
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
  """The numbers that mean black and white; logs them, and what was found.

  Args:
    arrays: images of one set, of booleans, integers or floats.
    stated: black and white, where that is said; None: judged.
    where: for messages.

  Raises:
    UserError: numbers that are not finite or not in the stated range; none is
      stated and there is a doubt.
  """
  with np.errstate(invalid="ignore"):
    ends = [(a.dtype, a.min(), a.max()) for a in arrays]
  low, high = min(e[1] for e in ends), max(e[2] for e in ends)
  if not all(np.isfinite(v) for e in ends for v in e[1:]):
    raise UserError(f"{where}: the images hold values that are not finite.")
  dtype = np.result_type(*arrays)
  found = f"{where}: {dtype} pixels from {low!s} to {high!s}"
  chosen = stated or _evident(dtype, float(low), float(high))
  # Of two splits that differ, each may be without doubt.
  each = {_evident(d, float(v), float(w)) for d, v, w in ends if v != w}
  if chosen is None or (not stated and len(each - {None, chosen})):
    raise UserError(
      f"{found}: it is in doubt which number is black and which is white. Say"
      f" it with --config.data.range, {_choices(dtype, low, high)}."
    )
  black, white = chosen
  if not _fit(float(low), float(high), black, white):
    raise UserError(
      f"{found} do not lie in the stated range, from {black} (black) to"
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
  """The known range that the numbers are of without doubt."""
  known = _known(dtype)
  if dtype.kind == "b" or (low == high and (dtype == np.uint8 or high == 0)):
    return known[0]
  for black, white in known:
    begins = black == 0 or low <= black + (white - black) / 8
    if _fit(low, high, black, white) and begins and high >= (black + white) / 2:
      return black, white
  return None


def _choices(dtype: np.dtype, low, high) -> str:
  """Ranges that may be meant, as flags: those found, and the known that fit."""
  whole = (0 if low > -TOLERANCE else low, high)
  fitting = [r for r in _known(dtype) if _fit(float(low), float(high), *r)]
  choices = dict.fromkeys([whole, *fitting])
  return " or ".join(f'"({b!s},{w!s})"' for b, w in choices if b < w)


def to_uint8(images: np.ndarray, black: float, white: float) -> np.ndarray:
  """uint8, `black` to 0 and `white` to 255; a slice at a time to save memory.

  What lies outside is clipped.
  """
  if images.dtype == np.uint8 and (black, white) == (0, 255):
    return images
  out = np.empty(images.shape, np.uint8)
  for i in range(0, len(images), 1024):
    part = images[i : i + 1024].astype(np.float32)
    part = np.round((part - black) * (255 / (white - black)))
    out[i : i + 1024] = part.clip(0, 255)
  return out

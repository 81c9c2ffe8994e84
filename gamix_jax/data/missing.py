"""Which modalities of an observation are treated as missing.

random   each modality of each observation with probability p, independently.
         Where that would be all of them, one, chosen at random, stays. So of M
         modalities the fraction p - p^M / M is missing.
value    not at random: of each modality the fraction p of the observations that
         has the largest mean value, and of equal values the first ones. The
         value of classes is their number. Where that would be all modalities of
         an observation, the one that is the smallest within its modality stays.

Both are functions of the split, the index, the fraction and the data, so every
host and every run has the same ones. The draws must not change.
"""

from collections.abc import Callable

import numpy as np

_RANDOM = 16  # what these draws decide; different from other users' keys


def observed(
  own: np.ndarray,
  fraction: float,
  by: str,
  split: str,
  values: Callable[[], np.ndarray],
) -> np.ndarray:
  """The mask of a split.

  Args:
    own: the source's mask, bool [n, M]; at least one modality of each row.
    fraction: that is treated as missing, in [0, 1).
    by: "random" or "value".
    split: "train" or "test".
    values: the mean value of each modality of each observation, float [n, M],
      NaN where there is none; called only where it is needed.

  Returns:
    bool [n, M]: `own` without what is treated as missing; a row of which
    nothing would be left is as in `own`.
  """
  if not fraction:
    return own
  keep = {"random": _at_random, "value": _by_value}[by]
  left = own & keep(own.shape, fraction, split, values)
  return np.where(left.any(axis=1, keepdims=True), left, own)


def _at_random(
  shape: tuple[int, int],
  fraction: float,
  split: str,
  values: Callable[[], np.ndarray],
) -> np.ndarray:
  del values
  # Row i depends on i alone: it takes the i-th M numbers of the generator.
  u = np.random.default_rng((_RANDOM, split == "test")).random(shape)
  return _with_one(u >= fraction, u)


def _by_value(
  shape: tuple[int, int],
  fraction: float,
  split: str,
  values: Callable[[], np.ndarray],
) -> np.ndarray:
  del split
  value = values()
  keep = np.ones(shape, bool)
  rank = np.full(shape, -1.0)  # of the value, from 0 (largest) to 1 (smallest)
  for m in range(shape[1]):
    rows = np.flatnonzero(~np.isnan(value[:, m]))
    order = rows[np.argsort(-value[rows, m], kind="stable")]
    keep[order[: round(fraction * len(rows))], m] = False
    rank[order, m] = np.arange(len(rows)) / max(len(rows), 1)
  # A modality that is not there cannot be the one that stays.
  return _with_one(keep & ~np.isnan(value), rank)


def _with_one(keep: np.ndarray, score: np.ndarray) -> np.ndarray:
  """`keep`; in rows of zeros, the modality with the largest score as well."""
  best = score.argmax(axis=1)
  stays = np.arange(keep.shape[1]) == best[:, None]
  return np.where(keep.any(axis=1, keepdims=True), keep, stays)

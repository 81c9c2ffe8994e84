"""The batch of step t, a function of (seed, t) alone.

Row r of step t has position p = t B + r, counted over all epochs. Position p is
image perm_e[p mod n] of epoch e = p div n, where perm_e is a permutation drawn
from (seed, e). So an epoch has every image once, a batch may have images of two
epochs, and a data set smaller than a batch repeats in it. Whether row r of step
t is mirrored is drawn from (seed, t), and so are the levels of binary pixels.

Every host computes the same global rows and uses its own. Starting at any step
costs nothing.

These draws decide which batches a resumed run sees: they must not change.
"""

import numpy as np

from gamix_jax.data.binary import draw_levels
from gamix_jax.errors import UserError

_ORDER, _FLIP, _LEVELS = 0, 1, 2  # what a draw decides


def _rng(seed: int, what: int, t: int) -> np.random.Generator:
  return np.random.default_rng((seed % 2**63, what, t))


class IndexSampler:
  """Which images make the batch of a step, and which are mirrored."""

  def __init__(
    self, n: int, batch_size: int, seed: int, *, shuffle: bool, flip: bool
  ):
    """`n` images in global batches of `batch_size`."""
    self._n, self._b, self._seed = n, batch_size, seed
    self._shuffle, self._flip = shuffle, flip
    self._epochs: dict[int, np.ndarray] = {}

  def rows(self, t: int) -> np.ndarray:
    """Indices of the global batch of step t: int64 [b]."""
    epoch, i = np.divmod(t * self._b + np.arange(self._b), self._n)
    if not self._shuffle:
      return i
    out = np.empty_like(i)
    for e in np.unique(epoch):
      out[epoch == e] = self._permutation(int(e))[i[epoch == e]]
    return out

  def flips(self, t: int) -> np.ndarray:
    """Which rows of step t are mirrored: bool [b]."""
    if not self._flip:
      return np.zeros(self._b, bool)
    return _rng(self._seed, _FLIP, t).random(self._b) < 0.5

  def levels(self, t: int, shape: tuple[int, ...]) -> np.ndarray:
    """Levels for `binarize` of all rows of step t: uint8 [b, *shape]."""
    return draw_levels(_rng(self._seed, _LEVELS, t), (self._b, *shape))

  def _permutation(self, epoch: int) -> np.ndarray:
    found = self._epochs.get(epoch)
    if found is None:
      found = _rng(self._seed, _ORDER, epoch).permutation(self._n)
      # A batch needs two epochs at most, unless the set is tiny. A new dict
      # instead of a change, since other threads read this one.
      kept = {e: p for e, p in self._epochs.items() if abs(e - epoch) <= 1}
      self._epochs = kept | {epoch: found}
    return found


def local_rows(
  batch_size: int, process_index: int, process_count: int
) -> slice:
  """One host's rows of the global batch.

  Raises:
    UserError: they cannot be shared evenly.
  """
  share, rest = divmod(batch_size, process_count)
  if rest:
    raise UserError(
      f"data.batch_size={batch_size} does not divide by {process_count} hosts."
    )
  return slice(process_index * share, (process_index + 1) * share)

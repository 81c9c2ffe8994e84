"""How well several completions of an incomplete image cover what there was."""

import numpy as np
import scipy.special
from jaxtyping import Float, Int


def completion_errors(
  x: Float[np.ndarray, "n h w c"],
  completed: Float[np.ndarray, "s n h w c"],
  hidden: Float[np.ndarray, "n h w 1"],
) -> dict[str, Float[np.ndarray, " n"]]:
  """Errors in the hidden and in the visible part of each image.

  Args:
    x: the whole images, in [-1, 1].
    completed: s completions of each.
    hidden: 1 where the encoder saw nothing, else 0; both occur in each image.

  Returns:
    Of each image, in the unit of its pixels: `completion_mae`, the mean
    absolute error of its completions where it is hidden; `completion_mae_best`,
    that of the best of them; `visible_mae`, their error where it is not hidden.
  """
  hidden = np.broadcast_to(hidden, x.shape)
  error = np.abs(completed - x)
  within = _mean(error, hidden)
  return {
    "completion_mae": within.mean(axis=0),
    "completion_mae_best": within.min(axis=0),
    "visible_mae": _mean(error, 1 - hidden).mean(axis=0),
  }


def diversity(
  completed: Float[np.ndarray, "s n h w c"],
  weights: Float[np.ndarray, "s n"],
  hidden: Float[np.ndarray, "n h w 1"],
) -> Float[np.ndarray, " n"]:
  """Mean absolute difference of two different completions where x is hidden.

      sum_{i != j} w_i w_j d(i, j) / sum_{i != j} w_i w_j

  Args:
    completed: s completions of each image.
    weights: of the completions; 0 for each image with a single one.
    hidden: see `completion_errors`.
  """
  hidden = np.broadcast_to(hidden, completed.shape[1:])
  total, pairs = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
  for i in range(len(completed)):
    for j in range(i):
      both = weights[i] * weights[j]
      total += both * _mean(np.abs(completed[i] - completed[j]), hidden)
      pairs += both
  return np.divide(total, pairs, out=np.zeros_like(total), where=pairs > 0)


def effective_number(
  classes: Int[np.ndarray, "s n"], weights: Float[np.ndarray, "s n"]
) -> Float[np.ndarray, " n"]:
  """exp of the entropy of the classes' weights: how many classes there are.

  Args:
    classes: of s completions of each image, 0 or more.
    weights: of the completions; they sum to 1 over s.
  """
  number = classes.max() + 1
  one_hot = classes[..., None] == np.arange(number)
  share = np.einsum("sn,snk->nk", np.asarray(weights, np.float64), one_hot)
  return np.exp(scipy.special.entr(share).sum(axis=1))


def _mean(values: np.ndarray, where: np.ndarray) -> np.ndarray:
  """The mean over the last three axes of the values where `where` is 1."""
  axes = (-3, -2, -1)
  return (values * where).sum(axis=axes) / where.sum(axis=axes)

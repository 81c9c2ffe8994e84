"""Latents: interpolation, traversal, and 2D projections."""

from collections.abc import Sequence

import numpy as np

from gamix_jax import metrics
from gamix_jax.errors import UserError
from gamix_jax.posterior import Posterior
from gamix_jax.registry import check_choice

PATHS = ("straight", "spherical")
# Two directions count as equal or opposite if the sine of their angle is less.
PARALLEL_SINE = 1e-6
MAP_METHODS = ("pca", "tsne", "umap")
PERPLEXITY = 30.0  # of t-SNE: scikit-learn's default; (n - 1) / 3 if less
NEIGHBORS = 15  # of UMAP: its default
MIN_POINTS = 4


def between(a: np.ndarray, b: np.ndarray, steps: int, path: str) -> np.ndarray:
  """Interpolates from a to b, both included: [steps, d].

      straight    (1 - t) a + t b
      spherical   slerp of the directions (Shoemake 1985; for latents White,
                  arXiv:1609.04468), linear interpolation of the lengths

  If the directions are equal or opposite, there is no unique arc and the path
  is straight.

  Raises:
    UserError: if steps < 2 or the path is unknown.
  """
  check_choice("path", path, PATHS)
  if steps < 2:
    raise UserError(f"steps={steps} must be 2 or more, to include both ends.")
  a, b = (np.asarray(v, np.float64) for v in (a, b))
  if path == "straight":
    return np.linspace(a, b, steps)
  lengths = [np.linalg.norm(v) for v in (a, b)]
  if not min(lengths):
    return np.linspace(a, b, steps)
  u, v = a / lengths[0], b / lengths[1]
  angle = np.arccos(np.clip(u @ v, -1, 1))
  if np.sin(angle) < PARALLEL_SINE:
    return np.linspace(a, b, steps)
  t = np.linspace(0, 1, steps)[:, None]
  turned = np.sin((1 - t) * angle) * u + np.sin(t * angle) * v
  return np.linspace(*lengths, steps)[:, None] * turned / np.sin(angle)


def around(
  q: Posterior, dims: int | Sequence[int], span: float, steps: int
) -> np.ndarray:
  """Moves q's mean along one or two latents: [steps, d] or [steps, steps, d].

  The offsets go from -span to span, in standard deviations of q; for a point,
  which has none, in those of N(0, I). For a mixture,
  mean and standard deviation are those of the full mixture, see
  `metrics.total_variance`.

  Raises:
    UserError: if dims is not one latent or two different ones, span is not
      positive and finite, or steps < 2.
  """
  mean = np.asarray(q.mean(), np.float64)[0]
  moved = [dims] if np.ndim(dims) == 0 else list(dims)
  integers = all(isinstance(d, int | np.integer) for d in moved)
  if not integers or len(moved) not in (1, 2) or len(set(moved)) != len(moved):
    raise UserError(f"dims={dims!r} must be one latent or two different ones.")
  if not all(0 <= d < len(mean) for d in moved):
    raise UserError(
      f"dims={dims!r} must be from 0 to {len(mean) - 1} for this model."
    )
  if not 0 < span < np.inf or steps < 2:
    raise UserError(
      f"span={span} must be > 0 and finite, steps={steps} 2 or more."
    )
  std = np.sqrt(np.asarray(metrics.total_variance(q), np.float64)[0])
  if not q.has_density:  # a point has no width
    std = np.ones_like(std)
  units = np.linspace(-span, span, steps)
  z = np.tile(mean, (steps,) * len(moved) + (1,))
  for axis, d in enumerate(moved):
    shape = [1] * len(moved)
    shape[axis] = steps
    z[..., d] += (units * std[d]).reshape(shape)
  return z


def project(z: np.ndarray, method: str, seed: int) -> np.ndarray:
  """Projects latents [b, d] to float64 [b, 2]; zeros if all are equal.

  Raises:
    UserError: if the method is unknown or not installed, b < MIN_POINTS or
      d < 2.
  """
  check_choice("method", method, MAP_METHODS)
  n, d = z.shape
  if n < MIN_POINTS or d < 2:
    raise UserError(
      f"A map needs at least {MIN_POINTS} images and 2 latents; there are {n} "
      f"and {d}."
    )
  z = np.asarray(z, np.float64)
  if not np.ptp(z, axis=0).any():  # the methods divide by the variance
    return np.zeros((n, 2))
  return np.asarray(_MAPS[method](z, seed), np.float64)


def _pca(z: np.ndarray, seed: int) -> np.ndarray:
  from sklearn.decomposition import PCA  # noqa: PLC0415  (takes a second)

  return PCA(2, random_state=seed).fit_transform(z)


def _tsne(z: np.ndarray, seed: int) -> np.ndarray:
  from sklearn.manifold import TSNE  # noqa: PLC0415

  perplexity = min(PERPLEXITY, (len(z) - 1) / 3)
  return TSNE(perplexity=perplexity, random_state=seed).fit_transform(z)


def _umap(z: np.ndarray, seed: int) -> np.ndarray:
  try:
    from umap import UMAP  # noqa: PLC0415
  except ImportError as e:
    raise UserError(
      "method='umap' needs umap-learn: pip install umap-learn."
    ) from e
  neighbors = min(NEIGHBORS, len(z) - 1)
  # One thread: with several, UMAP is not deterministic.
  return UMAP(n_neighbors=neighbors, random_state=seed, n_jobs=1).fit_transform(
    z
  )


_MAPS = {"pca": _pca, "tsne": _tsne, "umap": _umap}

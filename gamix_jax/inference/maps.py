"""2D projections of latents, by scikit-learn or umap-learn."""

import numpy as np

from gamix_jax.errors import UserError

METHODS = ("pca", "tsne", "umap")
PERPLEXITY = 30.0  # of t-SNE: scikit-learn's default; (n - 1) / 3 if less
NEIGHBORS = 15  # of UMAP: its default
MIN_POINTS = 4


def plane(z: np.ndarray, method: str, seed: int) -> np.ndarray:
  """Projects latents [b, d] to float64 [b, 2]; zeros if all are equal.

  Raises:
    UserError: if the method is unknown or not installed, b < MIN_POINTS or
      d < 2.
  """
  if method not in METHODS:
    raise UserError(f"method={method!r} must be one of {', '.join(METHODS)}.")
  n, d = z.shape
  if n < MIN_POINTS or d < 2:
    raise UserError(
      f"A map needs at least {MIN_POINTS} images and 2 latents; there are {n} "
      f"and {d}."
    )
  z = np.asarray(z, np.float64)
  if not np.ptp(z, axis=0).any():  # the methods divide by the variance
    return np.zeros((n, 2))
  return np.asarray(_METHODS[method](z, seed), np.float64)


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


_METHODS = {"pca": _pca, "tsne": _tsne, "umap": _umap}

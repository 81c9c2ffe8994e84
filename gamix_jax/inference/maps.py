"""Latents in the plane, by scikit-learn or umap-learn."""

import numpy as np

from gamix_jax.errors import UserError

METHODS = ("pca", "tsne", "umap")
PERPLEXITY = 30.0  # of t-SNE, scikit-learn's own; a third of few points
NEIGHBORS = 15  # of UMAP, its own
FEWEST = 4


def plane(z: np.ndarray, method: str, seed: int) -> np.ndarray:
  """Latents [b, d] -> [b, 2], float64; zeros of latents that are all one.

  Raises:
    UserError: no such method, or it is not installed; under 4 points; one
      latent only.
  """
  if method not in METHODS:
    raise UserError(f"method={method!r} must be one of {', '.join(METHODS)}.")
  n, d = z.shape
  if n < FEWEST or d < 2:
    raise UserError(
      f"A map wants {FEWEST} images and 2 latents or more; given were {n} "
      f"and {d}."
    )
  z = np.asarray(z, np.float64)
  if not np.ptp(z, axis=0).any():  # they would divide by the codes' variance
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
  # One thread: with several, UMAP cannot keep to a seed.
  return UMAP(n_neighbors=neighbors, random_state=seed, n_jobs=1).fit_transform(
    z
  )


_METHODS = {"pca": _pca, "tsne": _tsne, "umap": _umap}

"""Distances between two sets of features, in float64."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from gamix_jax.errors import UserError

# Under this many rows a Frechet distance depends much on how many there are.
ENOUGH_IMAGES = 2048
NEIGHBOURS = 5  # Naeem et al., arXiv:2002.09797
ROWS = 1024  # of a kernel matrix at a time


def _features(a, b, what: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
  """Converts two sets of features to float64.

  Raises:
    UserError: under `rows` rows, unequal widths, a value that is not finite.
  """
  a, b = (np.asarray(v, np.float64) for v in (a, b))
  if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
    raise UserError(
      f"{what} needs features [n, f] and [m, f], not {a.shape} and {b.shape}."
    )
  if min(len(a), len(b)) < rows:
    raise UserError(
      f"{what} has {len(a)} and {len(b)} rows of features; it needs {rows} or "
      "more of each."
    )
  if not (np.isfinite(a).all() and np.isfinite(b).all()):
    raise UserError(f"{what} got features that are not finite.")
  return a, b


def frechet_distance(
  a: Float[np.ndarray, "n f"], b: Float[np.ndarray, "m f"]
) -> float:
  """Squared Frechet distance between Gaussians fitted to two sets.

      |m_a - m_b|^2 + tr( S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2 )

  Dowson & Landau 1982; with Inception features it is the FID (Heusel et al.,
  arXiv:1706.08500, eq. 6). Covariances are unbiased, as there. Float64.

  Args:
    a: features [n, f].
    b: features [m, f].

  Returns:
    0 or more, in the features' unit squared. Biased upwards for few rows, so
    compare numbers of equal n and m only.

  Raises:
    UserError: under 2 rows, unequal widths, or a value that is not finite.
  """
  a, b = _features(a, b, "frechet_distance", 2)
  f = a.shape[1]
  cov_a, cov_b = (np.cov(v, rowvar=False).reshape(f, f) for v in (a, b))
  values, vectors = np.linalg.eigh(cov_a)
  # Rounding makes eigenvalues that are 0 slightly negative, here and below.
  root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  product = root @ cov_b @ root
  values = np.linalg.eigvalsh((product + product.T) / 2)
  between = np.sum(np.square(a.mean(axis=0) - b.mean(axis=0)))
  spread = np.trace(cov_a) + np.trace(cov_b)
  cross = np.sum(np.sqrt(np.maximum(values, 0)))
  return float(max(between + spread - 2 * cross, 0.0))


class Estimate(NamedTuple):
  """A number and its standard error."""

  value: float
  error: float


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """(a b / f + 1)^3, of [n, f] and [m, f]: [n, m]."""
  return (a @ b.T / a.shape[1] + 1) ** 3


def kernel_distance(
  a: Float[np.ndarray, "n f"], b: Float[np.ndarray, "m f"]
) -> Estimate:
  """Squared maximum mean discrepancy of the cubic kernel, unbiased.

      mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j)
      - 2 mean_{i, j} k(a_i, b_j),       k(x, y) = (x y / f + 1)^3

  Binkowski et al., arXiv:1801.01401, eq. 4; with Inception features the KID.
  There it is averaged over random subsets, to save time; here all pairs are
  used, which has the same expectation and needs no seed. The error is the
  jackknife's, one row of a or b left out at a time: that of overlapping subsets
  would be too small.

  Args:
    a: features [n, f], n 3 or more.
    b: features [m, f], m 3 or more; not paired with a.

  Returns:
    The value, which may be under 0, and its standard error.

  Raises:
    UserError: under 3 rows, unequal widths, or a value that is not finite.
  """
  a, b = _features(a, b, "kernel_distance", 3)
  n, m = len(a), len(b)
  own_a, own_b, cross_a = np.empty(n), np.empty(m), np.empty(n)
  cross_b = np.zeros(m)
  for rows in (slice(i, i + ROWS) for i in range(0, n, ROWS)):
    part = _kernel(a[rows], b)
    cross_a[rows] = part.sum(axis=1)
    cross_b += part.sum(axis=0)
    own_a[rows] = _kernel(a[rows], a).sum(axis=1)
  for rows in (slice(i, i + ROWS) for i in range(0, m, ROWS)):
    own_b[rows] = _kernel(b[rows], b).sum(axis=1)
  # Without the pairs of a row with itself.
  own_a -= (np.square(a).sum(axis=1) / a.shape[1] + 1) ** 3
  own_b -= (np.square(b).sum(axis=1) / b.shape[1] + 1) ** 3
  sums = own_a.sum(), own_b.sum(), cross_a.sum()

  def value(of_a, of_b, between, n, m):
    return of_a / n / (n - 1) + of_b / m / (m - 1) - 2 * between / n / m

  without_a = value(sums[0] - 2 * own_a, sums[1], sums[2] - cross_a, n - 1, m)
  without_b = value(sums[0], sums[1] - 2 * own_b, sums[2] - cross_b, n, m - 1)
  variance = sum((len(v) - 1) * np.var(v) for v in (without_a, without_b))
  return Estimate(float(value(*sums, n, m)), float(np.sqrt(variance)))


def prdc(
  real: Float[np.ndarray, "n f"],
  fake: Float[np.ndarray, "m f"],
  neighbours: int = NEIGHBOURS,
) -> dict[str, float]:
  """Precision, recall, density, coverage: 0 to 1, density 0 or more.

  Each row has a ball that reaches to its k-th nearest other row of its set.

      precision   share of fake rows inside some real row's ball
      recall      share of real rows inside some fake row's ball
      density     real balls that a fake row is inside of, mean, over k
      coverage    share of real rows with a fake row inside their ball

  Precision and recall: Kynkaanniemi et al., arXiv:1904.06991; density and
  coverage: Naeem et al., arXiv:2002.09797. A row on a ball's surface is
  outside.

  Args:
    real: features [n, f].
    fake: features [m, f].
    neighbours: k.

  Raises:
    UserError: k rows or fewer, unequal widths, a value that is not finite.
  """
  from sklearn.metrics import pairwise_distances_chunked  # noqa: PLC0415
  from sklearn.neighbors import NearestNeighbors  # noqa: PLC0415

  real, fake = _features(real, fake, "prdc", neighbours + 1)

  def radii(x):
    search = NearestNeighbors(n_neighbors=neighbours).fit(x)
    return search.kneighbors()[0][:, -1]  # of others than itself

  of_real, of_fake = radii(real), radii(fake)
  balls, recalled, covered = np.zeros(len(fake)), 0, 0
  start = 0
  for part in pairwise_distances_chunked(real, fake):
    inside = part < of_real[start : start + len(part), None]
    start += len(part)
    balls += inside.sum(axis=0)
    covered += inside.any(axis=1).sum()
    recalled += (part < of_fake[None]).any(axis=1).sum()
  return {
    "precision": float(np.mean(balls > 0)),
    "recall": float(recalled / len(real)),
    "density": float(balls.mean() / neighbours),
    "coverage": float(covered / len(real)),
  }

"""Mean correlation coefficient (MCC) of latents with the true sources.

For data that were made from known sources. The numbers say up to which maps the
sources were found: Khemakhem, Kingma, Monti & Hyvarinen, arXiv:1907.04809,
section 4.1 (up to permutation and a scale of each), and Khemakhem, Monti,
Kingma & Hyvarinen, arXiv:2002.11537, section 2 (strong and weak, the latter up
to a linear map).
"""

import numpy as np
from jaxtyping import Float

from gamix_jax.errors import UserError


def mcc_strong(
  sources: Float[np.ndarray, "n k"], latents: Float[np.ndarray, "n d"]
) -> float:
  """MCC up to permutation, sign and scale.

  Each source gets a latent of its own, so that the sum of the absolute Pearson
  correlations is largest (the Hungarian algorithm); the MCC is their mean.
  Latents that are left over do not count. A latent or source that is constant
  has correlation 0.

  Of independent noise it is not 0 but of the order of sqrt(1 / n), and grows
  with d.

  Args:
    sources: the true ones, [n, k].
    latents: of the same rows, such as posterior means: [n, d], d >= k.

  Returns:
    0 to 1, and 1 is best.

  Raises:
    UserError: other shapes, under 2 rows, d under k, or a value that is not
      finite.
  """
  from scipy.optimize import linear_sum_assignment  # noqa: PLC0415  (0.2 s)

  s, z = _checked(sources, latents, "mcc_strong", 2)
  if z.shape[1] < s.shape[1]:
    raise UserError(
      f"mcc_strong has {z.shape[1]} latents for {s.shape[1]} sources; each"
      " source needs a latent of its own."
    )
  r = np.abs(_standardised(s).T @ _standardised(z)) / len(s)
  mean = r[linear_sum_assignment(r, maximize=True)].mean()
  return float(np.clip(mean, 0, 1))


def mcc_weak(
  sources: Float[np.ndarray, "n k"], latents: Float[np.ndarray, "n d"]
) -> float:
  """MCC up to an affine map, which is fitted on half of the rows.

  The first, third, ... rows fit a least-squares regression of the sources on
  the latents. The MCC is the mean over the sources of the Pearson correlation
  with their predictions on the other rows. A negative one counts as 0, and so
  does that of a prediction or source that is constant.

  arXiv:2002.11537 aligns with canonical correlations instead, which is the same
  where the sources are an affine map of the latents.

  Args:
    sources: the true ones, [n, k].
    latents: of the same rows, such as posterior means: [n, d]. Whether
      a row's index is even must not depend on its values.

  Returns:
    0 to 1, and 1 is best.

  Raises:
    UserError: other shapes, under 2 (d + 1) rows, or a value that is not
      finite.
  """
  rows = 2 * (np.shape(latents)[1] + 1) if np.ndim(latents) == 2 else 2
  s, z = _checked(sources, latents, "mcc_weak", rows)
  z = np.concatenate([z, np.ones((len(z), 1))], 1)
  matrix, *_ = np.linalg.lstsq(z[::2], s[::2])
  found = _standardised(z[1::2] @ matrix)
  r = np.mean(_standardised(s[1::2]) * found, 0)
  return float(np.clip(r, 0, 1).mean())


def _standardised(x: np.ndarray) -> np.ndarray:
  """With mean 0 and variance 1 in each column; 0 where it is constant."""
  x = x - x.mean(0)
  scale = x.std(0)
  # A constant leaves rounding errors, which must not be blown up.
  tiny = scale <= 1e-12 * np.abs(x).max(initial=0)
  return np.where(tiny, 0, x / np.where(tiny, 1, scale))


def _checked(
  sources: np.ndarray, latents: np.ndarray, what: str, rows: int
) -> tuple[np.ndarray, np.ndarray]:
  """Both in float64; raises UserError if they are not two such sets."""
  s, z = (np.asarray(v, np.float64) for v in (sources, latents))
  if s.ndim != 2 or z.ndim != 2 or len(s) != len(z) or 0 in s.shape + z.shape:
    raise UserError(
      f"{what} needs sources [n, k] and latents [n, d], not {s.shape} and"
      f" {z.shape}."
    )
  if len(s) < rows:
    raise UserError(f"{what} has {len(s)} rows; it needs {rows} or more.")
  if not (np.isfinite(s).all() and np.isfinite(z).all()):
    raise UserError(f"{what} got values that are not finite.")
  return s, z

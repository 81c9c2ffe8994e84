"""Latents between two, and around one."""

from collections.abc import Sequence

import numpy as np

from gamix_jax import metrics
from gamix_jax.errors import UserError
from gamix_jax.posterior import Posterior

PATHS = ("straight", "spherical")
# Under this sine of the angle, two directions are one, or opposite.
PARALLEL = 1e-6


def between(a: np.ndarray, b: np.ndarray, steps: int, path: str) -> np.ndarray:
  """[steps, d] from a to b, both among them.

      straight    (1 - t) a + t b
      spherical   the same along the arc: the direction turns evenly
                  (Shoemake 1985; for latents White, arXiv:1609.04468), the
                  length goes evenly from one's to the other's

  Where the directions are one or opposite, and there is no arc, spherical is
  straight.

  Raises:
    UserError: steps under 2; no such path.
  """
  if path not in PATHS:
    raise UserError(f"path={path!r} must be one of {', '.join(PATHS)}.")
  if steps < 2:
    raise UserError(f"steps={steps} must be 2 or more, for both ends.")
  a, b = (np.asarray(v, np.float64) for v in (a, b))
  if path == "straight":
    return np.linspace(a, b, steps)
  lengths = [np.linalg.norm(v) for v in (a, b)]
  if not min(lengths):
    return np.linspace(a, b, steps)
  u, v = a / lengths[0], b / lengths[1]
  angle = np.arccos(np.clip(u @ v, -1, 1))
  if np.sin(angle) < PARALLEL:
    return np.linspace(a, b, steps)
  t = np.linspace(0, 1, steps)[:, None]
  turned = np.sin((1 - t) * angle) * u + np.sin(t * angle) * v
  return np.linspace(*lengths, steps)[:, None] * turned / np.sin(angle)


def around(
  q: Posterior, dims: int | Sequence[int], span: float, steps: int
) -> np.ndarray:
  """q's mean, moved along one latent or two: [steps, d], [steps, steps, d].

  In units of q's standard deviation, from -span to span. Of a mixture mean
  and standard deviation are the whole posterior's, see
  `metrics.total_variance`.

  Raises:
    UserError: dims is not one latent or two different ones; span is not over
      0; steps under 2.
  """
  mean = np.asarray(q.mean(), np.float64)[0]
  moved = [dims] if np.ndim(dims) == 0 else list(dims)
  whole = all(isinstance(d, int | np.integer) for d in moved)
  if not whole or len(moved) not in (1, 2) or len(set(moved)) != len(moved):
    raise UserError(f"dims={dims!r} is not one latent, or two different ones.")
  if not all(0 <= d < len(mean) for d in moved):
    raise UserError(
      f"dims={dims!r}: the latents of this model are 0 to {len(mean) - 1}."
    )
  if not 0 < span < np.inf or steps < 2:
    raise UserError(f"span={span} must be > 0, and steps={steps} 2 or more.")
  std = np.sqrt(np.asarray(metrics.total_variance(q), np.float64)[0])
  units = np.linspace(-span, span, steps)
  z = np.tile(mean, (steps,) * len(moved) + (1,))
  for axis, d in enumerate(moved):
    shape = [1] * len(moved)
    shape[axis] = steps
    z[..., d] += (units * std[d]).reshape(shape)
  return z

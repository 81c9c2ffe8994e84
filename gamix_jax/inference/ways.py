"""Interpolation between two latents and traversal around one."""

from collections.abc import Sequence

import numpy as np

from gamix_jax import metrics
from gamix_jax.errors import UserError
from gamix_jax.posterior import Posterior

PATHS = ("straight", "spherical")
# Two directions count as equal or opposite if the sine of their angle is less.
PARALLEL_SINE = 1e-6


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
  if path not in PATHS:
    raise UserError(f"path={path!r} must be one of {', '.join(PATHS)}.")
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

  The offsets go from -span to span, in standard deviations of q. For a mixture,
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
  units = np.linspace(-span, span, steps)
  z = np.tile(mean, (steps,) * len(moved) + (1,))
  for axis, d in enumerate(moved):
    shape = [1] * len(moved)
    shape[axis] = steps
    z[..., d] += (units * std[d]).reshape(shape)
  return z

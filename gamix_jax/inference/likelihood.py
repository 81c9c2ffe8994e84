"""Lower bounds of ln p(x) from many draws each, in bounded memory.

Draw t of observation i uses fold_in(fold_in(key, i), t), so the values do not
depend on the chunk sizes, up to rounding.
"""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import numpy as np
import scipy.special

from gamix_jax import modality, train_metrics
from gamix_jax.errors import UserError
from gamix_jax.inference.device import Runner, at_least
from gamix_jax.networks import VAEOutput
from gamix_jax.posterior import Mixture, Posterior
from gamix_jax.posterior.prior import WithPrior
from gamix_jax.step import TrainSpec

Rows = Mapping[str, np.ndarray]  # observations [b, ...] by modality


class Likelihood:
  """Computes bounds of ln p(x) for one model."""

  def __init__(self, device: Runner, posterior_name: str) -> None:
    """`posterior_name` is used in an error message."""
    self._device, self._posterior_name = device, posterior_name
    self._bounds = jax.jit(partial(_bounds, device.spec))
    self._predictive = jax.jit(partial(_predictive, device.spec))

  def bounds(
    self, x: Rows, samples: int, key: jax.Array
  ) -> dict[str, np.ndarray]:
    """Returns `elbo` and `iwae` of each observation: float64 [b], in nats.

    Args:
      x: validated observations, of several modalities with "mask".
      samples: draws of each; per component for a mixture.
      key: from `jax.random.key`.

    Raises:
      UserError: if the posterior has no finite bound, or samples < 1.
    """
    if not self._posterior(x).has_finite_elbo:
      raise UserError(
        f"posterior.name={self._posterior_name!r} with this prior has no "
        "finite bound of ln p(x): q(z | x) extends beyond the support of p(z)."
      )
    terms = self._of_draws(
      partial(self._bounds, self._device.vae, self._device.prior()),
      *(x, x, samples, key),
    )
    return {
      "elbo": terms["elbo"].mean(axis=1),
      "iwae": scipy.special.logsumexp(terms["iwae"], axis=1) - np.log(samples),
    }

  def predictive(
    self, given: Rows, of: Rows, samples: int, key: jax.Array
  ) -> np.ndarray:
    """Returns ln 1/S sum_s p(x_of | z_s), z_s ~ q(z | x_given), [b] in nats.

    Args:
      given: observations whose mask says what is given.
      of: the same observations; its mask says of what the likelihood is.
      samples: S; per component for a mixture.
      key: from `jax.random.key`.

    Raises:
      UserError: if samples < 1.
    """
    terms = self._of_draws(
      partial(self._predictive, self._device.vae), given, of, samples, key
    )["likelihood"]
    return scipy.special.logsumexp(terms, axis=1) - np.log(samples)

  def _posterior(self, x: Rows) -> Posterior:
    """The shapes of one observation's posterior."""
    one = jax.tree.map(lambda v: v[:1], dict(x))
    return jax.eval_shape(self._device.encoder, self._device.vae, one)

  def _of_draws(
    self,
    function: Callable[..., dict[str, jax.Array]],
    given: Rows,
    of: Rows,
    samples: int,
    key: jax.Array,
  ) -> dict[str, np.ndarray]:
    """Computes values [b, samples] of draws of q(z | given), float64.

    `function` is (key, of, q, index, draws) -> [b, t], compiled.
    """
    if samples < 1:
      raise UserError(f"samples={samples} must be 1 or more.")
    device = self._device
    z, _ = jax.eval_shape(lambda q: q.sample(key, 1), self._posterior(given))
    n = len(next(iter(given.values())))
    # Fill a chunk with observations first, then with draws; all are decoded.
    room = max(1, device.batch_size // len(z))
    rows = min(room, at_least(n))
    draws = min(max(1, room // rows), samples)

    def chunk_terms(given, of, index):
      q = device.encoder(device.vae, given)
      parts = []
      for start in range(0, samples, draws):
        t = np.arange(start, start + draws)
        parts.append(jax.device_get(function(key, of, q, index, t)))
      # The last part may have more draws than requested.
      return {
        k: np.concatenate([p[k] for p in parts], axis=1)[:, :samples]
        for k in parts[0]
      }

    terms = device.by_chunks(
      chunk_terms, dict(given), dict(of), np.arange(n), at_most=rows
    )
    return {k: np.asarray(v, np.float64) for k, v in terms.items()}


def _draw(
  key: jax.Array, q: Posterior, index: jax.Array, draws: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns draws [t, s, b, d] and their weights [t, s, b]."""

  def draw(q, i, t):
    q = jax.tree.map(lambda leaf: leaf[None], q)
    z, w = q.sample(jax.random.fold_in(jax.random.fold_in(key, i), t), 1)
    return z[:, 0], w[:, 0]

  of_all = jax.vmap(draw, (0, 0, None), out_axes=1)
  return jax.vmap(of_all, (None, None, 0))(q, index, draws)


def _bounds(
  spec: TrainSpec,
  vae: dict,
  prior: Mixture | None,
  key: jax.Array,
  x: dict[str, jax.Array],
  q: Posterior,
  index: jax.Array,
  draws: jax.Array,
) -> dict[str, jax.Array]:
  """Returns the bounds of each draw, [b, t], for b rows and t draws."""
  z, w = _draw(key, q, index, draws)
  x_hat = spec.vae.apply(vae, z, method="decode")  # [t, s, b, ...]
  x = spec.observations(x)
  q = q if prior is None else WithPrior(q, prior)

  def draw_bounds(z, w, x_hat):
    return train_metrics.bounds(
      VAEOutput(x, q, z, w, x_hat),
      spec.modalities,
      spec.weights.vae["recon"],
    )

  bounds = jax.vmap(draw_bounds)(z, w, x_hat)
  return {k: bounds[k].T for k in ("elbo", "iwae")}


def _predictive(
  spec: TrainSpec,
  vae: dict,
  key: jax.Array,
  of: dict[str, jax.Array],
  q: Posterior,
  index: jax.Array,
  draws: jax.Array,
) -> dict[str, jax.Array]:
  """Returns ln p(of | z) of each draw, [b, t], for b rows and t draws."""
  z, w = _draw(key, q, index, draws)
  each = modality.log_likelihood(
    spec.modalities,
    spec.observations(of),
    spec.vae.apply(vae, z, method="decode"),
    spec.weights.vae["recon"],
  )
  return {"likelihood": jax.nn.logsumexp(each, axis=1, b=w).T}

"""Lower bounds of ln p(x) from many draws per image, in bounded memory.

Draw t of image i uses fold_in(fold_in(key, i), t), so the values do not depend
on the chunk sizes, up to rounding.
"""

from functools import partial

import jax
import numpy as np
import scipy.special

from gamix_jax import train_metrics
from gamix_jax.errors import UserError
from gamix_jax.inference.device import Runner, at_least
from gamix_jax.modality import IMAGE, to_float
from gamix_jax.networks import VAEOutput
from gamix_jax.posterior import Mixture, Posterior
from gamix_jax.posterior.prior import WithPrior
from gamix_jax.step import TrainSpec


class Likelihood:
  """Computes ELBO and IWAE bounds for one model."""

  def __init__(self, device: Runner, posterior_name: str) -> None:
    """`posterior_name` is used in an error message."""
    self._device, self._posterior_name = device, posterior_name
    self._per_draw = jax.jit(partial(_per_draw, device.spec))

  def bounds(
    self, x: np.ndarray, samples: int, key: jax.Array
  ) -> dict[str, np.ndarray]:
    """Returns `elbo` and `iwae` per image: float64 [b], in nats.

    Args:
      x: validated images [b, h, w, c].
      samples: draws per image; per component for a mixture.
      key: from `jax.random.key`.

    Raises:
      UserError: if the posterior has no finite bound, or samples < 1.
    """
    if samples < 1:
      raise UserError(f"samples={samples} must be 1 or more.")
    device = self._device
    q = jax.eval_shape(device.encoder, device.vae, x[:1])
    if not q.has_finite_elbo:
      raise UserError(
        f"posterior.name={self._posterior_name!r} with this prior has no "
        "finite bound of ln p(x): q(z | x) extends beyond the support of p(z)."
      )
    z, _ = jax.eval_shape(lambda q: q.sample(key, 1), q)
    # Fill a chunk with images first, then with draws; every draw is decoded.
    room = max(1, device.batch_size // len(z))
    images = min(room, at_least(len(x)))
    draws = min(max(1, room // images), samples)
    prior = device.prior()

    def chunk_terms(x, index):
      q = device.encoder(device.vae, x)
      parts = []
      for start in range(0, samples, draws):
        t = np.arange(start, start + draws)
        part = self._per_draw(device.vae, prior, key, x, q, index, t)
        parts.append(jax.device_get(part))
      # The last part may have more draws than requested.
      return {
        k: np.concatenate([p[k] for p in parts], axis=1)[:, :samples]
        for k in parts[0]
      }

    terms = device.by_chunks(chunk_terms, x, np.arange(len(x)), at_most=images)
    terms = {k: np.asarray(v, np.float64) for k, v in terms.items()}
    return {
      "elbo": terms["elbo"].mean(axis=1),
      "iwae": scipy.special.logsumexp(terms["iwae"], axis=1) - np.log(samples),
    }


def _per_draw(
  spec: TrainSpec,
  vae: dict,
  prior: Mixture | None,
  key: jax.Array,
  x: jax.Array,
  q: Posterior,
  index: jax.Array,
  draws: jax.Array,
) -> dict[str, jax.Array]:
  """Returns the bound of each draw, [b, t], for b images and t draws."""

  def draw(q, i, t):
    q = jax.tree.map(lambda leaf: leaf[None], q)
    z, w = q.sample(jax.random.fold_in(jax.random.fold_in(key, i), t), 1)
    return z[:, 0], w[:, 0]

  draw_images = jax.vmap(draw, (0, 0, None), out_axes=1)
  z, w = jax.vmap(draw_images, (None, None, 0))(q, index, draws)
  x_hat = spec.vae.apply(vae, z, method="decode")  # [t, s, b, ...]
  x = {IMAGE: to_float(x, spec.dtype)}
  q = q if prior is None else WithPrior(q, prior)

  def draw_bounds(z, w, x_hat):
    return train_metrics.bounds(
      VAEOutput(x, q, z, w, x_hat),
      spec.modalities,
      spec.weights.vae["recon"],
    )

  bounds = jax.vmap(draw_bounds)(z, w, x_hat)
  return {k: bounds[k].T for k in ("elbo", "iwae")}

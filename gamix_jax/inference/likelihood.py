"""The bounds of ln p(x), of many draws an image, in bounded memory.

Draw t of image i comes from fold_in(fold_in(key, i), t), so the numbers do not
depend on how many images and draws are looked at at once, but for rounding.
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
  """What one model's likelihoods are computed with."""

  def __init__(self, device: Runner, named: str) -> None:
    """`named` is the posterior's name, for a message."""
    self._device, self._named = device, named
    self._each = jax.jit(partial(_each, device.spec))

  def bounds(
    self, x: np.ndarray, samples: int, key: jax.Array
  ) -> dict[str, np.ndarray]:
    """`elbo` and `iwae` of each image, nats, [b], float64.

    Args:
      x: checked images [b, h, w, c].
      samples: draws an image, of each component where there are any.
      key: of `jax.random.key`.

    Raises:
      UserError: the family has no finite bound; samples under 1.
    """
    if samples < 1:
      raise UserError(f"samples={samples} must be 1 or more.")
    device = self._device
    q = jax.eval_shape(device.encoder, device.vae, x[:1])
    if not q.has_finite_elbo:
      raise UserError(
        f"posterior.name={self._named!r} with this prior has no finite bound "
        "of ln p(x): q(z | x) reaches over the ends of p(z)."
      )
    z, _ = jax.eval_shape(lambda q: q.sample(key, 1), q)
    # As many images as fit, then as many draws of them; each is decoded.
    room = max(1, device.batch_size // len(z))
    images = min(room, at_least(len(x)))
    draws = min(max(1, room // images), samples)
    prior = device.prior()

    def of_images(x, index):
      q = device.encoder(device.vae, x)
      parts = []
      for first in range(0, samples, draws):
        t = np.arange(first, first + draws)
        found = self._each(device.vae, prior, key, x, q, index, t)
        parts.append(jax.device_get(found))
      # The last part may have more draws than were asked for.
      return {
        k: np.concatenate([p[k] for p in parts], axis=1)[:, :samples]
        for k in parts[0]
      }

    each = device.by_chunks(of_images, x, np.arange(len(x)), at_most=images)
    each = {k: np.asarray(v, np.float64) for k, v in each.items()}
    return {
      "elbo": each["elbo"].mean(axis=1),
      "iwae": scipy.special.logsumexp(each["iwae"], axis=1) - np.log(samples),
    }


def _each(
  spec: TrainSpec,
  vae: dict,
  prior: Mixture | None,
  key: jax.Array,
  x: jax.Array,
  q: Posterior,
  index: jax.Array,
  draws: jax.Array,
) -> dict[str, jax.Array]:
  """The bounds of one draw, [b, t], of b images and t draws, by their index."""

  def draw(q, i, t):
    one = jax.tree.map(lambda leaf: leaf[None], q)
    z, w = one.sample(jax.random.fold_in(jax.random.fold_in(key, i), t), 1)
    return z[:, 0], w[:, 0]

  of_images = jax.vmap(draw, (0, 0, None), out_axes=1)
  z, w = jax.vmap(of_images, (None, None, 0))(q, index, draws)
  x_hat = spec.vae.apply(vae, z, method="decode")  # [t, s, b, ...]
  x = {IMAGE: to_float(x, spec.dtype)}
  q = q if prior is None else WithPrior(q, prior)

  def of_draw(z, w, x_hat):
    return train_metrics.bounds(
      VAEOutput(x, q, z, w, x_hat),
      spec.modalities,
      spec.weights.vae["recon"],
    )

  found = jax.vmap(of_draw)(z, w, x_hat)
  return {k: found[k].T for k in ("elbo", "iwae")}

"""What a run shows of its health: the posterior's, the GAN's, held out."""

import jax
import jax.numpy as jnp

from gamix_jax import objective
from gamix_jax.metrics import ACTIVE_VARIANCE, COLLAPSED_VARIANCE
from gamix_jax.objective import VAEOutput
from gamix_jax.posterior import Posterior


def posterior(q: Posterior) -> dict[str, jax.Array]:
  """Active units, and the share of variances that collapsed to near 0.

  Of a mixture also the mean entropy of its weights (nats) and exp of each
  image's entropy, the number of components that it really uses.
  """
  weights, _, var = q.components()
  units = jnp.var(q.mean(), axis=0) > ACTIVE_VARIANCE
  small = jnp.mean((var < COLLAPSED_VARIANCE).astype(var.dtype), axis=-1)
  found = {}
  if weights.shape[-1] > 1:
    entropy = -jnp.sum(jax.scipy.special.xlogy(weights, weights), axis=-1)
    found = {
      "posterior/weights_entropy": jnp.mean(entropy),
      "posterior/effective_components": jnp.mean(jnp.exp(entropy)),
    }
  return found | {
    "posterior/active_units": jnp.sum(units),
    "posterior/collapsed_fraction": jnp.mean(jnp.sum(weights * small, axis=-1)),
    "posterior/mean_var": jnp.mean(
      jnp.sum(weights * jnp.mean(var, axis=-1), axis=-1)
    ),
  }


def code(p: VAEOutput, kind: str) -> dict[str, jax.Array]:
  """Whether codes carry information: 0 of both is posterior collapse.

  Args:
    p: a pass in training.
    kind: the reconstruction's.

  Returns:
    `posterior/kl`, the batch's mean KL(q(z | x) || p(z)) in nats, of a family
    that has one; `posterior/explained_variance`, the share of the batch's
    variance over images that the reconstructions explain: 1 for x itself, 0
    for the same picture for every image, below 0 for chance.
  """
  x_hat = objective.to_image(p.x_hat, kind).astype(p.x.dtype)
  x_hat = jnp.sum(lift_right(p.w, x_hat.ndim) * x_hat, axis=0)
  left = jnp.sum(jnp.var(p.x - x_hat, axis=0))
  total = jnp.maximum(jnp.sum(jnp.var(p.x, axis=0)), 1e-12)
  found = {"posterior/explained_variance": 1 - left / total}
  if p.q.has_finite_elbo:
    found["posterior/kl"] = jnp.mean(p.q.kl_divergence(p.z, p.w))
  return jax.lax.stop_gradient(found)


def lift_right(x: jax.Array, ndim: int) -> jax.Array:
  """x with axes of length 1 behind, so that it has ndim axes."""
  return x.reshape(*x.shape, *(1,) * (ndim - x.ndim))


def logits(
  real: jax.Array, fake: jax.Array, w: jax.Array
) -> dict[str, jax.Array]:
  """Mean logits, and the share of patches told rightly.

  Args:
    real: [b, p, q, 1].
    fake: [s, b, p, q, 1], with weights w [s, b].
    w: see fake.
  """

  def over_draws(each):
    return jnp.mean(jnp.sum(w * jnp.mean(each, axis=(-3, -2, -1)), axis=0))

  right_fake = over_draws((fake < 0).astype(w.dtype))
  return {
    "disc/logits_real": jnp.mean(real),
    "disc/logits_fake": over_draws(fake),
    "disc/accuracy": (jnp.mean(real > 0) + right_fake) / 2,
  }


def bounds(p: VAEOutput, kind: str, weight: float) -> dict[str, jax.Array]:
  """Two true lower bounds of ln p(x), in nats, [b], and the KL of these draws.

  For the likelihood that the reconstruction term stands for
  (`objective.log_likelihood`):

      elbo   sum_s w_s ( ln p(x, z_s) - ln q(z_s | x) )
      iwae   ln sum_s w_s p(x, z_s) / q(z_s | x)

  the second with s draws (Burda et al., arXiv:1509.00519; of a mixture the
  stratified form, arXiv:2003.01687).

  Args:
    p: a pass with s draws, of a family that has finite bounds.
    kind: the reconstruction's.
    weight: of the reconstruction.
  """
  likelihood = objective.log_likelihood(p.x, p.x_hat, kind, weight)
  log_ratio = p.q.log_prob(p.z) - p.q.log_prior(p.z)
  return {
    "elbo": jnp.sum(p.w * (likelihood - log_ratio), axis=0),
    "iwae": jax.nn.logsumexp(likelihood - log_ratio, axis=0, b=p.w),
    "kl": jnp.sum(p.w * log_ratio, axis=0),
  }


def held_out(
  p: VAEOutput, x_hat: jax.Array, kind: str, weight: float
) -> dict[str, jax.Array]:
  """Numbers an image, [b] or [b, d], of images that were not trained on.

  The errors of what q's mean decodes to, the posterior's moments, and `bounds`
  where the family has finite ones (`Posterior.has_finite_elbo`).

  Args:
    p: a pass with s draws.
    x_hat: q's mean decoded, [b, h, w, c].
    kind: the reconstruction's.
    weight: of the reconstruction.
  """
  shown = jnp.clip(objective.to_image(x_hat, kind), -1, 1)
  square = jnp.mean(jnp.square(p.x - shown), axis=(-3, -2, -1))
  mean, (weights, mu, var) = p.q.mean(), p.q.components()
  square_of_z = jnp.square(mu) + var
  found = bounds(p, kind, weight) if p.q.has_finite_elbo else {}
  return found | {
    "mae": jnp.mean(jnp.abs(p.x - shown), axis=(-3, -2, -1)),
    # The peak-to-peak of [-1, 1] is 2.
    "psnr": 10 * jnp.log10(4 / jnp.maximum(square, 1e-10)),
    "mean": mean,
    "var": jnp.sum(weights[..., None] * square_of_z, axis=1) - mean**2,
  }

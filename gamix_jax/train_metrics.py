"""What a run shows of its health: the posterior's, the GAN's, held out."""

import jax
import jax.numpy as jnp

from gamix_jax.metrics import ACTIVE_VARIANCE, COLLAPSED_VARIANCE
from gamix_jax.modality import Modalities, log_likelihood, sum_over
from gamix_jax.networks import VAEOutput
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


def code(output: VAEOutput, modalities: Modalities) -> dict[str, jax.Array]:
  """Whether codes carry information: 0 of both is posterior collapse.

  Args:
    output: of a pass in training.
    modalities: what it reconstructs.

  Returns:
    `posterior/kl`, the batch's mean KL(q(z | x) || p(z)) in nats, of a family
    that has one; `posterior/explained_variance`, the share of the batch's
    variance over observations that the reconstructions explain: 1 for x itself,
    0 for the same picture for every image, below 0 for chance.
  """

  def left(name):
    x = output.x[name]
    x_hat = modalities[name].likelihood.mean(output.x_hat[name]).astype(x.dtype)
    x_hat = jnp.sum(expand_trailing(output.w, x_hat.ndim) * x_hat, axis=0)
    return jnp.sum(jnp.var(x - x_hat, axis=0))

  def total(name):
    return jnp.sum(jnp.var(output.x[name], axis=0))

  unexplained = sum_over(left(name) for name in modalities)
  variance = jnp.maximum(sum_over(total(name) for name in modalities), 1e-12)
  found = {"posterior/explained_variance": 1 - unexplained / variance}
  if output.q.has_finite_elbo:
    found["posterior/kl"] = jnp.mean(output.q.kl_divergence(output.z, output.w))
  return jax.lax.stop_gradient(found)


def expand_trailing(x: jax.Array, ndim: int) -> jax.Array:
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


def bounds(
  output: VAEOutput, modalities: Modalities, weight: float
) -> dict[str, jax.Array]:
  """Two true lower bounds of ln p(x), in nats, [b], and the KL of these draws.

  For the likelihood that the reconstruction term stands for:

      elbo   sum_s w_s ( ln p(x, z_s) - ln q(z_s | x) )
      iwae   ln sum_s w_s p(x, z_s) / q(z_s | x)

  the second with s draws (Burda et al., arXiv:1509.00519; of a mixture the
  stratified form, arXiv:2003.01687).

  Args:
    output: of a pass with s draws, of a family that has finite bounds.
    modalities: what x is.
    weight: of the reconstruction.
  """
  q, z, w = output.q, output.z, output.w
  likelihood = log_likelihood(modalities, output.x, output.x_hat, weight)
  log_ratio = q.log_prob(z) - q.log_prior(z)
  return {
    "elbo": jnp.sum(w * (likelihood - log_ratio), axis=0),
    "iwae": jax.nn.logsumexp(likelihood - log_ratio, axis=0, b=w),
    "kl": jnp.sum(w * log_ratio, axis=0),
  }


def held_out(
  output: VAEOutput,
  x_hat: dict[str, jax.Array],
  modalities: Modalities,
  weight: float,
) -> dict[str, jax.Array]:
  """Numbers an image, [b] or [b, d], of images that were not trained on.

  The errors of what q's mean decodes to, the posterior's moments, and `bounds`
  where the family has finite ones (`Posterior.has_finite_elbo`).

  Args:
    output: of a pass with s draws.
    x_hat: q's mean decoded, [b, ...] by modality.
    modalities: what x is.
    weight: of the reconstruction.
  """
  q = output.q
  found = bounds(output, modalities, weight) if q.has_finite_elbo else {}
  for name, modality in modalities.items():
    x, event = output.x[name], tuple(range(-len(modality.shape), 0))
    shown = jnp.clip(modality.likelihood.mean(x_hat[name]), -1, 1)
    square = jnp.mean(jnp.square(x - shown), axis=event)
    prefix = "" if len(modalities) == 1 else f"{name}/"
    found[f"{prefix}mae"] = jnp.mean(jnp.abs(x - shown), axis=event)
    # The peak-to-peak of [-1, 1] is 2.
    found[f"{prefix}psnr"] = 10 * jnp.log10(4 / jnp.maximum(square, 1e-10))
  mean, (weights, mu, var) = q.mean(), q.components()
  square_of_z = jnp.square(mu) + var
  return found | {
    "mean": mean,
    "var": jnp.sum(weights[..., None] * square_of_z, axis=1) - mean**2,
  }

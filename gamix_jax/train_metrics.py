"""Metrics of the posterior, the GAN and held-out observations."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gamix_jax.metrics import ACTIVE_VARIANCE, COLLAPSED_VARIANCE
from gamix_jax.modality import (
  MASK,
  Modalities,
  Modality,
  log_likelihood,
  sum_over,
)
from gamix_jax.networks import VAEOutput
from gamix_jax.posterior import Posterior


def posterior(q: Posterior) -> dict[str, jax.Array]:
  """Computes active units and the fraction of variances that are near 0.

  For a mixture it adds the mean entropy of the weights (nats), and the mean of
  exp(entropy) over images: the effective number of components.
  """
  weights, _, var = q.components()
  units = jnp.var(q.mean(), axis=0) > ACTIVE_VARIANCE
  small = jnp.mean((var < COLLAPSED_VARIANCE).astype(var.dtype), axis=-1)
  values = {}
  if weights.shape[-1] > 1:
    entropy = -jnp.sum(jax.scipy.special.xlogy(weights, weights), axis=-1)
    values = {
      "posterior/weights_entropy": jnp.mean(entropy),
      "posterior/effective_components": jnp.mean(jnp.exp(entropy)),
    }
  return values | {
    "posterior/active_units": jnp.sum(units),
    "posterior/collapsed_fraction": jnp.mean(jnp.sum(weights * small, axis=-1)),
    "posterior/mean_var": jnp.mean(
      jnp.sum(weights * jnp.mean(var, axis=-1), axis=-1)
    ),
  }


def code(output: VAEOutput, modalities: Modalities) -> dict[str, jax.Array]:
  """Measures the information in the codes; 0 for both is posterior collapse.

  Args:
    output: of the VAE in training.
    modalities: of the observations.

  Returns:
    `posterior/kl`: mean KL(q(z | x) || p(z)) over the batch in nats, if the
    family has one.
    `posterior/explained_variance`: fraction of the variance over the batch that
    the reconstructions explain. It is 1 for perfect reconstructions, 0 if
    every image has the same one, and below 0 for unrelated ones.
  """
  mask = output.x.get(MASK)

  def variance(name, x):
    if mask is not None:  # missing observations are constant
      there = mask[:, list(modalities).index(name)]
      x = jnp.where(expand_trailing(there, x.ndim) > 0, x, 0)
    # On several devices only the mean image and a number are summed over them;
    # jnp.var would also sum an image of squares.
    centred = x - jnp.mean(x, axis=0)[None]
    return jnp.sum(jnp.square(centred)) / len(x)

  def residual(name):
    x = output.x[name]
    x_hat = modalities[name].likelihood.mean(output.x_hat[name]).astype(x.dtype)
    x_hat = jnp.sum(expand_trailing(output.w, x_hat.ndim) * x_hat, axis=0)
    return variance(name, x - x_hat)

  unexplained = sum_over(residual(name) for name in modalities)
  total = sum_over(variance(name, output.x[name]) for name in modalities)
  values = {
    "posterior/explained_variance": 1 - unexplained / jnp.maximum(total, 1e-12)
  }
  if output.q.has_finite_elbo:
    kl = output.q.kl_divergence(output.z, output.w)
    values["posterior/kl"] = jnp.mean(kl)
  return jax.lax.stop_gradient(values)


def expand_trailing(x: jax.Array, ndim: int) -> jax.Array:
  """Appends axes of length 1 to x until it has ndim axes."""
  return x.reshape(*x.shape, *(1,) * (ndim - x.ndim))


def logits(
  real: Float[Array, "b p q 1"],
  fake: Float[Array, "s b p q 1"],
  w: Float[Array, "s b"],
) -> dict[str, jax.Array]:
  """Computes the discriminator's mean logits and accuracy over patches.

  Args:
    real: [b, p, q, 1], logits of images.
    fake: [s, b, p, q, 1], logits of reconstructions from s draws.
    w: [s, b], weights of the draws.
  """

  def weighted_mean(x):
    return jnp.mean(jnp.sum(w * jnp.mean(x, axis=(-3, -2, -1)), axis=0))

  fake_accuracy = weighted_mean((fake < 0).astype(w.dtype))
  return {
    "disc/logits_real": jnp.mean(real),
    "disc/logits_fake": weighted_mean(fake),
    "disc/accuracy": (jnp.mean(real > 0) + fake_accuracy) / 2,
  }


def code_logits(
  real: Float[Array, " b"], fake: Float[Array, "s b"], w: Float[Array, "s b"]
) -> dict[str, jax.Array]:
  """The accuracy of a discriminator of codes; 0.5 if it cannot tell them.

  Args:
    real: logits of draws of the prior.
    fake: logits of codes.
    w: weights of the draws.
  """
  right = jnp.sum(w * (fake < 0), axis=0)
  return {"code/accuracy": (jnp.mean(real > 0) + jnp.mean(right)) / 2}


def bounds(
  output: VAEOutput, modalities: Modalities, weight: float
) -> dict[str, jax.Array]:
  """Computes two lower bounds of ln p(x) and the KL, in nats, [b] each.

  With the normalised likelihood that corresponds to the reconstruction term:

      elbo   sum_s w_s ( ln p(x, z_s) - ln q(z_s | x) )
      iwae   ln sum_s w_s p(x, z_s) / q(z_s | x)

  iwae: Burda et al., arXiv:1509.00519; for a mixture the stratified form,
  arXiv:2003.01687.

  Args:
    output: of the VAE with s draws; the family must have finite bounds.
    modalities: of the observations.
    weight: of the reconstruction term.
  """
  q, z, w = output.q, output.z, output.w
  likelihood = log_likelihood(modalities, output.x, output.x_hat, weight)
  log_ratio = q.log_prob(z) - q.log_prior(z)
  return {
    "elbo": jnp.sum(w * (likelihood - log_ratio), axis=0),
    "iwae": jax.nn.logsumexp(likelihood - log_ratio, axis=0, b=w),
    "kl": jnp.sum(w * log_ratio, axis=0),
  }


def reconstruction(
  modality: Modality, x: Float[Array, "b ..."], x_hat: Float[Array, "b ..."]
) -> dict[str, Float[Array, " b"]]:
  """Compares observations with what the decoder returned for them.

  Returns:
    For images `mae` and `psnr` (dB), clipped to [-1, 1]; for classes
    `accuracy`; otherwise `mae`, in the units of the modality.
  """
  event = tuple(range(-len(modality.shape), 0))
  mean = modality.likelihood.mean(x_hat)
  if modality.likelihood.categorical:
    right = jnp.argmax(mean, axis=-1) == jnp.argmax(x, axis=-1)
    return {"accuracy": jnp.mean(right.astype(x.dtype), axis=event[1:])}
  if not modality.is_image:
    return {"mae": jnp.mean(jnp.abs(x - mean), axis=event)}
  mean = jnp.clip(mean, -1, 1)
  mse = jnp.mean(jnp.square(x - mean), axis=event)
  return {
    "mae": jnp.mean(jnp.abs(x - mean), axis=event),
    # The range [-1, 1] has a width of 2.
    "psnr": 10 * jnp.log10(4 / jnp.maximum(mse, 1e-10)),
  }


def held_out(
  output: VAEOutput,
  x_hat: dict[str, jax.Array],
  modalities: Modalities,
  weight: float,
) -> dict[str, jax.Array]:
  """Computes metrics per observation, for held-out data.

  Args:
    output: of the VAE with s draws.
    x_hat: decoded mean of q, [b, ...] by modality.
    modalities: of the observations.
    weight: of the reconstruction term.

  Returns:
    [b]: `reconstruction` of x_hat, by name of the modality if there are
    several, NaN where a modality is missing; and `bounds` if the family has
    finite ones (`Posterior.has_finite_elbo`). [b, d]: `mean` and `var` of q.
  """
  q = output.q
  values = bounds(output, modalities, weight) if q.has_finite_elbo else {}
  mask = output.x.get(MASK)
  for i, (name, modality) in enumerate(modalities.items()):
    measured = reconstruction(modality, output.x[name], x_hat[name])
    if mask is not None:
      measured = {
        f"{name}/{k}": jnp.where(mask[:, i] > 0, v, jnp.nan)
        for k, v in measured.items()
      }
    values |= measured
  mean, (weights, mu, var) = q.mean(), q.components()
  second_moment = jnp.square(mu) + var
  return values | {
    "mean": mean,
    "var": jnp.sum(weights[..., None] * second_moment, axis=1) - mean**2,
  }

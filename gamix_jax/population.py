"""Moments of the population q(z) = 1/B sum_i q(z | x_i), and their pull.

    means        1/2 sum_d ( m^2 + v - 1 - ln v ), v the biased variance of the
                 posteriors' means: what the published code does
    full         the same, v plus the mean of sigma^2: the mixture's variance
    correlation  `full`, plus 1/2 sum_{i<j} r_ij^2 of the mixture's correlations
    covariance   1/2 ( tr S + |m|^2 - d - ln det S ), S the mixture's covariance

The last two are not the paper's: matching the diagonal alone leaves latents
correlated, and then N(0, I) is not where the codes are. `correlation` is the
expansion of `covariance` to second order in the correlations.

Sums run over the global batch, so its size is part of the objective: a mean of
the terms of parts of a batch is another loss, and so is gradient accumulation.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from gamix_jax.errors import UserError
from gamix_jax.posterior import Posterior

FORMS = ("means", "full", "correlation", "covariance")
# Under any variance worth keeping, and above what float32 loses of 1.
FLOOR = 1e-6
# A sample covariance of fewer images than this times d is (nearly) singular.
IMAGES_PER_DIMENSION = 2


def default_decay(form: str, latent: int, batch_size: int) -> float:
  """The memory a form needs: 0, but for a covariance of too small a batch.

  An average with decay a holds B (1 + a) / (1 - a) images' worth of
  independent noise; a is what makes that twice IMAGES_PER_DIMENSION * d.
  """
  wanted = 2 * IMAGES_PER_DIMENSION * latent / batch_size
  if form != "covariance" or wanted <= 1:
    return 0.0
  return (wanted - 1) / (wanted + 1)


def check(form: str, decay: float, latent: int, batch_size: int) -> None:
  """Refuses what cannot work.

  Raises:
    UserError: unknown form; a decay outside [0, 1); a batch under 2; a
      covariance without memory of a batch under 2 d.
  """
  if form not in FORMS:
    raise UserError(
      f"objective.population={form!r} is not a form of the population term; "
      f"there are: {', '.join(FORMS)}."
    )
  if not 0 <= decay < 1:
    raise UserError(
      f"objective.memory={decay} is not a decay; it lies in [0, 1)."
    )
  if batch_size < 2:
    raise UserError(
      f"data.batch_size={batch_size}: the population's variance needs a "
      "global batch of 2 or more (the published run had 20)."
    )
  if form == "covariance" and not decay:
    needed = IMAGES_PER_DIMENSION * latent
    if batch_size < needed:
      raise UserError(
        f"objective.memory=0 with population='covariance': a batch of "
        f"{batch_size} makes the covariance of {latent} latents singular; "
        f"use {needed} images, a memory of 0.9 or more, or 'correlation'."
      )


def init_memory(form: str, decay: float, latent: int, dtype: Any) -> dict:
  """Remembered moments, at first the prior's; {} where there is no memory.

  Starting at N(0, I), the average is never singular, and the term's gradient
  fades in over the first 1 / (1 - decay) steps.
  """
  if not decay:
    return {}
  off_diagonal = form in ("correlation", "covariance")
  second = jnp.eye if off_diagonal else jnp.ones
  return {
    "mean": jnp.zeros(latent, dtype),
    "second": second(latent, dtype=dtype),
  }


def _batch_moments(q: Posterior, form: str) -> tuple[jax.Array, ...]:
  """Mean [d], covariance of the means ([d] or [d, d]), mean sigma^2 [d]."""
  weights, mu, var = q.centres()
  weights = weights / weights.shape[0]
  mean = jnp.einsum("bk,bkd->d", weights, mu)
  centred = mu - mean[None, None]
  within = jnp.einsum("bk,bkd->d", weights, var)
  if form in ("correlation", "covariance"):
    # In full float32 where a device would round the factors (TPU, TF32).
    between = jnp.einsum(
      "bk,bki,bkj->ij", weights, centred, centred, precision="highest"
    )
  else:
    between = jnp.einsum("bk,bkd->d", weights, jnp.square(centred))
  return mean, between, within


def _remember(memory: dict, mean, second, decay: float) -> tuple[dict, Any]:
  """The average with this batch in it, and the moments to differentiate.

  The value is the average; the gradient is that of the current batch, with
  weight one: dKL(M)/dM at the (less noisy) average, times dm/dtheta. Scaled
  by 1 - decay instead, the term would weigh less the longer its memory.
  """
  new = {
    "mean": decay * memory["mean"] + (1 - decay) * mean,
    "second": decay * memory["second"] + (1 - decay) * second,
  }
  new = jax.lax.stop_gradient(new)

  def through(value, current):
    return value + (current - jax.lax.stop_gradient(current))

  return new, (through(new["mean"], mean), through(new["second"], second))


def population_kl(
  q: Posterior, memory: dict, form: str, decay: float
) -> tuple[jax.Array, dict, dict]:
  """The pull of the population to N(0, I), nats.

  Args:
    q: the posterior of the global batch.
    memory: of `init_memory`.
    form: one of FORMS.
    decay: of the memory; 0 for this batch alone.

  Returns:
    The term; {"population_kl_excess", "population_mean" [d],
    "population_var" [d]} for the log; the memory with this batch in it.
  """
  images = q.mean().shape[0]
  mean, between, within = _batch_moments(q, form)
  outer = jnp.outer if between.ndim > 1 else jnp.multiply
  inside = jnp.diag(within) if between.ndim > 1 else within
  second = between if form == "means" else between + inside
  if decay:
    raw = second + outer(mean, mean)
    memory, (mean, raw) = _remember(memory, mean, raw, decay)
    second = raw - outer(mean, mean)
  # The floor keeps ln v and 1 / v finite where all codes are one.
  var = jnp.diag(second) if between.ndim > 1 else second
  var = jnp.maximum(var, FLOOR)
  if form == "covariance":
    chol = jnp.linalg.cholesky(second + FLOOR * jnp.eye(mean.size))
    log_det = 2 * jnp.sum(jnp.log(jnp.diag(chol)))
  else:
    log_det = jnp.sum(jnp.log(var))
  kl = 0.5 * (jnp.sum(var) + jnp.sum(jnp.square(mean)) - var.size - log_det)
  if form == "correlation":
    scale = jax.lax.rsqrt(var)
    r = jnp.triu(second * jnp.outer(scale, scale), k=1)
    kl = kl + 0.5 * jnp.sum(jnp.square(r))
  info = {
    "population_kl_excess": kl - offset(form, decay, images, within),
    "population_mean": mean,
    "population_var": var,
  }
  return kl, jax.lax.stop_gradient(info), memory


def offset(form: str, decay: float, images: int, within: jax.Array):
  """What the term reads, in nats, when q(z) is N(0, I) exactly.

  A sample of B images never has the moments of the population it is from.
  For `means`, with mu ~ N(0, I), it is -d/2 ( psi((B-1)/2) + ln(2/B) ). In
  the other forms mu ~ N(0, 1 - mean sigma^2). A variance is then sigma^2 plus
  a scaled chi-squared number, whose quantiles the expectations are taken over;
  that of a squared correlation is E g_i E g_j / (B - 1), g the means' share of
  a variance. A memory counts as B (1 + a) / (1 - a) images, which makes it 5 %
  right; without one it is 2 % or better.

  Args:
    form: one of FORMS.
    decay: a, of the memory.
    images: B.
    within: mean sigma^2 over the population, [d].
  """
  n = images * (1 + decay) / (1 - decay)
  d = within.shape[0]
  if form == "means":
    psi = scipy.special.digamma((n - 1) / 2)
    return jnp.asarray(-d / 2 * (psi + np.log(2 / n)), within.dtype)
  share = (np.arange(256) + 0.5) / 256
  # Quantiles of chi^2; importing scipy.stats for them would take a second.
  chi2 = 2 / n * scipy.special.gammaincinv((n - 1) / 2, share)
  chi2 = jnp.asarray(chi2, within.dtype)
  tau2 = jnp.clip(1 - within, 0, 1)  # variance left to the means
  v = (1 - tau2)[:, None] + tau2[:, None] * chi2[None]
  kl = -0.5 * jnp.sum(jnp.mean(jnp.log(v), axis=-1))
  if form == "covariance":
    return -0.5 * _expected_log_det(1 - tau2, tau2 * (n - 1) / n, n - 1)
  if form == "correlation":
    g = jnp.mean(1 - (1 - tau2)[:, None] / v, axis=-1)
    pairs = (jnp.square(jnp.sum(g)) - jnp.sum(jnp.square(g))) / 2
    kl = kl + 0.5 * pairs / (n - 1)
  return kl


def _expected_log_det(fixed: jax.Array, scale: jax.Array, n: float):
  """E ln det( diag fixed + 1/n sum_i x_i x_i^T ), x_i ~ N(0, diag scale).

  The deterministic equivalent of a sample covariance (Silverstein & Bai 1995)
  and its correction for real numbers (Bai & Silverstein 2004), which make it
  right to second order in d / n. fixed and scale are [d].
  """

  def response(e):
    return scale / (fixed + scale / (1 + e))

  e = jax.lax.fori_loop(
    0, 50, lambda _, e: jnp.sum(response(e)) / n, jnp.zeros((), scale.dtype)
  )
  square = jnp.sum(jnp.square(response(e) / (1 + e))) / n
  return (
    jnp.sum(jnp.log(fixed + scale / (1 + e)))
    + n * (jnp.log1p(e) - e / (1 + e))
    + 0.5 * jnp.log1p(-jnp.minimum(square, 0.99))
  )

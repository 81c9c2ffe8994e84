"""THE PAPER, 3: the named terms; their weighted sum is the loss.

All in nats per image, images in [-1, 1]. q(z | x_i) is image i's posterior,
i = 1..B over the global batch, and w [s, b] are the weights of its s draws
(see `Posterior.draws`), so that a mixture is scored stratum by stratum.

    recon           mean_i sum_s w_si mean over h, w, c of |x_i - x_hat_si|
    population_kl   1/2 sum_d ( m^2 + v - 1 - ln v )     (and its other forms)
    collapse_penalty  mean_i sum_k pi_ik 1/2 sum_d ( sigma^2 - 1 - ln sigma^2 )
    kl              mean_i KL(q(z | x_i) || p(z))         (the ELBO's)
    kernel          mean_i 3 B / (5 M) sum_d 1 / r         (published EVAE)
    adversarial     mean_i sum_s w_si mean over patches BCE(D(x_hat_si), real)
    real, fake      the same means of BCE(D(x), real) and BCE(D(x_hat), fake)

m and v are the mean and the variance of the population, in `population.py`.
Source: arXiv:2309.13160 and the published code as it ran.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from gamix_jax import population
from gamix_jax.errors import UserError
from gamix_jax.posterior import (
  Epanechnikov,
  EVAEPosterior,
  Gaussian,
  Mixture,
  Poisson,
  Posterior,
)
from gamix_jax.posterior.base import expand_leading, promote_f32

Terms = dict[str, jax.Array]


@struct.dataclass
class VAEOutput:
  """What one forward pass of the VAE leaves for its terms.

  Attributes:
    x: images [b, h, w, c] in [-1, 1].
    q: their posterior.
    z: draws [s, b, d], with weights w [s, b].
    w: see z.
    x_hat: the draws decoded, [s, b, h, w, c].
    weight: of `recon`, where a term has it inside a logarithm.
    spread: the variance of x_hat over z, [b, h, w, c], where z is the mean
      alone.
  """

  x: jax.Array
  q: Posterior
  z: jax.Array
  w: jax.Array
  x_hat: jax.Array
  weight: float = 1.0
  spread: jax.Array | None = None


# ---------------------------------------------------------- reconstruction


def _l1(x, x_hat):
  return jnp.abs(x - x_hat)


def _l2(x, x_hat):
  return jnp.square(x - x_hat)


def _bernoulli(x, x_hat):
  # x_hat are logits; x in [-1, 1] is read as a probability in [0, 1].
  t = (x + 1) / 2
  return jax.nn.softplus(x_hat) - t * x_hat


RECONSTRUCTIONS = {"l1": _l1, "l2": _l2, "bernoulli": _bernoulli}


def reconstruction_error(
  x: jax.Array, x_hat: jax.Array, kind: str
) -> jax.Array:
  """Mean over pixels, channels: [b, h, w, c], [.., b, h, w, c] -> [.., b]."""
  x_hat = promote_f32(x_hat)
  each = RECONSTRUCTIONS[kind](expand_leading(x, x_hat.ndim), x_hat)
  return jnp.mean(each, axis=(-3, -2, -1))


def to_image(x_hat: jax.Array, kind: str) -> jax.Array:
  """The decoder's output as an image: bounded only where its form is."""
  return jnp.tanh(x_hat / 2) if kind == "bernoulli" else x_hat


def log_likelihood(
  x: jax.Array, x_hat: jax.Array, kind: str, weight: float
) -> jax.Array:
  """ln p(x | z) in nats of the density that weight * error stands for.

  With n = h w c numbers an image, weight * mean |x - x_hat| is, up to its
  constant, minus the log density of Laplace noise of scale n / weight; `l2`
  of Gaussian noise of variance n / (2 weight). `bernoulli` is a likelihood
  at weight n; at another one it is tempered. Pixels in [-1, 1].
  """
  n = x.shape[-1] * x.shape[-2] * x.shape[-3]
  if kind == "l1":
    constant = n * jnp.log(2 * n / weight)
  elif kind == "l2":
    constant = n / 2 * jnp.log(jnp.pi * n / weight)
  else:
    constant = 0.0
  return -weight * reconstruction_error(x, x_hat, kind) - constant


def recon(p: VAEOutput, kind: str) -> jax.Array:
  """Mean over the batch of the draws' weighted error."""
  return jnp.mean(
    jnp.sum(p.w * reconstruction_error(p.x, p.x_hat, kind), axis=0)
  )


# ---------------------------------------------------------- the objectives


def collapse_penalty(q: Posterior) -> jax.Array:
  """mean_i sum_k pi_ik 1/2 sum_d ( sigma^2 - 1 - ln sigma^2 ), nats."""
  weights, _, var = q.components()
  each = 0.5 * jnp.sum(var - 1 - jnp.log(var), axis=-1)
  return jnp.mean(jnp.sum(weights * each, axis=-1))


def gamix(p: VAEOutput, *, form: str, kind: str):
  """GAMIX: the population is pulled to the prior, single posteriors are not."""
  kl, info = population.population_kl(p.q, form)
  terms = {
    "recon": recon(p, kind),
    "population_kl": kl,
    "collapse_penalty": collapse_penalty(p.q),
  }
  return terms, info


def elbo(p: VAEOutput, *, form: str, kind: str):
  """The standard VAE: every posterior is pulled to the prior.

  Of a mixture this is the stratified ELBO, with the mixture's own density
  (`selbo` is its other name; Morningstar et al., arXiv:2003.01687).
  """
  del form
  terms = {"recon": recon(p, kind), "kl": jnp.mean(p.q.kl_divergence(p.z, p.w))}
  return terms, {}


def analytic_elbo(p: VAEOutput, *, form: str, kind: str):
  """The elbo of a linear decoder in closed form: no draws, no relaxation.

      E |x - Phi z|^2 = |x - Phi E z|^2 + sum_d |Phi_d|^2 Var z_d

  of independent latents; with counts, whose mean is their variance, amortised
  sparse coding (arXiv:2405.14473).
  """
  del form, kind
  terms = {
    "recon": recon(p, "l2") + jnp.mean(p.spread),
    "kl": jnp.mean(p.q.kl_divergence(p.z, p.w)),
  }
  return terms, {}


def siwae(p: VAEOutput, *, form: str, kind: str):
  """The stratified importance-weighted bound of T draws, SIWAE_T.

      E logsumexp_kt [ ln pi_k + ln p(x, z_kt) - ln q(z_kt | x) ] - ln T

  Morningstar et al., arXiv:2003.01687; of one component the IWAE of Burda et
  al., arXiv:1509.00519. T is `objective.num_samples`. The sum recon_weight *
  recon + kl is minus the bound (up to the likelihood's constant), so `kl` is
  what the bound loses beside the reconstruction: with one draw of one component
  an estimate of KL(q || p), with more of them less.
  """
  del form
  likelihood = -p.weight * reconstruction_error(p.x, p.x_hat, kind)
  log_ratio = likelihood + p.q.log_prior(p.z) - p.q.log_prob(p.z)
  bound = jax.nn.logsumexp(log_ratio, axis=0, b=p.w)
  of_images = recon(p, kind)
  kl = -jnp.mean(bound) - p.weight * of_images
  return {"recon": of_images, "kl": kl}, {}


def evae(p: VAEOutput, *, form: str, kind: str):
  """The Epanechnikov VAE's loss as published; NOT a bound of ln p(x).

      kernel = mean_i 3 B / (5 M) sum_d 1 / r_d(x_i)

  B the prior's width, M the (global) batch; arXiv:2405.12783, equation 10,
  where it stands beside the reconstruction with a weight of 1. mu is in no
  term but `recon`.
  """
  del form
  inverse = jnp.mean(jnp.sum(1 / p.q.radius(), axis=-1))
  kernel = 3 * p.q.width / (5 * p.x.shape[0]) * inverse
  return {"recon": recon(p, kind), "kernel": kernel}, {}


class Objective(NamedTuple):
  """A line of the table.

  Attributes:
    function: of a VAEOutput: terms, and what else is to be logged.
    terms: the names it returns.
    families: the classes of posteriors that it is defined for.
  """

  function: Callable
  terms: tuple[str, ...]
  families: tuple[type, ...]


_NORMAL = (Gaussian, Mixture, Epanechnikov)
OBJECTIVES = {
  "gamix": Objective(
    gamix, ("recon", "population_kl", "collapse_penalty"), _NORMAL
  ),
  "elbo": Objective(elbo, ("recon", "kl"), (*_NORMAL, Poisson)),
  "exact": Objective(
    analytic_elbo, ("recon", "kl"), (Gaussian, Epanechnikov, Poisson)
  ),
  "selbo": Objective(elbo, ("recon", "kl"), (Gaussian, Mixture)),
  "siwae": Objective(siwae, ("recon", "kl"), _NORMAL),
  "evae": Objective(evae, ("recon", "kernel"), (EVAEPosterior,)),
}


# The terms that pull single posteriors to the prior.
PULLS = ("collapse_penalty", "kl", "kernel")


def ramped(objective: str) -> tuple[str, ...]:
  """Of PULLS those of an objective that may start without their weight.

  None of siwae, whose bound is whole with its full weight alone.
  """
  if objective == "siwae":
    return ()
  return tuple(t for t in OBJECTIVES[objective].terms if t in PULLS)


def check_fit(objective: str, family: type, named: str) -> None:
  """Refuses an objective that is not defined for a family of posteriors.

  Raises:
    UserError: names the objectives that are.
  """
  # By the class itself: a smoothed kernel is an Epanechnikov without its KL.
  if family in OBJECTIVES[objective].families:
    return
  fit = [k for k, o in OBJECTIVES.items() if family in o.families]
  raise UserError(
    f"objective.name={objective!r} is not defined for {named}; "
    f"what is: {', '.join(fit)}."
  )


# ---------------------------------------------------------- adversarial


def _bce(logits: jax.Array, real: bool) -> jax.Array:
  return jax.nn.softplus(-logits if real else logits)


def _hinge(logits: jax.Array, real: bool) -> jax.Array:
  return jax.nn.relu(1 - logits if real else 1 + logits)


ADVERSARIAL = ("bce", "hinge", "none")


def adversarial(
  logits_real: jax.Array, logits_fake: jax.Array, w: jax.Array, loss: str
) -> Terms:
  """adversarial, real and fake of logits [b, p, q, 1] and [s, b, p, q, 1].

  With `hinge` (Lim & Ye, arXiv:1705.02894) `adversarial` is minus the mean
  logit.
  """

  def over_patches(each):
    return jnp.mean(each, axis=(-3, -2, -1))

  def over_draws(each):
    return jnp.mean(jnp.sum(w * over_patches(each), axis=0))

  score = _bce if loss == "bce" else _hinge
  generator = -logits_fake if loss == "hinge" else _bce(logits_fake, True)
  return {
    "adversarial": over_draws(generator),
    "real": jnp.mean(over_patches(score(logits_real, True))),
    "fake": over_draws(score(logits_fake, False)),
  }


def term_names(objective: str, adversarial_loss: str) -> tuple[list, list]:
  """The names of the VAE's terms and of the discriminator's.

  Raises:
    UserError: if there is no such objective or adversarial loss.
  """
  if objective not in OBJECTIVES:
    raise UserError(
      f"objective.name={objective!r} is not an objective; "
      f"there are: {', '.join(OBJECTIVES)}."
    )
  if adversarial_loss not in ADVERSARIAL:
    raise UserError(
      f"adversarial.loss={adversarial_loss!r} is not a loss; "
      f"there are: {', '.join(ADVERSARIAL)}."
    )
  of_vae = list(OBJECTIVES[objective].terms)
  if adversarial_loss == "none":
    return of_vae, []
  return [*of_vae, "adversarial"], ["real", "fake"]


def weighted_sum(terms: Terms, weights: dict[str, float]) -> jax.Array:
  """sum over the names of `weights` of weight * term."""
  return sum(weight * terms[name] for name, weight in weights.items())

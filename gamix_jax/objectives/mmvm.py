"""MMVM: every modality's posterior is pulled to the mixture of all of them.

    kl   mean_i sum_m KL(q_m || h),
         h = alpha N(0, I) + (1 - alpha) / M sum_j q_j

q_m = q(z_m | x_m) is the posterior of modality m, one of M observed ones. h is
a prior that depends on the data. With alpha = 0 the sum is M times the
Jensen-Shannon divergence of the posteriors, at most M ln M nats. Source: "Unity
by Diversity", arXiv:2403.05300.

    exact      the sum above, estimated from the draws, one of each q_m
    surrogate  sum_m [ alpha KL(q_m || N(0, I))
                       + (1 - alpha) / M sum_j KL(q_m || q_j) ]
               in closed form: what the released code trains. An upper bound of
               the sum by convexity, and a different regulariser: it grows with
               the squared distance of the posteriors, where the sum saturates.

With alpha = 1 both are independent VAEs, as the objective `elbo` is.

h has no distribution to sample from without data. `mmvm_population` adds the
terms of GAMIX for each modality's latents, so that N(0, I) can be decoded:

    population_kl     sum_m of the population term, see `population`
    collapse_penalty  as for `gamix`
"""

import dataclasses
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.modality import Modalities
from gamix_jax.multimodal import MultimodalOutput, Separate
from gamix_jax.objectives import population
from gamix_jax.objectives.base import Objective, State, Terms
from gamix_jax.objectives.gamix import collapse_penalty
from gamix_jax.posterior import Gaussian, Posterior
from gamix_jax.posterior.base import log_prior, normal_kl, normal_log_prob
from gamix_jax.registry import check_choice

ESTIMATES = ("exact", "surrogate")


@dataclasses.dataclass(frozen=True)
class MMVM(Objective):
  """The objective of MMVM.

  Attributes:
    estimate: one of ESTIMATES.
    alpha: the share of N(0, I) in h, in [0, 1].
    alpha_steps: steps over which the share falls linearly from 1 to `alpha`.
  """

  estimate: str = "exact"
  alpha: float = 0.0
  alpha_steps: int = 0

  terms = ("recon", "kl")
  ramped = ("kl",)
  additive = True
  settings: ClassVar[dict[str, Any]] = {
    "estimate": "exact",
    "alpha": 0.0,
    "alpha_steps": 0,
  }

  @classmethod
  def from_config(cls, config: ConfigDict, modalities: Modalities) -> Self:
    section = config.objective.mmvm
    check_choice("objective.mmvm.estimate", section.estimate, ESTIMATES)
    if not 0 <= section.alpha <= 1:
      raise UserError(
        f"objective.mmvm.alpha={section.alpha} must be from 0 to 1."
      )
    if section.alpha_steps < 0:
      raise UserError(
        f"objective.mmvm.alpha_steps={section.alpha_steps} must be 0 or more."
      )
    return cls(
      modalities,
      num_samples=config.objective.num_samples,
      recon_weight=float(config.weights.recon),
      **section,
    )

  @classmethod
  def accepts(cls, family: type[Posterior]) -> bool:
    return family.separate

  @property
  def has_prior(self) -> bool:
    """Only if the data have no part in h; see above."""
    return self.alpha == 1

  def init(self) -> State:
    """The number of steps done, which `alpha_steps` needs."""
    return {"step": jnp.zeros((), jnp.int32)}

  def __call__(
    self, output: MultimodalOutput, state: State
  ) -> tuple[Terms, dict[str, jax.Array], State]:
    done = state["step"] / max(self.alpha_steps, 1)
    share = jnp.clip(1 - done, 0, 1) if self.alpha_steps else 0.0
    alpha = self.alpha + (1 - self.alpha) * share
    if self.estimate == "exact":
      kl = jnp.sum(output.w * kl_to_mixture(output.q, output.z, alpha), axis=0)
    else:
      kl = pairwise_kl(output.q, alpha)
    terms = {"recon": self.recon(output), "kl": jnp.mean(kl)}
    info = {"mmvm/alpha": jnp.asarray(alpha, kl.dtype)}
    return terms, info, {"step": state["step"] + 1}


@dataclasses.dataclass(frozen=True)
class MMVMPopulation(MMVM):
  """MMVM whose modalities' populations are pulled to N(0, I).

  Attributes:
    population: the form of `population_kl`, one of `population.FORMS`.
  """

  population: str = "debiased"

  terms = ("recon", "kl", "population_kl", "collapse_penalty")
  ramped = ("kl", "collapse_penalty")
  settings: ClassVar[dict[str, Any]] = {}  # those of mmvm

  @property
  def additive(self) -> bool:
    """Whether its form is unbiased for any batch size."""
    return population.FORMS[self.population].unbiased

  @property
  def has_prior(self) -> bool:
    return True  # the population terms pull each modality's latents to it

  @classmethod
  def from_config(cls, config: ConfigDict, modalities: Modalities) -> Self:
    form = config.objective.population
    population.check(form, config.data.batch_size)
    return dataclasses.replace(
      super().from_config(config, modalities), population=form
    )

  def __call__(
    self, output: MultimodalOutput, state: State
  ) -> tuple[Terms, dict[str, jax.Array], State]:
    terms, info, state = super().__call__(output, state)
    kl, of_population = population_of_each(output.q, self.population)
    terms["population_kl"] = kl
    terms["collapse_penalty"] = collapse_penalty(output.q)
    return terms, info | of_population, state


def kl_to_mixture(
  q: Separate, z: Float[Array, "s b d"], alpha: float | jax.Array = 0.0
) -> Float[Array, "s b"]:
  """Unbiased estimates of sum_m KL(q_m || h) in nats, one for each draw.

  Args:
    q: the posteriors of all modalities.
    z: draws of them, one of each q_m: stratified over the modalities.
    alpha: the share of N(0, I) in h.
  """
  z = q.split(z)
  # ln q_j(z_m) for every pair, [s, b, m, j].
  each = normal_log_prob(z[..., None, :], q.mu[:, None], q.logvar[:, None])
  m = each.shape[-1]
  own = jnp.einsum("sbmm->sbm", each)
  mask = q.mask
  count = jnp.sum(mask, axis=1)[:, None, None]
  # If nothing is observed, h is N(0, I): without any component its logarithm
  # would be infinite, with a gradient of NaN.
  alpha = jnp.where(count > 0, jnp.asarray(alpha, each.dtype), 1)
  # `b` are the weights, so that an alpha of 0 or 1 has no infinite logarithm.
  weights = (1 - alpha) * mask[:, None, :] / jnp.maximum(count, 1)
  weights = jnp.broadcast_to(
    jnp.concatenate([weights, alpha], axis=-1), (len(mask), m, m + 1)
  )
  logs = jnp.concatenate([each, log_prior(z)[..., None]], axis=-1)
  of_mixture = jax.nn.logsumexp(logs, axis=-1, b=weights[None])
  # Rows of missing modalities are left out before they can be infinite.
  there = mask[None] > 0
  return jnp.sum(jnp.where(there, own - of_mixture, 0), axis=-1)


def pairwise_kl(
  q: Separate, alpha: float | jax.Array = 0.0
) -> Float[Array, " b"]:
  """The surrogate: sum_m of the mean KL(q_m || q_j) over j, in nats.

  Args:
    q: the posteriors of all modalities.
    alpha: the share of KL(q_m || N(0, I)).
  """
  mu, logvar, mask = q.mu, q.logvar, q.mask
  difference = logvar[:, :, None] - logvar[:, None]  # lv_m - lv_j
  square = jnp.square(mu[:, :, None] - mu[:, None]) * jnp.exp(-logvar[:, None])
  each = 0.5 * jnp.sum(jnp.exp(difference) + square - 1 - difference, axis=-1)
  count = jnp.maximum(jnp.sum(mask, axis=1), 1)[:, None]
  to_others = jnp.sum(mask[:, None] * each, axis=-1) / count
  to_normal = normal_kl(mu, logvar)
  total = alpha * to_normal + (1 - alpha) * to_others
  return jnp.sum(mask * total, axis=-1)


def population_of_each(
  q: Separate, form: str
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The sum of the population terms of the modalities' latents, in nats.

  Latents of different modalities belong together, so their correlations are
  not part of it. The posterior of a missing modality is replaced with a
  Gaussian of its mean and variance.

  Returns:
    The term, and the metrics of `population.population_kl` of all latents.
  """
  mean, var = q.moments()
  terms, infos = [], []
  for i in range(mean.shape[1]):
    one = Gaussian(mean[:, i], jnp.log(var[:, i]))
    kl, info = population.population_kl(one, form)
    terms.append(kl)
    infos.append(info)
  return sum(terms), {
    k: jnp.concatenate([jnp.atleast_1d(info[k]) for info in infos])
    for k in ("population/mean", "population/var")
  }

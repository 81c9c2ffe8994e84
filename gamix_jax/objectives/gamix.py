"""GAMIX: pulls the population to the prior, not single posteriors.

    population_kl     1/2 sum_d ( m^2 + v - 1 - ln v )   and its other forms
    collapse_penalty  mean_i sum_k pi_ik 1/2 sum_d ( sigma^2 - 1 - ln sigma^2 )

m and v are the mean and the variance of the population, see `population`.
Source: arXiv:2309.13160, and the published code as it ran.
"""

import dataclasses
from typing import Self

import einops
import jax
import jax.numpy as jnp

from gamix_jax.config import ConfigDict
from gamix_jax.modality import Modalities
from gamix_jax.networks import VAEOutput
from gamix_jax.objectives import population
from gamix_jax.objectives.base import Objective, State, Terms
from gamix_jax.posterior import Mixture, Posterior


@dataclasses.dataclass(frozen=True)
class Gamix(Objective):
  """The GAMIX objective.

  Attributes:
    population: the form of `population_kl`, one of `population.FORMS`.
  """

  population: str = "means"

  terms = ("recon", "population_kl", "collapse_penalty")
  ramped = ("collapse_penalty",)

  @classmethod
  def from_config(cls, config: ConfigDict, modalities: Modalities) -> Self:
    form = config.objective.population
    population.check(form, config.data.batch_size)
    return dataclasses.replace(
      super().from_config(config, modalities), population=form
    )

  @property
  def additive(self) -> bool:
    """Whether its form is unbiased for any batch size."""
    return population.FORMS[self.population].unbiased

  @classmethod
  def accepts(cls, family: type[Posterior]) -> bool:
    return family.standard_normal_prior and family.has_density

  @classmethod
  def default_weights(cls, recon: float) -> dict[str, float]:
    return {
      "population_kl": max(1.0, recon / 400),
      "collapse_penalty": 0.2,
    }

  def __call__(
    self, output: VAEOutput, state: State
  ) -> tuple[Terms, dict[str, jax.Array], State]:
    kl, info = population.population_kl(output.q, self.population)
    terms = {
      "recon": self.recon(output),
      "population_kl": kl,
      "collapse_penalty": collapse_penalty(output.q),
    }
    return terms, info, state


@dataclasses.dataclass(frozen=True)
class GamixMixture(Gamix):
  """GAMIX with the likelihood of the whole mixture in place of each draw's.

      recon    -1/r mean_i ln sum_s w_si exp(-r error(x_i, x_hat_si))

  with r = weights.recon, so r recon is -ln sum_s w_si p(x_i | z_si) up to a
  constant. The mean error over components is linear in their weights, so it is
  smallest with all of the weight on one component, and with every component at
  the same guess. Here one component that is right is enough, so that
  components that complete an image in different ways pay.

  The population is that of the components that were right: the other two terms
  weight component k of image i by its share of the sum over s. (With pi
  instead, they would be smallest with nearly all of the weight on a component
  that equals the prior, which costs `recon` little.) The shares are constants
  for the gradient.

  With one draw of one component it is `Gamix`. Compare `SIWAE`, which has the
  prior and the entropy in the sum.
  """

  def __call__(
    self, output: VAEOutput, state: State
  ) -> tuple[Terms, dict[str, jax.Array], State]:
    if output.q.has_components:
      output = output.replace(q=self._explaining(output))
    return super().__call__(output, state)

  def recon(self, output: VAEOutput) -> jax.Array:
    """The term `recon`; at most that of `Gamix`."""
    log_p = -self.recon_weight * self.errors(output)
    log_mean = jax.nn.logsumexp(log_p, axis=0, b=output.w)
    return -jnp.mean(log_mean) / self.recon_weight

  def _explaining(self, output: VAEOutput) -> Mixture:
    """q with the components' shares of the likelihood as weights."""
    q = output.q
    log_p = jnp.log(output.w) - self.recon_weight * self.errors(output)
    shares = jax.nn.softmax(log_p, axis=0)
    k = q.mu.shape[1]
    of_components = einops.reduce(shares, "(n k) b -> b k", "sum", k=k)
    smallest = jnp.finfo(shares.dtype).tiny
    logits = jnp.log(jnp.maximum(of_components, smallest))
    return q.replace(logits=jax.lax.stop_gradient(logits))


def collapse_penalty(q: Posterior) -> jax.Array:
  """mean_i sum_k pi_ik 1/2 sum_d ( sigma^2 - 1 - ln sigma^2 ), nats, []."""
  weights, _, var = q.components()
  each = 0.5 * jnp.sum(var - 1 - jnp.log(var), axis=-1)
  return jnp.mean(jnp.sum(weights * each, axis=-1))

"""The ELBO: pulls every posterior to the prior.

kl    mean_i KL(q(z | x_i) || p(z))
"""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp

from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.likelihood import Normal
from gamix_jax.modality import Modalities, sum_over
from gamix_jax.networks import VAEOutput
from gamix_jax.objectives.base import Objective, State, Terms
from gamix_jax.posterior import Posterior


@dataclasses.dataclass(frozen=True)
class ELBO(Objective):
  """The objective of the standard VAE.

  For a mixture it is the stratified ELBO with the mixture's own density, also
  called SELBO (Morningstar et al., arXiv:2003.01687).
  """

  terms = ("recon", "kl")
  ramped = ("kl",)
  learned_prior = True

  @classmethod
  def accepts(cls, family: type[Posterior]) -> bool:
    return not family.adds_prior_noise

  def __call__(
    self, output: VAEOutput, state: State
  ) -> tuple[Terms, dict[str, jax.Array], State]:
    return {"recon": self.recon(output), "kl": kl(output)}, {}, state


@dataclasses.dataclass(frozen=True)
class AnalyticELBO(Objective):
  """The ELBO of a linear decoder in closed form, without draws.

      E |x - Phi z|^2 = |x - Phi E z|^2 + sum_d |Phi_d|^2 Var z_d

  for independent latents. With Poisson latents this is amortised sparse coding
  (arXiv:2405.14473).
  """

  terms = ("recon", "kl")
  ramped = ("kl",)
  several = False

  @classmethod
  def from_config(cls, config: ConfigDict, modalities: Modalities) -> Self:
    wrong = []
    if config.model.decoder != "linear":
      wrong.append("--config.model.decoder=linear")
    if not all(isinstance(m.likelihood, Normal) for m in modalities.values()):
      wrong.append("--config.objective.reconstruction=l2")
    if config.objective.num_samples != 1:
      wrong.append("--config.objective.num_samples=1 (none is made)")
    if wrong:
      raise UserError(
        f"objective.name={config.objective.name!r} needs {', '.join(wrong)}."
      )
    return dataclasses.replace(
      super().from_config(config, modalities), num_samples=0
    )

  @classmethod
  def accepts(cls, family: type[Posterior]) -> bool:
    return family.closed_form_kl and not family.has_components

  def __call__(
    self, output: VAEOutput, state: State
  ) -> tuple[Terms, dict[str, jax.Array], State]:
    var = sum_over(
      m.weight * jnp.mean(output.x_hat_var[name])
      for name, m in self.modalities.items()
    )
    return {"recon": self.recon(output) + var, "kl": kl(output)}, {}, state


def kl(output: VAEOutput) -> jax.Array:
  """mean_i KL(q(z | x_i) || p(z)) in nats, []."""
  return jnp.mean(output.q.kl_divergence(output.z, output.w))

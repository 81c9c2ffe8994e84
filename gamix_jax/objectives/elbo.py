"""The ELBO: pulls every posterior to the prior.

    kl    mean_i KL(q(z | x_i) || p(z))

With a weight of `kl` other than 1 it is the beta-VAE (Higgins et al., ICLR
2017).
"""

import dataclasses
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.likelihood import Normal
from gamix_jax.modality import Modalities, sum_over
from gamix_jax.networks import VAEOutput
from gamix_jax.objectives.base import Objective, State, Terms
from gamix_jax.posterior import POSTERIORS, Posterior


@dataclasses.dataclass(frozen=True)
class ELBO(Objective):
  """The objective of the standard VAE.

  For a mixture it is the stratified ELBO with the mixture's own density, also
  called SELBO (Morningstar et al., arXiv:2003.01687).

  Attributes:
    free_bits: nats of each latent that cost nothing: the term is then

        kl    sum_d max(free_bits, mean_i KL(q(z_d | x_i) || p(z_d)))

      (Kingma et al., arXiv:1606.04934, equation 15, each latent a group.)
  """

  free_bits: float = 0.0

  terms = ("recon", "kl")
  ramped = ("kl",)
  learned_prior = True
  settings: ClassVar[dict[str, Any]] = {"free_bits": 0.0}

  @property
  def additive(self) -> bool:
    """Not with free bits, whose maximum is of the mean over the batch."""
    return not self.free_bits

  @classmethod
  def from_config(cls, config: ConfigDict, modalities: Modalities) -> Self:
    name = config.objective.name
    free_bits = config.objective.elbo.free_bits if name == "elbo" else 0.0
    if free_bits < 0:
      raise UserError(f"objective.elbo.free_bits={free_bits} must be >= 0.")
    family = POSTERIORS.choose(config.posterior.name).family
    if free_bits and (
      not family.closed_form_kl
      or config.prior.name != "normal"
      or config.data.modalities
    ):
      raise UserError(
        f"objective.elbo.free_bits={free_bits} needs a KL of every latent in "
        "closed form: use posterior.name=gaussian, epanechnikov or poisson, "
        "prior.name=normal and a single modality, or "
        "--config.objective.elbo.free_bits=0."
      )
    return super().from_config(config, modalities)

  @classmethod
  def accepts(cls, family: type[Posterior]) -> bool:
    return family.has_density and not family.adds_prior_noise

  def __call__(
    self, output: VAEOutput, state: State
  ) -> tuple[Terms, dict[str, jax.Array], State]:
    if not self.free_bits:
      return {"recon": self.recon(output), "kl": kl(output)}, {}, state
    each = jnp.mean(output.q.kl_of_latents(), axis=0)
    free = jnp.sum(jnp.maximum(each, self.free_bits))
    info = {"kl/free_latents": jnp.sum(each < self.free_bits)}
    return {"recon": self.recon(output), "kl": free}, info, state


@dataclasses.dataclass(frozen=True)
class AnalyticELBO(Objective):
  """The ELBO of a linear decoder in closed form, without draws.

      E |x - Phi z|^2 = |x - Phi E z|^2 + sum_d |Phi_d|^2 Var z_d

  for independent latents. With Poisson latents this is amortised sparse coding
  (arXiv:2405.14473).
  """

  terms = ("recon", "kl")
  ramped = ("kl",)
  additive = True
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

"""The stratified importance-weighted bound of T draws, SIWAE_T.

    E logsumexp_kt [ ln pi_k + ln p(x, z_kt) - ln q(z_kt | x) ] - ln T

Morningstar et al., arXiv:2003.01687; of one component the IWAE of Burda et al.,
arXiv:1509.00519. T is `objective.num_samples`.
"""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp

from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.modality import Modalities
from gamix_jax.networks import VAEOutput
from gamix_jax.objectives.base import Objective, State, Terms
from gamix_jax.posterior import Posterior


@dataclasses.dataclass(frozen=True)
class SIWAE(Objective):
  """recon_weight * recon + kl is minus the bound, up to a constant.

  So `kl` is minus the bound without its reconstruction part. With one draw of
  one component it is an estimate of KL(q || p), with more it is smaller.
  """

  terms = ("recon", "kl")
  learned_prior = True
  additive = True

  @classmethod
  def from_config(cls, config: ConfigDict, modalities: Modalities) -> Self:
    for key in ("weights.kl", "ramp.kl"):
      section, name = key.split(".")
      value, whole = config[section][name], 1 if section == "weights" else 0
      if value != whole:
        raise UserError(
          f"{key}={value}: the bound of objective.name='siwae' is whole with "
          f"--config.{key}={whole} only."
        )
    return super().from_config(config, modalities)

  @classmethod
  def accepts(cls, family: type[Posterior]) -> bool:
    return family.has_density and not (
      family.discrete or family.adds_prior_noise
    )

  def __call__(
    self, output: VAEOutput, state: State
  ) -> tuple[Terms, dict[str, jax.Array], State]:
    likelihood = -self.recon_weight * self.errors(output)
    q, z = output.q, output.z
    log_ratio = likelihood + q.log_prior(z) - q.log_prob(z)
    bound = jax.nn.logsumexp(log_ratio, axis=0, b=output.w)
    recon = self.recon(output)
    kl = -jnp.mean(bound) - self.recon_weight * recon
    return {"recon": recon, "kl": kl}, {}, state

"""GAMIX whose population is matched by a discriminator of codes as well.

    population_kl     as in `gamix`, for example the form `kernel`
    collapse_penalty  as in `gamix`
    code_adversarial  as in `aae`, from draws of the posteriors

A fixed distance such as `kernel` is steady from the first step on, but hardly
sees some differences between q(z) and N(0, I). The discriminator finds those
that are left; alone, as in `aae`, it is unsteady with few latents. Posteriors
have a density here, other than there, so that there are bounds of ln p(x). The
combination is not from a paper; docs/results.md compares it.
"""

import dataclasses

import jax

from gamix_jax.networks import VAEOutput
from gamix_jax.objectives.aae import AAE, code_adversarial
from gamix_jax.objectives.base import State, Terms
from gamix_jax.objectives.gamix import Gamix
from gamix_jax.posterior import Posterior


@dataclasses.dataclass(frozen=True)
class GamixAAE(Gamix, AAE):
  """The objective of GAMIX with the discriminator of the AAE.

  The discriminator has the keys `objective.aae.width` and `layers`.
  """

  terms = (*Gamix.terms, "code_adversarial")

  @classmethod
  def accepts(cls, family: type[Posterior]) -> bool:
    return Gamix.accepts(family) and AAE.accepts(family)

  @classmethod
  def default_weights(cls, recon: float) -> dict[str, float]:
    of_aae = AAE.default_weights(recon) | {"code_adversarial": 1.0}
    return Gamix.default_weights(recon) | of_aae

  def __call__(
    self, output: VAEOutput, state: State
  ) -> tuple[Terms, dict[str, jax.Array], State]:
    terms, info, state = super().__call__(output, state)
    return terms | {"code_adversarial": code_adversarial(output)}, info, state

"""The published loss of the Epanechnikov VAE; it is not a bound of ln p(x).

    kernel    mean_i 3 B / (5 M) sum_d 1 / r_d(x_i)

B is the prior's width and M the size of the global batch (arXiv:2405.12783,
equation 10, with weight 1). Only `recon` depends on mu.
"""

import dataclasses

import jax
import jax.numpy as jnp

from gamix_jax.networks import VAEOutput
from gamix_jax.objectives.base import Objective, State, Terms
from gamix_jax.posterior import Posterior


@dataclasses.dataclass(frozen=True)
class EVAE(Objective):
  """The EVAE objective, for posteriors that add the prior's noise."""

  terms = ("recon", "kernel")
  ramped = ("kernel",)

  @classmethod
  def accepts(cls, family: type[Posterior]) -> bool:
    return family.adds_prior_noise

  def __call__(
    self, output: VAEOutput, state: State
  ) -> tuple[Terms, dict[str, jax.Array], State]:
    q = output.q
    radius = q.radius()
    inverse = jnp.mean(jnp.sum(1 / radius, axis=-1))
    kernel = 3 * q.width / (5 * len(radius)) * inverse
    return {"recon": self.recon(output), "kernel": kernel}, {}, state

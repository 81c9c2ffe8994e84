"""Autoencoders whose codes are not pulled to a prior.

    code_norm       mean_i sum_s w_si 1/2 |z_si|^2
    decoder_norm    |theta|^2, theta the decoder's parameters

RAE-L2 has both (Ghosh et al., arXiv:1903.12436, equations 3, 6 and 7); the
plain autoencoder has neither. New images need a density that is fitted to the
codes after training, such as the latent source "gmm".
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from gamix_jax.networks import VAEOutput
from gamix_jax.objectives.base import Objective, State, Terms
from gamix_jax.posterior import Posterior


@dataclasses.dataclass(frozen=True)
class AE(Objective):
  """The plain autoencoder: reconstruction alone."""

  terms = ("recon",)
  additive = True

  @classmethod
  def accepts(cls, family: type[Posterior]) -> bool:
    return family.standard_normal_prior and not family.separate

  def __call__(
    self, output: VAEOutput, state: State
  ) -> tuple[Terms, dict[str, jax.Array], State]:
    return {"recon": self.recon(output)}, {}, state


@dataclasses.dataclass(frozen=True)
class RAEL2(AE):
  """The regularised autoencoder with an L2 penalty of the decoder."""

  terms = ("recon", "code_norm", "decoder_norm")

  @classmethod
  def default_weights(cls, recon: float) -> dict[str, float]:
    # A code's weight is that of a prior N(0, I); the ratio of both is that of
    # the published weights, 1e-4 and 1e-7.
    return {"code_norm": 1.0, "decoder_norm": 1e-3}

  def __call__(
    self, output: VAEOutput, state: State
  ) -> tuple[Terms, dict[str, jax.Array], State]:
    square = jnp.sum(jnp.square(output.z), axis=-1)
    decoders = [v for k, v in output.params.items() if k.startswith("decoder")]
    terms = {
      "recon": self.recon(output),
      "code_norm": 0.5 * jnp.mean(jnp.sum(output.w * square, axis=0)),
      "decoder_norm": optax.tree.norm(decoders, squared=True),
    }
    return terms, {}, state

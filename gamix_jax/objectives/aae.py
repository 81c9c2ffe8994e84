"""The adversarial autoencoder: a discriminator of codes and prior draws.

    code_adversarial   mean_i sum_s w_si BCE(D(z_si), prior)
    code_real          mean of BCE(D(y), prior), y ~ N(0, I), as many as images
    code_fake          mean_i sum_s w_si BCE(D(z_si), code)

Makhzani et al., arXiv:1511.05644; with a weight of `code_adversarial` it is the
WAE-GAN (Tolstikhin et al., arXiv:1711.01558, algorithm 1). The discriminator is
trained like that of images, from the same forward pass as the VAE and with the
optimiser `optim.disc`.
"""

import dataclasses
from typing import Any, Self

import jax
from flax import linen as nn

from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.modality import Modalities
from gamix_jax.networks import CodeDiscriminator, VAEOutput
from gamix_jax.objectives.adversarial import ADVERSARIAL
from gamix_jax.objectives.base import Objective, State, Terms
from gamix_jax.posterior import Posterior


@dataclasses.dataclass(frozen=True)
class AAE(Objective):
  """The objective of the adversarial autoencoder.

  Attributes:
    width: of the discriminator's hidden layers.
    layers: the number of its hidden layers.
  """

  width: int = 512
  layers: int = 2

  terms = ("recon", "code_adversarial")
  of_discriminator = ("code_real", "code_fake")
  additive = True

  @classmethod
  def from_config(cls, config: ConfigDict, modalities: Modalities) -> Self:
    section = config.objective.aae
    if section.width < 1 or section.layers < 1:
      raise UserError(
        f"objective.aae.width={section.width} and objective.aae.layers="
        f"{section.layers} must be 1 or more."
      )
    made = super().from_config(config, modalities)
    return dataclasses.replace(made, width=section.width, layers=section.layers)

  @classmethod
  def accepts(cls, family: type[Posterior]) -> bool:
    return family.standard_normal_prior and not family.separate

  @classmethod
  def default_weights(cls, recon: float) -> dict[str, float]:
    # The first is lambda of the WAE-GAN on MNIST.
    return {"code_adversarial": 10.0, "code_real": 1.0, "code_fake": 1.0}

  def discriminator(self, **kind: Any) -> nn.Module:
    return CodeDiscriminator(width=self.width, layers=self.layers, **kind)

  def __call__(
    self, output: VAEOutput, state: State
  ) -> tuple[Terms, dict[str, jax.Array], State]:
    terms = {
      "recon": self.recon(output),
      "code_adversarial": code_adversarial(output),
    }
    return terms, {}, state

  def discriminator_terms(self, output: VAEOutput) -> Terms:
    each = _losses(output)
    return {"code_real": each["real"], "code_fake": each["fake"]}


def code_adversarial(output: VAEOutput) -> jax.Array:
  """The term `code_adversarial`, from `output.code_logits`."""
  return _losses(output)["adversarial"]


def _losses(output: VAEOutput) -> Terms:
  """The losses of adversarial.py, for which a code is an image of one patch."""
  of_prior, of_codes = output.code_logits
  return ADVERSARIAL["bce"](
    of_prior[:, None, None, None], of_codes[..., None, None, None], output.w
  )

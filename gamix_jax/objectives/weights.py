"""The weights of all terms, and their ramps."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp

from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError

# Terms with which the VAE works against a discriminator.
ADVERSARIES = ("adversarial", "code_adversarial")


@dataclasses.dataclass(frozen=True)
class TermWeights:
  """The weights of the VAE's and the discriminator's terms.

  Attributes:
    vae: weights of the VAE's terms.
    disc: weights of the discriminator's terms; empty without a discriminator.
    ramps: steps over which weights of the VAE's terms grow linearly from 0;
      terms without a ramp have their full weight from the start.
    adversarial_start: the first step with `adversarial` and `code_adversarial`,
      where their ramps begin.
  """

  vae: dict[str, float]
  disc: dict[str, float]
  ramps: dict[str, int]
  adversarial_start: int = 0

  @classmethod
  def from_config(
    cls, config: ConfigDict, of_vae: Sequence[str], of_disc: Sequence[str]
  ) -> Self:
    """The weights of a config.

    Args:
      config: of the run.
      of_vae: names of the VAE's terms.
      of_disc: names of the discriminator's terms.

    Raises:
      UserError: if a term has no weight, or a weight or ramp has no term; the
        message lists the flags to set.
    """
    terms = [*of_vae, *of_disc]
    chosen = (
      f"objective.name={config.objective.name!r}, "
      f"adversarial.loss={config.adversarial.loss!r}"
    )
    given = {k: v for k, v in config.weights.items() if v is not None}
    if set(given) != set(terms):
      flags = [f"--config.weights.{k}=1" for k in terms if k not in given]
      flags += [f"--config.weights.{k}=None" for k in given if k not in terms]
      raise UserError(
        f"The terms of {chosen} are {', '.join(terms)}; the weights are of "
        f"{', '.join(given)}.\n"
        f"Use, with the weights that you want: {' '.join(flags)}"
      )
    ramps = {k: int(v) for k, v in config.ramp.items() if v}
    for name, steps in ramps.items():
      if name not in of_vae:
        raise UserError(
          f"ramp.{name}={steps}, but {chosen} has no term {name}; its terms "
          f"are {', '.join(of_vae)}. Use --config.ramp.{name}=0."
        )
    section = config.adversarial
    return cls(
      {k: float(given[k]) for k in of_vae},
      {k: float(given[k]) for k in of_disc},
      ramps,
      section.disc_start + section.gen_delay,
    )

  def vae_at(self, step: jax.Array) -> dict[str, Any]:
    """The VAE's weights at a step."""
    weights: dict[str, Any] = dict(self.vae)
    for name, weight in self.vae.items():
      late = name in ADVERSARIES
      begin = self.adversarial_start if late else 0
      length = self.ramps.get(name, 0)
      if length or late:
        share = jnp.clip((step - begin + 1) / max(length, 1), 0, 1)
        weights[name] = weight * share
    return weights

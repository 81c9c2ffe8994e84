"""The terms' weights in a run, and how they grow at its start."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp

from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class TermWeights:
  """Weights by term.

  Attributes:
    vae: of the VAE's terms.
    disc: of the discriminator's; empty where there is none.
    ramps: steps over which the weight of a VAE's term grows from 0, linearly;
      terms that are not here have theirs from the start.
    adversarial_start: the step from which `adversarial` counts; its ramp begins
      there.
  """

  vae: dict[str, float]
  disc: dict[str, float]
  ramps: dict[str, int]
  adversarial_start: int = 0

  @classmethod
  def from_config(
    cls, config: ConfigDict, of_vae: Sequence[str], of_disc: Sequence[str]
  ) -> Self:
    """The weights that a config gives to these terms.

    Raises:
      UserError: a term without a weight, or a weight or ramp without a term;
        the message has the flags that help.
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
      begin = self.adversarial_start if name == "adversarial" else 0
      length = self.ramps.get(name, 0)
      if length or name == "adversarial":
        share = jnp.clip((step - begin + 1) / max(length, 1), 0, 1)
        weights[name] = weight * share
    return weights

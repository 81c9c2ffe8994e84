"""What an objective is: named terms, whose weighted sum is the VAE's loss."""

import dataclasses
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from gamix_jax.config import ConfigDict
from gamix_jax.modality import Modalities, sum_over
from gamix_jax.networks import VAEOutput
from gamix_jax.posterior import Posterior

Terms = dict[str, jax.Array]  # nats an image, []
State = Any  # a pytree of arrays


@dataclasses.dataclass(frozen=True)
class Objective:
  """A VAE's objective, called with the output of its forward pass.

  Attributes:
    modalities: what is reconstructed.
    num_samples: draws of z for each x (and component); 0: none, the
      expectation over z is taken in closed form.
    recon_weight: of the term `recon`, for an objective that has it inside a
      logarithm.
    terms: the names of its terms.
    ramped: those of them that pull single posteriors to the prior and may start
      without their weight: with all of it from the start, codes that carry no
      information cost least, and a run can stay there.
    learned_prior: whether it is defined for a prior that is learned.
    settings: config keys of its own with defaults, `objective.<name>.<key>`;
      fields of the class.
  """

  modalities: Modalities
  num_samples: int = 1
  recon_weight: float = 1.0

  terms: ClassVar[tuple[str, ...]]
  ramped: ClassVar[tuple[str, ...]] = ()
  learned_prior: ClassVar[bool] = False
  settings: ClassVar[dict[str, Any]] = {}

  def __call__(
    self, output: VAEOutput, state: State
  ) -> tuple[Terms, dict[str, jax.Array], State]:
    """The terms, unweighted; what else is to be logged; the next state.

    Args:
      output: of the global batch.
      state: what `init` or the step before returned.
    """
    raise NotImplementedError

  def init(self) -> State:
    """The state before step 0; kept in checkpoints. Most have none."""
    return {}

  @classmethod
  def from_config(cls, config: ConfigDict, modalities: Modalities) -> Self:
    """The objective of a config.

    Raises:
      UserError: it cannot have these values.
    """
    name = config.objective.name
    return cls(
      modalities,
      num_samples=config.objective.num_samples,
      recon_weight=float(config.weights.recon),
      **(config.objective.get(name, {}) if cls.settings else {}),
    )

  @classmethod
  def accepts(cls, family: type[Posterior]) -> bool:
    """Whether it is defined for a family of posteriors."""
    raise NotImplementedError

  @classmethod
  def default_weights(cls, recon: float) -> dict[str, float]:
    """What a preset gives its terms, but for `recon`, whose weight is given."""
    del recon
    return dict.fromkeys(cls.terms[1:], 1.0)

  def recon(self, output: VAEOutput) -> jax.Array:
    """mean_i sum_s w_si error(x_i, x_hat_si), [], over all modalities."""
    return jnp.mean(jnp.sum(output.w * self.errors(output), axis=0))

  def errors(self, output: VAEOutput) -> jax.Array:
    """The likelihoods' errors, [s, b], of the modalities by their weights."""
    return sum_over(
      m.weight * m.error(output.x[name], output.x_hat[name])
      for name, m in self.modalities.items()
    )


def weighted_sum(terms: Terms, weights: dict[str, Any]) -> jax.Array:
  """sum over the names of `weights` of weight * term."""
  return sum(weight * terms[name] for name, weight in weights.items())

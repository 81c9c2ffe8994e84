"""The base class of objectives."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import linen as nn

from gamix_jax.config import ConfigDict
from gamix_jax.modality import Modalities, sum_observed
from gamix_jax.networks import VAEOutput
from gamix_jax.posterior import Posterior

Terms = dict[str, jax.Array]  # nats an image, []
State = Any  # a pytree of arrays


@dataclasses.dataclass(frozen=True)
class Objective:
  """Computes the terms of a VAE's loss from the output of its forward pass.

  Attributes:
    modalities: the observations that are reconstructed.
    num_samples: draws of z per observation (and component). 0: no draws, the
      expectation over z has a closed form.
    recon_weight: the weight of `recon`, for objectives that need it in a
      logarithm.
    terms: the names of its terms.
    ramped: the terms that pull single posteriors to the prior and have a ramp
      in presets. With their full weight from the start, posteriors can collapse
      to the prior and stay there.
    learned_prior: whether it is defined for learned priors.
    subsets: whether it needs the posteriors of random subsets of modalities.
    of_discriminator: the names of the terms of its own discriminator of codes,
      if it has one.
    additive: whether the mean of its terms over parts of a batch has the
      expectation of its terms of the whole batch, so that gradients can be
      accumulated over parts.
    several: whether it is defined for several modalities.
    settings: its own config keys with defaults, `objective.<name>.<key>`; also
      fields of the class.
  """

  modalities: Modalities
  num_samples: int = 1
  recon_weight: float = 1.0

  terms: ClassVar[tuple[str, ...]]
  ramped: ClassVar[tuple[str, ...]] = ()
  learned_prior: ClassVar[bool] = False
  subsets: ClassVar[bool] = False
  of_discriminator: ClassVar[tuple[str, ...]] = ()
  additive: ClassVar[bool] = False
  several: ClassVar[bool] = True
  settings: ClassVar[dict[str, Any]] = {}

  @property
  def has_prior(self) -> bool:
    """Whether it trains the decoder for draws of the model's prior p(z)."""
    return True

  def __call__(
    self, output: VAEOutput, state: State
  ) -> tuple[Terms, dict[str, jax.Array], State]:
    """Computes the terms.

    Args:
      output: of the global batch.
      state: from `init`, or from the step before.

    Returns:
      The unweighted terms, further metrics, and the next state.
    """
    raise NotImplementedError

  def discriminator(self, **kind: Any) -> nn.Module | None:
    """A module z [..., d] -> logits [...] that is trained against the VAE.

    Args:
      **kind: its `dtype` and `param_dtype`.
    """
    return None

  def discriminator_terms(self, output: VAEOutput) -> Terms:
    """The terms `of_discriminator`, from `output.code_logits`."""
    return {}

  def init(self) -> State:
    """The state before step 0. It is saved in checkpoints; most have none."""
    return {}

  @classmethod
  def from_config(cls, config: ConfigDict, modalities: Modalities) -> Self:
    """Creates the objective from a config.

    Raises:
      UserError: if a value does not fit the objective.
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
    """Default weights of all terms but `recon`, given the weight of `recon`."""
    del recon
    return dict.fromkeys(cls.terms[1:], 1.0)

  def recon(self, output: VAEOutput) -> jax.Array:
    """The term `recon`: mean_i sum_s w_si error(x_i, x_hat_si), []."""
    return jnp.mean(jnp.sum(output.w * self.errors(output), axis=0))

  def errors(self, output: VAEOutput) -> jax.Array:
    """The weighted sum of the observed modalities' errors, [s, b]."""
    return self.errors_of(output.x, output.x_hat)

  def errors_of(
    self, x: Mapping[str, jax.Array], x_hat: Mapping[str, jax.Array]
  ) -> jax.Array:
    """As `errors`, of observations [b, ...] and decoded draws [s, b, ...]."""
    return sum_observed(
      self.modalities,
      x,
      lambda name, m: m.weight * m.error(x[name], x_hat[name]),
    )


def weighted_sum(terms: Terms, weights: dict[str, Any]) -> jax.Array:
  """sum over the names of `weights` of weight * term."""
  return sum(weight * terms[name] for name, weight in weights.items())

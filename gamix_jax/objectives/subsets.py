"""Bounds that use a random subset S of the observed modalities O.

    masked         recon      -ln p(x_S | z_S) - ln p(x_{O minus S} | z_O)
                   kl         KL(q(z | x_S) || p(z))
                   subset_kl  KL(q(z | x_O) || q(z | x_S))
    mixture_bound  recon      -ln p(x_O | z_S)
                   kl         KL(q(z | x_S) || p(z))
    tc             recon      -ln p(x_O | z_O)
                   subset_kl  KL(q(z | x_O) || q(z | x_S))

z_S ~ q(z | x_S), and -ln p stands for the weighted errors of `Objective.recon`.
The weights of the KL terms are the betas. Source: arXiv:2309.00380; the
mixture bound is that of MVAE, MMVAE and MoPoE, the last that of MVTCAE.

`masked` and `tc` are objectives, not bounds of ln p(x): if q(z | x_S) is not
the posterior, `masked` can be larger. Judge models by their likelihood.

All KLs are estimated from the draws. q's own parameters are constants in its
ln q(z) ("sticking the landing", arXiv:1703.09194), so that the estimate has no
variance where q is exact; gradients reach q through z.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gamix_jax.config import ConfigDict
from gamix_jax.modality import MASK, Modalities
from gamix_jax.multimodal import MultimodalOutput
from gamix_jax.objectives.base import Objective, State, Terms
from gamix_jax.posterior import Posterior
from gamix_jax.registry import check_choice

KL_COUNTS = ("once", "per_modality")


@dataclasses.dataclass(frozen=True)
class SubsetObjective(Objective):
  """Base class of the objectives in this file."""

  ramped = ("kl",)
  learned_prior = True
  subsets = True
  additive = True

  @classmethod
  def accepts(cls, family: type[Posterior]) -> bool:
    return not family.separate and not family.adds_prior_noise

  def recon_of(
    self, output: MultimodalOutput, mask: jax.Array, of_subset: bool
  ) -> jax.Array:
    """The term `recon` of the modalities of a mask [b, m].

    Args:
      output: of the VAE.
      mask: of the modalities that are reconstructed.
      of_subset: whether they are decoded from z_S; otherwise from z_O.
    """
    x = {**output.x, MASK: mask}
    if of_subset:
      w, errors = output.w_subset, self.errors_of(x, output.x_hat_subset)
    else:
      w, errors = output.w, self.errors_of(x, output.x_hat)
    return jnp.mean(jnp.sum(w * errors, axis=0))


def _size(output: MultimodalOutput) -> dict[str, jax.Array]:
  """Metrics: the mean size of S."""
  return {"subset/size": jnp.mean(jnp.sum(output.subset, axis=1))}


def kl_to_prior(
  q: Posterior, z: Float[Array, "s b d"], w: Float[Array, "s b"]
) -> jax.Array:
  """mean_i KL(q || p) in nats, estimated from draws of q; []."""
  ratio = _fixed(q).log_prob(z) - q.log_prior(z)
  return jnp.mean(jnp.sum(w * ratio, axis=0))


def kl_to_subset(output: MultimodalOutput) -> jax.Array:
  """mean_i KL(q(z | x_O) || q(z | x_S)) in nats; [].

  The gradient through ln q(z | x_S) trains the encoder of subsets.
  """
  ratio = _fixed(output.q).log_prob(output.z)
  ratio -= output.q_subset.log_prob(output.z)
  return jnp.mean(jnp.sum(output.w * ratio, axis=0))


def _fixed(q: Posterior) -> Posterior:
  return jax.tree.map(jax.lax.stop_gradient, q)


@dataclasses.dataclass(frozen=True)
class Masked(SubsetObjective):
  """The masked objective of arXiv:2309.00380."""

  terms = ("recon", "kl", "subset_kl")
  ramped = ("kl", "subset_kl")

  def __call__(
    self, output: MultimodalOutput, state: State
  ) -> tuple[Terms, dict[str, jax.Array], State]:
    rest = output.x[MASK] - output.subset
    recon = self.recon_of(output, output.subset, of_subset=True)
    terms = {
      "recon": recon + self.recon_of(output, rest, of_subset=False),
      "kl": kl_to_prior(output.q_subset, output.z_subset, output.w_subset),
      "subset_kl": kl_to_subset(output),
    }
    return terms, _size(output), state


@dataclasses.dataclass(frozen=True)
class MixtureBound(SubsetObjective):
  """The ELBO of q(z | x_S) for all observed modalities.

  With `multimodal.subsets=all` this is the ELBO, its KL estimated from draws.

  Attributes:
    kl_count: "once", as in the bound; or "per_modality", which counts the KL
      once for every observed modality, as the released code of
      arXiv:2403.05300 does for its joint posteriors.
  """

  kl_count: str = "once"

  terms = ("recon", "kl")
  settings: ClassVar[dict[str, Any]] = {"kl_count": "once"}

  @classmethod
  def from_config(cls, config: ConfigDict, modalities: Modalities):
    check_choice(
      "objective.mixture_bound.kl_count",
      config.objective.mixture_bound.kl_count,
      KL_COUNTS,
    )
    return super().from_config(config, modalities)

  def __call__(
    self, output: MultimodalOutput, state: State
  ) -> tuple[Terms, dict[str, jax.Array], State]:
    w = output.w_subset
    if self.kl_count == "per_modality":
      w = w * jnp.sum(output.x[MASK], axis=1)[None]
    terms = {
      "recon": self.recon_of(output, output.x[MASK], of_subset=True),
      "kl": kl_to_prior(output.q_subset, output.z_subset, w),
    }
    return terms, _size(output), state


@dataclasses.dataclass(frozen=True)
class TC(SubsetObjective):
  """The bound in the manner of MVTCAE (Hwang et al., NeurIPS 2021)."""

  terms = ("recon", "subset_kl")
  ramped = ("subset_kl",)
  learned_prior = False  # it has no prior

  def __call__(
    self, output: MultimodalOutput, state: State
  ) -> tuple[Terms, dict[str, jax.Array], State]:
    terms = {
      "recon": self.recon_of(output, output.x[MASK], of_subset=False),
      "subset_kl": kl_to_subset(output),
    }
    return terms, _size(output), state

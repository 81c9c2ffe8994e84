"""THE PAPER, 3: objectives, named terms whose weighted sum is the loss.

All terms are in nats per image, with images in [-1, 1]. q(z | x_i) is the
posterior of image i = 1..B of the global batch, and w [s, b] are the weights of
its s draws (see `Posterior.sample`). Every objective has the term

    recon    mean_i sum_s w_si mean over h, w, c of |x_i - x_hat_si|

with this or another likelihood's error. An objective is a class in a file here
and a line below. Read `base` first, then `gamix` and `population`.
"""

from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.objectives import population
from gamix_jax.objectives.aae import AAE
from gamix_jax.objectives.adversarial import (
  ADVERSARIAL,
  OF_DISCRIMINATOR,
  OF_VAE,
  AdversarialLoss,
)
from gamix_jax.objectives.autoencoder import AE, RAEL2
from gamix_jax.objectives.base import Objective, Terms, weighted_sum
from gamix_jax.objectives.covariances import DIP1, DIP2, VICReg
from gamix_jax.objectives.draws import CWAE, SWAE, WAEMMD, SIGReg
from gamix_jax.objectives.elbo import ELBO, AnalyticELBO
from gamix_jax.objectives.evae import EVAE
from gamix_jax.objectives.gamix import Gamix, GamixMixture, collapse_penalty
from gamix_jax.objectives.gamix_aae import GamixAAE
from gamix_jax.objectives.mmvm import MMVM, MMVMPopulation
from gamix_jax.objectives.siwae import SIWAE
from gamix_jax.objectives.subsets import TC, Masked, MixtureBound
from gamix_jax.objectives.tcvae import TCVAE
from gamix_jax.objectives.weights import TermWeights
from gamix_jax.posterior import POSTERIORS, Posterior
from gamix_jax.registry import Registry


class _Objectives(Registry[type[Objective]]):
  """Adds config keys for the weights and ramps of a new objective's terms."""

  def config_keys(self, name, part):
    keys = super().config_keys(name, part)
    for term in part.terms:
      keys |= {f"weights.{term}": None, f"ramp.{term}": 0}
    return keys | {f"weights.{term}": None for term in part.of_discriminator}


OBJECTIVES = _Objectives("objective.name")
OBJECTIVES.register("gamix", Gamix)
OBJECTIVES.register("elbo", ELBO)
OBJECTIVES.register("selbo", ELBO)
OBJECTIVES.register("exact", AnalyticELBO)
OBJECTIVES.register("siwae", SIWAE)
OBJECTIVES.register("evae", EVAE)
OBJECTIVES.register("gamix_mixture", GamixMixture)
OBJECTIVES.register("gamix_aae", GamixAAE)
OBJECTIVES.register("ae", AE)
OBJECTIVES.register("rae_l2", RAEL2)
OBJECTIVES.register("wae_mmd", WAEMMD)
OBJECTIVES.register("cwae", CWAE)
OBJECTIVES.register("swae", SWAE)
OBJECTIVES.register("sigreg", SIGReg)
OBJECTIVES.register("vicreg", VICReg)
OBJECTIVES.register("dip1", DIP1)
OBJECTIVES.register("dip2", DIP2)
OBJECTIVES.register("tcvae", TCVAE)
OBJECTIVES.register("aae", AAE)
OBJECTIVES.register("mmvm", MMVM)
OBJECTIVES.register("mmvm_population", MMVMPopulation)
OBJECTIVES.register("masked", Masked)
OBJECTIVES.register("mixture_bound", MixtureBound)
OBJECTIVES.register("tc", TC)


def term_names(
  objective: str, adversarial_loss: str
) -> tuple[list[str], list[str]]:
  """The names of the VAE's terms and of the discriminator's terms.

  Raises:
    UserError: if there is no such objective or adversarial loss.
  """
  chosen = OBJECTIVES.choose(objective)
  of_vae, of_disc = list(chosen.terms), list(chosen.of_discriminator)
  if ADVERSARIAL.choose(adversarial_loss) is None:
    return of_vae, of_disc
  return [*of_vae, *OF_VAE], [*OF_DISCRIMINATOR, *of_disc]


def default_weights(config: ConfigDict, recon: float) -> dict[str, float]:
  """The default weight of every term, for a weight of `recon`."""
  weights = {"recon": recon}
  weights |= OBJECTIVES.choose(config.objective.name).default_weights(recon)
  loss = ADVERSARIAL.choose(config.adversarial.loss)
  return weights | (loss.default_weights(recon) if loss else {})


def check_fit(config: ConfigDict, family: type[Posterior]) -> None:
  """Checks that an objective is defined for a posterior and a prior.

  Raises:
    UserError: if it is not; the message lists the objectives that are.
  """
  name, section = config.objective.name, config.posterior
  named = f"posterior.name={section.name!r}"
  several = bool(config.data.modalities)
  if several:
    named = f"multimodal.fusion={config.multimodal.fusion!r} with {named}"
  objective = OBJECTIVES.choose(name)

  def fits(objective: type[Objective]) -> bool:
    right = objective.several if several else not objective.subsets
    return right and objective.accepts(family)

  if not fits(objective):
    if section.name == "epanechnikov":  # the one family of several priors
      prior = section.epanechnikov.prior
      named += f" with posterior.epanechnikov.prior={prior!r}"
    fit = [k for k, o in OBJECTIVES.items() if fits(o)]
    raise UserError(
      f"objective.name={name!r} is not defined for {named}; use one of "
      f"{', '.join(fit)}."
    )
  if config.prior.name == "normal":
    return
  if not (family.allows_learned_prior and objective.learned_prior):
    fit = [k for k, o in OBJECTIVES.items() if o.learned_prior]
    posteriors = [
      k for k, head in POSTERIORS.items() if head.family.allows_learned_prior
    ]
    raise UserError(
      f"prior.name={config.prior.name!r} is for the posteriors "
      f"{', '.join(posteriors)} and the objectives {', '.join(fit)}; this is "
      f"{section.name}/{name}."
    )


__all__ = [
  "AAE",
  "ADVERSARIAL",
  "AE",
  "CWAE",
  "DIP1",
  "DIP2",
  "ELBO",
  "EVAE",
  "MMVM",
  "OBJECTIVES",
  "OF_DISCRIMINATOR",
  "OF_VAE",
  "RAEL2",
  "SIWAE",
  "SWAE",
  "TC",
  "TCVAE",
  "WAEMMD",
  "AdversarialLoss",
  "AnalyticELBO",
  "Gamix",
  "GamixAAE",
  "GamixMixture",
  "MMVMPopulation",
  "Masked",
  "MixtureBound",
  "Objective",
  "SIGReg",
  "TermWeights",
  "Terms",
  "VICReg",
  "check_fit",
  "collapse_penalty",
  "default_weights",
  "population",
  "term_names",
  "weighted_sum",
]

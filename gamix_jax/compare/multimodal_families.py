"""Parses `fusion[:components]/objective[:variant][@term=weight...]`.

For configs with `data.modalities`, such as

    separate/elbo                 independent VAEs
    avg/elbo  poe/elbo  moe/elbo  mopoe/elbo
    separate/mmvm:surrogate
    separate/mmvm_population:debiased@population_kl=3
    sum_pooling/masked:uniform_size
    attention:4/masked            with a mixture of 4 components
    poe_as_released/mixture_bound:bernoulli
"""

import re

from gamix_jax import config as configs
from gamix_jax import objectives
from gamix_jax.compare import weights
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.multimodal import FUSIONS, SUBSETS
from gamix_jax.objectives.mmvm import ESTIMATES
from gamix_jax.objectives.population import FORMS
from gamix_jax.registry import check_choice

FORM = "fusion[:components]/objective[:variant][@term=weight...]"
# Of images, too: posterior[:components]/objective[:population]...
SPEC = re.compile(
  r"(\w+)(?::(\d+))?/(\w+)(?::(\w+))?((?:@\w+=[\w.+-]+)*)", re.ASCII
)
BETA, SUBSET_BETA = "kl", "subset_kl"  # terms whose weights are a beta


def derive(config: ConfigDict, spec: str) -> tuple[ConfigDict, str]:
  """Applies a spec's names to a config; returns it and the weights' text.

  All keys are the config's, except:

  - `multimodal.fusion` and `objective.name`, which the spec names.
  - More than one component: the posterior is a mixture, which the fusions
    sum_pooling and attention can have. Omitted components are the config's if
    it has the same fusion, else 1.
  - The variant is the estimate of mmvm; the population form of gamix and
    mmvm_population; the law of the subsets of masked, mixture_bound and tc. If
    it is omitted, it is the config's.
  - The weight of a term is the first one available: the spec's; the config's;
    that of `config.base()`; 1. The beta, `weights.kl`, is also that of the
    term subset_kl, unless this has a weight, see `complete_betas`.
  - Ramps, as in `families.family_config`.
  - There are no private latents with separate, whose latents are all private.

  Args:
    config: with `data.modalities`. It is not modified.
    spec: see above.

  Raises:
    UserError: the spec has another form, an unknown name, components for a
      fusion that has none, or a variant for an objective that has none.
  """
  match = SPEC.fullmatch(spec)
  if not match:
    raise UserError(
      f"with data.modalities a family must be {FORM}, with fusion one of "
      f"{', '.join(FUSIONS)} and objective one of "
      f"{', '.join(objectives.OBJECTIVES)}."
    )
  fusion, components, objective, variant, given = match.groups()
  terms = objectives.OBJECTIVES.choose(objective).terms
  derived = config.copy_and_resolve_references()
  _set_posterior(derived, fusion, components)
  derived.multimodal.fusion = fusion
  if fusion == "separate":
    derived.multimodal.private = 0
  derived.objective.name = objective
  if variant:
    _set_variant(derived, objective, variant)
  weights.set_weights(derived, terms)
  weights.set_ramps(derived, terms)
  return derived, given


def complete_betas(config: ConfigDict, derived: ConfigDict, given: str) -> None:
  """Gives subset_kl the beta, if it has no weight of its own.

  Args:
    config: as for `derive`.
    derived: its result with the spec's weights; modified.
    given: the text of these weights.
  """
  own = derived.weights
  if own[SUBSET_BETA] is None or f"@{SUBSET_BETA}=" in given:
    return
  if config.weights[SUBSET_BETA] is not None:
    return
  beta = own[BETA] if own[BETA] is not None else config.weights[BETA]
  if beta is not None:
    with own.ignore_type():
      own[SUBSET_BETA] = beta


def variant_of(config: ConfigDict) -> str:
  """Returns the variant of a complete config; empty if there is none."""
  name = config.objective.name
  if name == "mmvm":
    return config.objective.mmvm.estimate
  objective = objectives.OBJECTIVES[name]
  if "population_kl" in objective.terms:
    return config.objective.population
  return config.multimodal.subsets if objective.subsets else ""


def _set_posterior(
  config: ConfigDict, fusion: str, components: str | None
) -> None:
  """Sets the section `posterior`; resets other families' keys to base()."""
  of_features = FUSIONS.choose(fusion).of_features
  section = config.posterior
  if components is None:
    same = config.multimodal.fusion == fusion
    components = section.components if same else 1
  k = int(components)
  if k < 1:
    raise UserError(f"posterior.components={k} must be > 0.")
  if k > 1 and not of_features:
    fit = [name for name, f in FUSIONS.items() if f.of_features]
    raise UserError(
      f"fusion {fusion!r} combines Gaussians and has no components; remove "
      f":{k}, or use one of {', '.join(fit)}."
    )
  section.name, section.components = ("mixture" if k > 1 else "gaussian"), k
  default = configs.base().posterior
  for other, value in default.items():
    if isinstance(value, ConfigDict) and other != section.name:
      section[other].update(value)


def _set_variant(config: ConfigDict, objective: str, variant: str) -> None:
  terms = objectives.OBJECTIVES[objective].terms
  if objective == "mmvm":
    check_choice(f"the estimate of {objective}", variant, ESTIMATES)
    config.objective.mmvm.estimate = variant
  elif "population_kl" in terms:
    check_choice(f"the population of {objective}", variant, FORMS)
    config.objective.population = variant
  elif objectives.OBJECTIVES[objective].subsets:
    check_choice(f"the subsets of {objective}", variant, SUBSETS)
    config.multimodal.subsets = variant
  else:
    raise UserError(
      f"objective {objective!r} has no variant; remove :{variant}."
    )

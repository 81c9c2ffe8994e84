"""Parses `posterior[:components]/objective[:population][@term=weight...]`.

A comparison is only as fair as its weights. With weights in the spec, each
family can be run with several, and the best ones compared. For the specs of
several modalities see `multimodal_families`.
"""

import re

from gamix_jax import build, objectives, presets
from gamix_jax import config as configs
from gamix_jax.compare import multimodal_families, weights
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.posterior import POSTERIORS

FORM = "posterior[:components]/objective[:population][@term=weight...]"


def family_config(config: ConfigDict, spec: str) -> ConfigDict:
  """Returns the config of one family in a comparison.

  All keys are the config's, except:

  - The weight of a term of the objective or discriminator is the first one
    available: the spec's; the config's; the preset's (see `presets.complete`),
    or without a preset that of `config.base()`; 1. Terms of other objectives
    get None.
  - A ramp in the config applies to the ramped terms of the spec's objective;
    siwae has none. Ramps that are None in the config are the preset's.
  - Omitted components are the config's if it has the same posterior, else 1.

  For configs with `data.modalities` see `multimodal_families.derive`.

  Args:
    config: with weights of any objective, or with a preset that chooses the
      values that are None. It is not modified.
    spec: `posterior[:components]/objective[:population][@term=weight...]`, such
      as `gaussian/elbo@kl=0.5` or `mixture:4/gamix:quadratic`.

  Returns:
    A complete, validated config.

  Raises:
    UserError: if the spec has another form, an unknown name or term, a
      population for an objective without one, or a weight that is not a finite
      number >= 0, or if posterior and objective cannot be combined.
  """
  try:
    several = bool(config.data.modalities)
    derive = multimodal_families.derive if several else _derive
    derived, given = derive(config, spec)
    presets.complete(derived)
    weights.apply_spec(derived, given)
    if several:
      multimodal_families.complete_betas(config, derived, given)
    build.train_spec(derived)
  except UserError as e:
    raise UserError(f"--families={spec}: {e}") from e
  return derived


def folder_name(spec: str) -> str:
  """Returns a family's folder name, of letters, digits and `_-.+` only."""
  return re.sub("[/@]", "_", re.sub("[:=]", "-", spec))


def _derive(config: ConfigDict, spec: str) -> tuple[ConfigDict, str]:
  """Applies a spec's names to a config; returns it and the weights' text."""
  match = multimodal_families.SPEC.fullmatch(spec)
  if not match:
    raise UserError(
      f"a family must be {FORM}, with posterior one of {', '.join(POSTERIORS)} "
      f"and objective one of {', '.join(objectives.OBJECTIVES)}."
    )
  name, components, objective, population, given = match.groups()
  objectives.term_names(objective, "none")  # raises if it is unknown
  terms = objectives.OBJECTIVES[objective].terms
  if population and "population_kl" not in terms:
    supported = [
      k for k, o in objectives.OBJECTIVES.items() if "population_kl" in o.terms
    ]
    raise UserError(
      f"objective {objective!r} has no population; remove it, or use one of "
      f"{', '.join(supported)}."
    )
  derived = config.copy_and_resolve_references()
  _set_posterior(derived, name, components, objective)
  derived.objective.name = objective
  if population:
    derived.objective.population = population
  weights.set_weights(derived, terms)
  weights.set_ramps(derived, terms)
  return derived, given


def _set_posterior(config, name, components, objective) -> None:
  """Sets the section `posterior`; resets other families' keys to base()."""
  section, default = config.posterior, configs.base().posterior
  if components:
    section.components = int(components)
  elif section.name != name:
    section.components = default.components
  section.name = name
  if not POSTERIORS.choose(name).family.has_variance:
    section.initial_logvar = default.initial_logvar
  for other in POSTERIORS:
    if other != name and other in section:
      section[other].update(default[other])
  if name == "epanechnikov":  # the only family with two priors
    keys = section.epanechnikov
    if objective != "evae":
      keys.prior = default.epanechnikov.prior
    elif keys.prior == default.epanechnikov.prior:
      keys.prior = "uniform"

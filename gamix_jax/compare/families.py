"""Parses `posterior[:components]/objective[:population][@term=weight...]`.

A comparison is only as fair as its weights. With weights in the spec, each
family can be run with several, and the best ones compared.
"""

import math
import re

from gamix_jax import build, objectives, presets
from gamix_jax import config as configs
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.posterior import POSTERIORS

FORM = "posterior[:components]/objective[:population][@term=weight...]"
_SPEC = re.compile(
  r"(\w+)(?::(\d+))?/(\w+)(?::(\w+))?((?:@\w+=[\w.+-]+)*)", re.ASCII
)


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
    derived, weights = _derive(config, spec)
    presets.complete(derived)
    _apply_weights(derived, weights)
    build.train_spec(derived)
  except UserError as e:
    raise UserError(f"--families={spec}: {e}") from e
  return derived


def folder_name(spec: str) -> str:
  """Returns a family's folder name, of letters, digits and `_-.+` only."""
  return re.sub("[/@]", "_", re.sub("[:=]", "-", spec))


def _derive(config: ConfigDict, spec: str) -> tuple[ConfigDict, str]:
  """Applies a spec's names to a config; returns it and the weights' text."""
  match = _SPEC.fullmatch(spec)
  if not match:
    raise UserError(
      f"a family must be {FORM}, with posterior one of {', '.join(POSTERIORS)} "
      f"and objective one of {', '.join(objectives.OBJECTIVES)}."
    )
  name, components, objective, population, weights = match.groups()
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
  _set_weights(derived, terms)
  _set_ramps(derived, terms)
  return derived, weights


def _apply_weights(config: ConfigDict, weights: str) -> None:
  """Sets the weights `@term=weight...` in a complete config."""
  objective, loss = config.objective.name, config.adversarial.loss
  vae_terms, disc_terms = objectives.term_names(objective, loss)
  terms = [*vae_terms, *disc_terms]
  weighted = set()
  for part in weights.split("@")[1:]:
    term, text = part.split("=")
    if term not in terms:
      raise UserError(
        f"@{part}: objective {objective!r} with adversarial.loss={loss!r} has "
        f"no such term; use one of {', '.join(terms)}."
      )
    if term in weighted:
      raise UserError(f"@{part}: {term} has a weight already; remove one.")
    weighted.add(term)
    try:
      weight = float(text)
    except ValueError:
      weight = math.nan
    if not 0 <= weight < math.inf:
      raise UserError(f"@{part}: {text} must be a finite number >= 0.")
    with config.weights.ignore_type():  # an int key accepts a float
      config.weights[term] = weight


def _set_posterior(config, name, components, objective) -> None:
  """Sets the section `posterior`; resets other families' keys to base()."""
  section, default = config.posterior, configs.base().posterior
  if components:
    section.components = int(components)
  elif section.name != name:
    section.components = default.components
  section.name = name
  if POSTERIORS.choose(name).family.discrete:  # it has no variance
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


def _set_weights(config: ConfigDict, terms: tuple[str, ...]) -> None:
  """Sets the weights of objective terms; a preset's stay None."""
  default = configs.base().weights
  known = {t for o in objectives.OBJECTIVES.values() for t in o.terms}
  for term in known | set(terms):
    if term not in terms:
      config.weights[term] = None
    elif config.weights[term] is None and not config.preset:
      config.weights[term] = 1.0 if default[term] is None else default[term]


def _set_ramps(config: ConfigDict, terms: tuple[str, ...]) -> None:
  """Sets the ramps, 0 for terms of other objectives; a preset's stay None."""
  if "population_kl" not in terms:
    config.ramp.population_kl = 0
  ramped_terms = {t for o in objectives.OBJECTIVES.values() for t in o.ramped}
  given = [config.ramp[t] for t in ramped_terms if config.ramp[t] is not None]
  steps = max(given, default=None)
  ramped = objectives.OBJECTIVES[config.objective.name].ramped
  for term in ramped_terms:
    config.ramp[term] = steps if term in ramped else 0

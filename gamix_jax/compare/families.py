"""What `posterior[:components]/objective[:population][@term=weight...]` means.

A comparison is as fair as its weights: with those of the spec each side can
have several, and its best ones be set against the other's.
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
  """The config of one family in a comparison; all else is `config`'s.

  Terms that the spec gives a weight have that. Of the others, those of the
  objective and of the discriminator have the config's weights; where it has
  none, the preset's (see `presets.complete`), or without a preset those of
  `config.base()`; where that has none either, 1. Terms of other objectives get
  None. The ramp of the term that pulls single posteriors goes on with the
  objective's own such term, but for siwae, which allows none; where the config
  leaves ramps open, they are the preset's. Components left out are the config's
  own if it names that family, else 1; a population left out is the config's.

  Args:
    config: with weights of any objective, or with a preset that is to choose
      what is None. It is not changed.
    spec: `posterior[:components]/objective[:population][@term=weight...]`, such
      as `gaussian/elbo@kl=0.5` or `mixture:4/gamix:quadratic`.

  Returns:
    A complete and checked config.

  Raises:
    UserError: another form, a name that is in no table, a population for an
      objective that has none, a weight of a term that there is not or that is
      no number from 0 on, a pair that does not fit.
  """
  try:
    derived, weights = _derive(config, spec)
    presets.complete(derived)
    _weigh(derived, weights)
    build.train_spec(derived)
  except UserError as e:
    raise UserError(f"--families={spec}: {e}") from e
  return derived


def folder_name(spec: str) -> str:
  """Of the folder with a family's runs: letters, digits and `_-.+` alone."""
  return re.sub("[/@]", "_", re.sub("[:=]", "-", spec))


def _derive(config: ConfigDict, spec: str) -> tuple[ConfigDict, str]:
  """The config, with nothing but the spec's names checked; its weights."""
  match = _SPEC.fullmatch(spec)
  if not match:
    raise UserError(
      f"a family is {FORM}; posteriors are {', '.join(POSTERIORS)}, objectives "
      f"{', '.join(objectives.OBJECTIVES)}."
    )
  name, components, goal, population, weights = match.groups()
  objectives.term_names(goal, "none")  # or says which there are
  terms = objectives.OBJECTIVES[goal].terms
  if population and "population_kl" not in terms:
    have = [
      k for k, o in objectives.OBJECTIVES.items() if "population_kl" in o.terms
    ]
    raise UserError(
      f"objective {goal!r} has no population; what has: {', '.join(have)}."
    )
  derived = config.copy_and_resolve_references()
  _set_posterior(derived, name, components, goal)
  derived.objective.name = goal
  if population:
    derived.objective.population = population
  _set_weights(derived, terms)
  _set_ramps(derived, terms)
  return derived, weights


def _weigh(config: ConfigDict, weights: str) -> None:
  """Gives a complete config the weights `@term=weight...`."""
  goal, loss = config.objective.name, config.adversarial.loss
  terms = [t for of in objectives.term_names(goal, loss) for t in of]
  seen = set()
  for part in weights.split("@")[1:]:
    term, text = part.split("=")
    if term not in terms:
      raise UserError(
        f"@{part}: objective {goal!r} with adversarial.loss={loss!r} has no "
        f"such term; it has {', '.join(terms)}."
      )
    if term in seen:
      raise UserError(f"@{part}: {term} has a weight already.")
    seen.add(term)
    try:
      weight = float(text)
    except ValueError:
      weight = math.nan
    if not 0 <= weight < math.inf:
      raise UserError(f"@{part}: {text} is no number from 0 on.")
    with config.weights.ignore_type():  # a whole number's place takes any
      config.weights[term] = weight


def _set_posterior(config, name, components, goal) -> None:
  """Of the section `posterior`; other families' keys are as in base()."""
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
  if name == "epanechnikov":  # the one family of two priors
    own = section.epanechnikov
    if goal != "evae":
      own.prior = default.epanechnikov.prior
    elif own.prior == default.epanechnikov.prior:
      own.prior = "uniform"


def _set_weights(config: ConfigDict, terms: tuple[str, ...]) -> None:
  """Of the terms of objectives; a preset's are left open."""
  default = configs.base().weights
  known = {t for o in objectives.OBJECTIVES.values() for t in o.terms}
  for term in known | set(terms):
    if term not in terms:
      config.weights[term] = None
    elif config.weights[term] is None and not config.preset:
      config.weights[term] = 1.0 if default[term] is None else default[term]


def _set_ramps(config: ConfigDict, terms: tuple[str, ...]) -> None:
  """None of a term that there is not; a preset's are left open."""
  if "population_kl" not in terms:
    config.ramp.population_kl = 0
  pulls = {t for o in objectives.OBJECTIVES.values() for t in o.ramped}
  given = [config.ramp[t] for t in pulls if config.ramp[t] is not None]
  steps = max(given, default=None)
  ramped = objectives.OBJECTIVES[config.objective.name].ramped
  for term in pulls:
    config.ramp[term] = steps if term in ramped else 0

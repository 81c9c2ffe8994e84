"""What `posterior[:components]/objective[:population]` stands for."""

import re

from gamix_jax import build, objective
from gamix_jax import config as configs
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.posterior import HEADS

# The terms that pull single posteriors; one of them is in each objective.
PULLS = ("collapse", "kl", "kernel")
FORM = "posterior[:components]/objective[:population]"
_SPEC = re.compile(r"(\w+)(?::(\d+))?/(\w+)(?::(\w+))?")


def family_config(config: ConfigDict, spec: str) -> ConfigDict:
  """The config of one family in a comparison; all else is `config`'s.

  The terms that the objective has besides the reconstruction get the config's
  weights; where it has none, those of `config.base()`; where that has none
  either, 1. Terms of other objectives get None. The ramp of the term that pulls
  single posteriors goes on with the objective's own such term, but for siwae,
  which allows none. Components left out are the config's own if it names that
  family, else 1; a population left out is the config's.

  Args:
    config: with weights of any objective. It is not changed.
    spec: `posterior[:components]/objective[:population]`, such as
      `gaussian/elbo` or `mixture:4/gamix:quadratic`.

  Returns:
    A checked config.

  Raises:
    UserError: another form, a name that is in no table, a population for an
      objective that has none, a pair that does not fit.
  """
  try:
    derived = _derive(config, spec)
    configs.check(derived)
    build.recipe(derived)
  except UserError as e:
    raise UserError(f"--families={spec}: {e}") from e
  return derived


def _derive(config: ConfigDict, spec: str) -> ConfigDict:
  """The config, with nothing but the words of the spec checked."""
  match = _SPEC.fullmatch(spec)
  if not match:
    raise UserError(
      f"a family is {FORM}; posteriors are {', '.join(HEADS)}, objectives "
      f"{', '.join(objective.OBJECTIVES)}."
    )
  name, components, goal, population = match.groups()
  objective.term_names(goal, config.adversarial.loss)  # or says which there are
  terms = objective.OBJECTIVES[goal].terms
  if population and "population_kl" not in terms:
    have = [
      k for k, o in objective.OBJECTIVES.items() if "population_kl" in o.terms
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
  return derived


def _set_posterior(config, name, components, goal) -> None:
  """Of the section `posterior`; other families' keys are as in base()."""
  section, default = config.posterior, configs.base().posterior
  if components:
    section.components = int(components)
  elif section.name != name:
    section.components = default.components
  section.name = name
  if name == "poisson":  # its one parameter is the rate
    section.initial_logvar = default.initial_logvar
  for family in HEADS:
    if family != name and family in section:
      section[family].update(default[family])
  if name == "epanechnikov":  # the one family of two priors
    own = section.epanechnikov
    if goal != "evae":
      own.prior = default.epanechnikov.prior
    elif own.prior == default.epanechnikov.prior:
      own.prior = "uniform"


def _set_weights(config: ConfigDict, terms: tuple[str, ...]) -> None:
  """A weight for each of the terms; those of no objective stay."""
  default = configs.base().weights
  known = {t for o in objective.OBJECTIVES.values() for t in o.terms}
  for term in known | set(terms):
    given = [w for w in (config.weights[term], default[term]) if w is not None]
    config.weights[term] = (*given, 1.0)[0] if term in terms else None


def _set_ramps(config: ConfigDict, terms: tuple[str, ...]) -> None:
  """None of a term that there is not."""
  if "population_kl" not in terms:
    config.ramp.population_kl = 0
  steps = max(config.ramp[term] for term in PULLS)
  for term in PULLS:
    ramped = term in terms and config.objective.name != "siwae"
    config.ramp[term] = steps if ramped else 0

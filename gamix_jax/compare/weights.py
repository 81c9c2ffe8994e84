"""Weights and ramps of the terms of a family's objective."""

import math

from gamix_jax import config as configs
from gamix_jax import objectives
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError


def apply_spec(config: ConfigDict, weights: str) -> None:
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


def set_weights(config: ConfigDict, terms: tuple[str, ...]) -> None:
  """Sets the weights of objective terms; a preset's stay None."""
  default = configs.base().weights
  table = objectives.OBJECTIVES
  terms = (*terms, *table[config.objective.name].of_discriminator)
  known = {t for o in table.values() for t in (*o.terms, *o.of_discriminator)}
  for term in known | set(terms):
    if term not in terms:
      config.weights[term] = None
    elif config.weights[term] is None and not config.preset:
      config.weights[term] = 1.0 if default[term] is None else default[term]


def set_ramps(config: ConfigDict, terms: tuple[str, ...]) -> None:
  """Sets the ramps, 0 for terms of other objectives; a preset's stay None."""
  if "population_kl" not in terms:
    config.ramp.population_kl = 0
  ramped_terms = {t for o in objectives.OBJECTIVES.values() for t in o.ramped}
  given = [config.ramp[t] for t in ramped_terms if config.ramp[t] is not None]
  steps = max(given, default=None)
  ramped = objectives.OBJECTIVES[config.objective.name].ramped
  for term in ramped_terms:
    config.ramp[term] = steps if term in ramped else 0

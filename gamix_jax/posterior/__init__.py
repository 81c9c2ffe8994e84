"""THE PAPER, 1: the posterior q(z | x).

A family is a file here and a line below: a Flax module (`Head`) that turns the
encoder's features into a `Posterior`. Read `base` first.
"""

from typing import Any

from gamix_jax.posterior import prior
from gamix_jax.posterior.base import Head, Posterior, log_prior
from gamix_jax.posterior.epanechnikov import (
  Epanechnikov,
  EpanechnikovHead,
  EVAEPosterior,
)
from gamix_jax.posterior.gaussian import Gaussian, GaussianHead
from gamix_jax.posterior.mixture import Mixture, MixtureHead
from gamix_jax.posterior.poisson import Poisson, PoissonHead
from gamix_jax.registry import Registry

POSTERIORS: Registry[type[Head]] = Registry("posterior.name")
POSTERIORS.register("gaussian", GaussianHead)
POSTERIORS.register("mixture", MixtureHead)
POSTERIORS.register("epanechnikov", EpanechnikovHead)
POSTERIORS.register("poisson", PoissonHead)


def head(name: str, **section: Any) -> Head:
  """The module named by `config.posterior`.

  Args:
    name: of the family.
    **section: what every family has; and for some a mapping of its own, by its
      name, of which the others' are not looked at.

  Raises:
    UserError: there is no such family; it cannot have these values.
  """
  own = section.get(name, {})
  common = {k: v for k, v in section.items() if k not in POSTERIORS}
  return POSTERIORS.choose(name)(**common, **own)


__all__ = [
  "POSTERIORS",
  "EVAEPosterior",
  "Epanechnikov",
  "EpanechnikovHead",
  "Gaussian",
  "GaussianHead",
  "Head",
  "Mixture",
  "MixtureHead",
  "Poisson",
  "PoissonHead",
  "Posterior",
  "head",
  "log_prior",
  "prior",
]

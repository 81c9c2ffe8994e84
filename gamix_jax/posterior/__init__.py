"""THE PAPER, 1: the posterior q(z | x).

A family is a file here and a line below: a Flax module (`Head`) that maps the
encoder's features to a `Posterior`. Read `base` first.
"""

from typing import Any

from gamix_jax.posterior import prior
from gamix_jax.posterior.base import Head, Posterior, log_prior
from gamix_jax.posterior.delta import Delta, DeltaHead
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
POSTERIORS.register("delta", DeltaHead)


def head(name: str, **section: Any) -> Head:
  """The module named by `config.posterior`.

  Args:
    name: the name of the family.
    **section: keys of all families, and mappings with the keys of single
      families by their names; those of other families are ignored.

  Raises:
    UserError: if there is no such family, or a value is out of its range.
  """
  own = section.get(name, {})
  common = {k: v for k, v in section.items() if k not in POSTERIORS}
  return POSTERIORS.choose(name)(**common, **own)


__all__ = [
  "POSTERIORS",
  "Delta",
  "DeltaHead",
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

"""THE PAPER, 1: the posterior q(z | x).

A family is a file here and a line in `HEADS`: a Flax module that turns the
encoder's features [b, n] into a `Posterior`. Read `base` first.
"""

from flax import linen as nn

from gamix_jax.errors import UserError
from gamix_jax.posterior import prior
from gamix_jax.posterior.base import Posterior, log_prior
from gamix_jax.posterior.epanechnikov import (
  Epanechnikov,
  EpanechnikovHead,
  EVAEPosterior,
)
from gamix_jax.posterior.gaussian import Gaussian, GaussianHead
from gamix_jax.posterior.mixture import Mixture, MixtureHead
from gamix_jax.posterior.poisson import Poisson, PoissonHead

HEADS = {
  "gaussian": GaussianHead,
  "mixture": MixtureHead,
  "epanechnikov": EpanechnikovHead,
  "poisson": PoissonHead,
}


def head(name: str, **section) -> nn.Module:
  """The module named by `config.posterior`: features [b, n] -> Posterior.

  Args:
    name: of the family.
    **section: what every family has; and for some a mapping of its own, by its
      name, of which the others' are not looked at.

  Raises:
    UserError: if there is no such family, or it has not that many components.
  """
  if name not in HEADS:
    raise UserError(
      f"posterior.name={name!r} is not a posterior family; "
      f"there are: {', '.join(HEADS)}."
    )
  own = section.get(name, {})
  common = {k: v for k, v in section.items() if k not in HEADS}
  return HEADS[name](**common, **own)


__all__ = [
  "HEADS",
  "EVAEPosterior",
  "Epanechnikov",
  "EpanechnikovHead",
  "Gaussian",
  "GaussianHead",
  "Mixture",
  "MixtureHead",
  "Poisson",
  "PoissonHead",
  "Posterior",
  "head",
  "log_prior",
  "prior",
]

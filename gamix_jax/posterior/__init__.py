"""THE PAPER, 1: the posterior q(z | x).

A family is a file here and a line in `HEADS`: a Flax module that turns the
encoder's features [b, n] into a `Posterior`. Read `base` first.
"""

from flax import linen as nn

from gamix_jax.errors import UserError
from gamix_jax.posterior.base import Posterior, log_prior
from gamix_jax.posterior.gaussian import Gaussian, GaussianHead
from gamix_jax.posterior.mixture import Mixture, MixtureHead

HEADS = {"gaussian": GaussianHead, "mixture": MixtureHead}


def head(name: str, **section) -> nn.Module:
  """The module named by `config.posterior`: features [b, n] -> Posterior.

  Raises:
    UserError: if there is no such family, or it has not that many components.
  """
  if name not in HEADS:
    raise UserError(
      f"posterior.name={name!r} is not a posterior family; "
      f"there are: {', '.join(HEADS)}."
    )
  return HEADS[name](**section)


__all__ = [
  "HEADS",
  "Gaussian",
  "GaussianHead",
  "Mixture",
  "MixtureHead",
  "Posterior",
  "head",
  "log_prior",
]

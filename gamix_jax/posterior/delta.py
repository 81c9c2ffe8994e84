"""q(z | x) = delta(z - mu(x)): a deterministic encoder.

The posterior of autoencoders (AE, RAE) and the usual one of Wasserstein
autoencoders (WAE, SWAE, CWAE). It has no density, so there is no KL to a prior
and no bound of ln p(x); objectives that need only draws or moments of the
population accept it.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float

from gamix_jax.posterior import base


@struct.dataclass
class Delta(base.Posterior):
  """mu [b, d]."""

  has_variance: ClassVar[bool] = False
  has_density: ClassVar[bool] = False
  has_finite_elbo: ClassVar[bool] = False

  mu: Float[Array, "b d"]

  def noise_shape(self, n: int) -> tuple[int, ...]:
    """No noise is used."""
    return (n, *self.mu.shape)

  def sample(
    self,
    key: jax.Array,
    n: int,
    eps: jax.Array | None = None,
    step: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """n times mu."""
    del key, eps, step
    z = jnp.broadcast_to(self.mu[None], (n, *self.mu.shape))
    return z, jnp.full(z.shape[:2], 1 / n, z.dtype)

  def mean(self) -> Float[Array, "b d"]:
    return self.mu

  def components(self) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One component of variance 0."""
    weights = jnp.ones((self.mu.shape[0], 1), self.mu.dtype)
    mu = self.mu[:, None]
    return weights, mu, jnp.zeros_like(mu)


class DeltaHead(base.Head):
  """A linear map of the features to mu [b, d]."""

  family: ClassVar[type] = Delta

  @nn.compact
  def __call__(self, features: Float[Array, "b ... n"]) -> Delta:
    return Delta(base.dense(self, features, "mu", self.latent))

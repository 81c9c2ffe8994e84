"""q(z | x) = N(z; mu, diag sigma^2): the published run's posterior, K = 1."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float

from gamix_jax.posterior import base


@struct.dataclass
class Gaussian(base.Posterior):
  """mu and logvar = ln sigma^2, both [b, d]."""

  closed_form_kl: ClassVar[bool] = True
  gaussian_components: ClassVar[bool] = True
  allows_learned_prior: ClassVar[bool] = True

  mu: Float[Array, "b d"]
  logvar: Float[Array, "b d"]

  def noise_shape(self, n: int) -> tuple[int, ...]:
    return (n, *self.mu.shape)

  def sample(
    self,
    key: jax.Array,
    n: int,
    eps: jax.Array | None = None,
    step: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    del step
    if eps is None:
      eps = jax.random.normal(key, self.noise_shape(n), self.mu.dtype)
    z = self.mu[None] + jnp.exp(self.logvar / 2)[None] * eps
    return z, jnp.full(z.shape[:2], 1 / n, z.dtype)

  def mean(self) -> Float[Array, "b d"]:
    return self.mu

  def log_prob(self, z: Float[Array, "... b d"]) -> Float[Array, "... b"]:
    return base.normal_log_prob(z, self.mu, self.logvar)

  def components(self) -> tuple[jax.Array, jax.Array, jax.Array]:
    weights = jnp.ones((self.mu.shape[0], 1), self.mu.dtype)
    return weights, self.mu[:, None], jnp.exp(self.logvar)[:, None]

  def kl_divergence(
    self, z: Float[Array, "s b d"], w: Float[Array, "s b"]
  ) -> Float[Array, " b"]:
    """In closed form; the draws are ignored."""
    del z, w
    return base.normal_kl(self.mu, self.logvar)

  def kl_of_latents(self) -> Float[Array, "b d"]:
    return base.normal_kl_of_latents(self.mu, self.logvar)


class GaussianHead(base.Head):
  """Linear maps of the features to mu and logvar [b, d]."""

  family: ClassVar[type] = Gaussian

  @nn.compact
  def __call__(self, features: Float[Array, "b ... n"]) -> Gaussian:
    return Gaussian(*base.location_and_scale(self, features))

"""q(z | x) = sum_k pi_k N(z; mu_k, diag sigma_k^2), all learned per image.

Decoded stratum by stratum (Morningstar et al., arXiv:2003.01687): every
component is drawn from and the terms are weighted by pi, so the weights get an
ordinary gradient without relaxation. With one component it is the
Gaussian, to the bit.
"""

from typing import ClassVar

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float

from gamix_jax.errors import UserError
from gamix_jax.posterior import base


@struct.dataclass
class Mixture(base.Posterior):
  """logits [b, k] of pi, mu and logvar = ln sigma^2 [b, k, d]."""

  has_components: ClassVar[bool] = True
  gaussian_components: ClassVar[bool] = True
  allows_learned_prior: ClassVar[bool] = True

  logits: Float[Array, "b k"]
  mu: Float[Array, "b k d"]
  logvar: Float[Array, "b k d"]

  def noise_shape(self, n: int) -> tuple[int, ...]:
    return (n, *self.mu.shape)

  def weights(self) -> Float[Array, "b k"]:
    """pi, [b, k]."""
    return jax.nn.softmax(self.logits, axis=-1)

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
    z = self.mu[None] + jnp.exp(self.logvar / 2)[None] * eps  # [n, b, k, d]
    b, k, d = self.mu.shape
    z = jnp.swapaxes(z, 1, 2).reshape(n * k, b, d)
    w = jnp.tile(self.weights().T, (n, 1)) * (1 / n)
    return z, w

  def mean(self) -> Float[Array, "b d"]:
    return jnp.sum(self.weights()[..., None] * self.mu, axis=1)

  def log_prob(self, z: Float[Array, "... b d"]) -> Float[Array, "... b"]:
    """The density of the mixture: logsumexp over the components."""
    each = base.normal_log_prob(z[..., None, :], self.mu, self.logvar)
    log_weights = jax.nn.log_softmax(self.logits, axis=-1)
    return jax.nn.logsumexp(
      base.expand_leading(log_weights, each.ndim) + each, axis=-1
    )

  def components(self) -> tuple[jax.Array, jax.Array, jax.Array]:
    return self.weights(), self.mu, jnp.exp(self.logvar)

  def kl_divergence(
    self, z: Float[Array, "s b d"], w: Float[Array, "s b"]
  ) -> Float[Array, " b"]:
    """Stratified estimate: sum_s w ( ln q(z | x) - ln p(z) ).

    Unbiased, gradient too. One component has the closed form.
    """
    if self.mu.shape[1] == 1:
      return base.normal_kl(self.mu[:, 0], self.logvar[:, 0])
    return base.kl_by_draws(self, z, w)


class MixtureHead(base.Head):
  """Linear maps of the features to logits, mu and logvar.

  `mu` and `logvar` are the Gaussian head's with k times the outputs.

  Attributes:
    temperature: the logits are divided by it; over 1 the weights are more even
      at the start, and slower to become uneven.
    min_weight: m of pi = (1 - m) softmax + m / k. No weight is under m / k then
      and the weights' entropy not under that of such a pi, so that no
      component loses its gradient and dies.
  """

  family: ClassVar[type] = Mixture

  temperature: float = 1.0
  min_weight: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    if not self.temperature > 0 or not 0 <= self.min_weight < 1:
      raise UserError(
        f"posterior.mixture.temperature={self.temperature} must be > 0, "
        f"and posterior.mixture.min_weight={self.min_weight} in [0, 1)."
      )

  @nn.compact
  def __call__(self, features: Float[Array, "b ... n"]) -> Mixture:
    k = self.components
    mu = base.dense_components(self, features, "mu")
    logvar = base.dense_components(
      self, features, "logvar", self.initial_logvar
    )
    # For spatial features the weights depend on their mean over positions.
    # einops does nothing if there are none; ONNX would average all axes.
    pooled = einops.reduce(features, "b ... c -> b c", "mean")
    logits = base.dense(self, pooled, "logits", k) / self.temperature
    if self.min_weight and k > 1:
      pi = (1 - self.min_weight) * jax.nn.softmax(
        logits, axis=-1
      ) + self.min_weight / k
      logits = jnp.log(pi)
    return Mixture(logits, mu, base.clamp_logvar(logvar))

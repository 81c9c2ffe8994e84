"""What every posterior family can do, and the sums they share.

    q(z) = 1/B sum_i q(z | x_i),    q(z | x_i) = sum_k pi_ik q_k(z | x_i)

is the population of the paper (arXiv:2309.13160); `centres` is what its
moments are made of.
"""

from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import linen as nn

# exp(20 / 2) and exp(-30 / 2) are far from float32's ends, and so are the sums
# made of them. The bounds of latent diffusion's autoencoders.
LOGVAR_RANGE = (-30.0, 20.0)

LOG_2PI = 1.8378770664093453


@runtime_checkable
class Posterior(Protocol):
  """q(z | x) of b images over a latent of size d; a pytree of float32.

  Attributes:
    normal: whether the prior is N(0, I).
    has_finite_elbo: whether ln q and ln p give a finite bound of ln p(x).
  """

  normal: ClassVar[bool]
  has_finite_elbo: bool

  def sample(
    self,
    key: jax.Array,
    n: int,
    eps: jax.Array | None = None,
    step: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Differentiable draws z [s, b, d], weights w [s, b] summing to 1 over s.

    They are n samples (s = n, w = 1/n) or, of a mixture, n of every component
    (s = n k, w = pi / n), so that sum_s w f(z) estimates E_q f without bias.

    Args:
      key: a typed PRNG key.
      n: the number of draws, per component where there are any.
      eps: standard noise to use instead of the key's; its shape is the
        family's `noise_shape(n)`.
      step: of the training, for a family whose draws are relaxed and grow
        sharper with it; None, for evaluation: as they are, relaxed by nothing.
    """
    ...

  def noise_shape(self, n: int) -> tuple[int, ...]:
    """The shape of the standard noise behind n draws."""
    ...

  def mean(self) -> jax.Array:
    """E_q z, [b, d]: what a deterministic reconstruction decodes."""
    ...

  def log_prob(self, z: jax.Array) -> jax.Array:
    """ln q(z | x) in nats: [..., b, d] -> [..., b]."""
    ...

  def log_prior(self, z: jax.Array) -> jax.Array:
    """ln p(z) in nats: [..., b, d] -> [..., b]; N(0, I) unless said."""
    ...

  def components(self) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weights [b, k] (1 over k), means and variances [b, k, d]."""
    ...

  def kl_divergence(self, z: jax.Array, w: jax.Array) -> jax.Array:
    """KL(q || p) in nats, [b]: closed form, or estimated from draws."""
    ...


class StandardNormalPrior:
  """Of a family whose prior is N(0, I), and whose bounds are finite."""

  normal: ClassVar[bool] = True
  has_finite_elbo = True

  def log_prior(self, z: jax.Array) -> jax.Array:
    return log_prior(z)


class StandardNormalPriorHead:
  """Of the module of such a family; it has `latent` and `param_dtype`."""

  def prior_draws(
    self, key: jax.Array, n: int, temperature: float = 1.0
  ) -> jax.Array:
    """z [n, d] from the prior, its standard deviation times `temperature`."""
    z = jax.random.normal(key, (n, self.latent), self.param_dtype)
    return temperature * z


def dense(
  head: nn.Module,
  features: jax.Array,
  name: str,
  outputs: int,
  bias: float = 0.0,
) -> jax.Array:
  """A linear map of features [b, n], inside a head: [b, outputs]."""
  dense = nn.Dense(
    outputs,
    dtype=head.dtype,
    param_dtype=head.param_dtype,
    kernel_init=nn.initializers.glorot_uniform(),
    bias_init=nn.initializers.constant(bias),
    name=name,
  )
  return promote_f32(dense(features))


def location_and_scale(
  head: nn.Module, features: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Two linear maps of features [b, n] to mu and logvar [b, d], inside a head.

  Their parameters are the head's, under "mu" and "logvar".
  """
  d = head.latent
  logvar = dense(head, features, "logvar", d, head.initial_logvar)
  return dense(head, features, "mu", d), clamp_logvar(logvar)


def kl_by_draws(q: Posterior, z: jax.Array, w: jax.Array) -> jax.Array:
  """sum_s w ( ln q(z | x) - ln p(z) ), [b]: unbiased, its gradient too."""
  return jnp.sum(w * (q.log_prob(z) - q.log_prior(z)), axis=0)


def promote_f32(x: jax.Array) -> jax.Array:
  """x in float32, or in float64 if it is that already."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def expand_leading(x: jax.Array | float, ndim: int) -> jax.Array:
  """x with axes of length 1 in front, so that it has at least ndim axes."""
  return jnp.expand_dims(x, tuple(range(ndim - jnp.ndim(x))))


def clamp_logvar(logvar: jax.Array) -> jax.Array:
  """logvar inside LOGVAR_RANGE, so that every exp of it is finite."""
  return jnp.clip(logvar, *LOGVAR_RANGE)


def normal_log_prob(
  z: jax.Array, mu: jax.Array | float = 0.0, logvar: jax.Array | float = 0.0
) -> jax.Array:
  """ln N(z; mu, diag exp(logvar)) in nats, summed over the last axis."""
  mu, logvar = (
    expand_leading(jnp.asarray(v, z.dtype), z.ndim) for v in (mu, logvar)
  )
  square = jnp.square(z - mu) * jnp.exp(-logvar)
  return -0.5 * jnp.sum(square + logvar + LOG_2PI, axis=-1)


def log_prior(z: jax.Array) -> jax.Array:
  """ln N(z; 0, I) in nats: [..., d] -> [...]."""
  return normal_log_prob(z)


def normal_kl(mu: jax.Array, logvar: jax.Array) -> jax.Array:
  """KL(N(mu, diag exp(logvar)) || N(0, I)) in nats, over the last axis.

  1/2 sum_d ( sigma^2 + mu^2 - 1 - ln sigma^2 ); Kingma & Welling 2014, app. B.
  """
  return 0.5 * jnp.sum(jnp.exp(logvar) + jnp.square(mu) - 1 - logvar, axis=-1)

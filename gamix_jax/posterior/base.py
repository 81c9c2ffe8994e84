"""What every posterior family can do, and the sums they share.

    q(z) = 1/B sum_i q(z | x_i),    q(z | x_i) = sum_k pi_ik q_k(z | x_i)

is the population of the paper (arXiv:2309.13160); `centres` is what its
moments are made of.
"""

import math
from typing import Any, ClassVar

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from gamix_jax.errors import UserError

# exp(20 / 2) and exp(-30 / 2) are far from float32's ends, and so are the sums
# made of them. The bounds of latent diffusion's autoencoders.
LOGVAR_RANGE = (-30.0, 20.0)

LOG_2PI = 1.8378770664093453


class Posterior:
  """q(z | x) of b images over a latent of size d; a pytree of float32.

  A family derives from this and is a `flax.struct.dataclass`. What objectives
  and samplers need to know of it, it says by these flags:

  Attributes:
    discrete: whether z are counts: no variance of their own, no mixture of
      Gaussians that fits them.
    has_components: whether it is a mixture.
    closed_form_kl: whether `kl_divergence` does without draws.
    has_finite_elbo: whether ln q and ln p give a finite bound of ln p(x).
    standard_normal_prior: whether p(z) is N(0, I).
    allows_learned_prior: whether KL(q || p) to another prior can be estimated
      from draws with a useful gradient.
    adds_prior_noise: whether draws are the kernel's plus the prior's, as in the
      published EVAE.
  """

  discrete: ClassVar[bool] = False
  has_components: ClassVar[bool] = False
  closed_form_kl: ClassVar[bool] = False
  has_finite_elbo = True
  standard_normal_prior: ClassVar[bool] = True
  allows_learned_prior: ClassVar[bool] = False
  adds_prior_noise: ClassVar[bool] = False

  def sample(
    self,
    key: jax.Array,
    n: int,
    eps: jax.Array | None = None,
    step: jax.Array | None = None,
  ) -> tuple[Float[Array, "s b d"], Float[Array, "s b"]]:
    """Differentiable draws z, with weights w that sum to 1 over s.

    They are n samples (s = n, w = 1/n) or, of a mixture, n of every component
    (s = n k, w = pi / n), so that sum_s w f(z) estimates E_q f without bias.

    Args:
      key: a typed PRNG key.
      n: the number of draws, per component where there are any.
      eps: standard noise to use instead of the key's; its shape is the
        family's `noise_shape(n)`.
      step: of the training, for a family whose draws are relaxed and grow
        sharper with it; None for evaluation, where nothing is relaxed.
    """
    raise NotImplementedError

  def noise_shape(self, n: int) -> tuple[int, ...]:
    """The shape of the standard noise behind n draws."""
    raise NotImplementedError

  def mean(self) -> Float[Array, "b d"]:
    """E_q z: what a deterministic reconstruction decodes."""
    raise NotImplementedError

  def log_prob(self, z: Float[Array, "... b d"]) -> Float[Array, "... b"]:
    """ln q(z | x) in nats."""
    raise NotImplementedError

  def log_prior(self, z: Float[Array, "... b d"]) -> Float[Array, "... b"]:
    """ln p(z) in nats; that of N(0, I) unless a family says otherwise."""
    return log_prior(z)

  def components(
    self,
  ) -> tuple[Float[Array, "b k"], Float[Array, "b k d"], Float[Array, "b k d"]]:
    """Weights (summing to 1 over k), means and variances."""
    raise NotImplementedError

  def kl_divergence(
    self, z: Float[Array, "s b d"], w: Float[Array, "s b"]
  ) -> Float[Array, " b"]:
    """KL(q || p) in nats: in closed form, or estimated from draws."""
    return kl_by_draws(self, z, w)


class Head(nn.Module):
  """Features of the encoder -> the posterior of a family.

  Attributes:
    latent: d, the size of z.
    components: of a family that has any.
    initial_logvar: of q at the start, of a family that has a variance.
    family: the class of what it makes; `posterior_type` is that of an instance.
    settings: config keys of the family's own with defaults, which are
      `posterior.<name>.<key>`; arguments of the constructor.
  """

  latent: int
  components: int = 1
  initial_logvar: float = 0.0
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  family: ClassVar[type[Posterior]]
  settings: ClassVar[dict[str, Any]] = {}

  def __post_init__(self):
    """Raises UserError at the first field out of its range."""
    super().__post_init__()
    family, name = self.family, self.family.__name__
    if self.components < 1 or (
      self.components > 1 and not family.has_components
    ):
      raise UserError(
        f"posterior.components={self.components}, but a posterior "
        + (
          "has 1 or more."
          if family.has_components
          else f"of the family {name} has one; use "
          "--config.posterior.name=mixture for more."
        )
      )
    if family.discrete and self.initial_logvar:
      raise UserError(
        f"posterior.initial_logvar={self.initial_logvar}, but a posterior of "
        f"the family {name} has no variance of its own; use "
        "--config.posterior.initial_logvar=0."
      )

  @property
  def posterior_type(self) -> type[Posterior]:
    """The class of what it makes with these fields."""
    return self.family

  def __call__(self, features: Float[Array, "b ... n"]) -> Posterior:
    """The posterior of features [b, n], or [b, h', w', n] of a latent grid."""
    raise NotImplementedError

  def prior_draws(
    self, key: jax.Array, n: int, temperature: float = 1.0
  ) -> Float[Array, "n d"]:
    """z from the prior, its standard deviation times `temperature`."""
    z = jax.random.normal(key, (n, self.latent), self.param_dtype)
    return temperature * z


def dense(
  head: nn.Module,
  features: Float[Array, "b ... n"],
  name: str,
  outputs: int,
  bias: float = 0.0,
) -> Float[Array, "b outputs"]:
  """A linear map of features, inside a head.

  Of a grid of features it is the same map at every place, with a share of the
  outputs each, in the order of the grid.
  """
  *grid, _ = features.shape[1:]
  linear = nn.Dense(
    outputs // math.prod(grid),
    dtype=head.dtype,
    param_dtype=head.param_dtype,
    kernel_init=nn.initializers.glorot_uniform(),
    bias_init=nn.initializers.constant(bias),
    name=name,
  )
  mapped = promote_f32(linear(features))
  return mapped.reshape(len(mapped), -1) if grid else mapped


def dense_components(
  head: nn.Module,
  features: Float[Array, "b ... n"],
  name: str,
  bias: float = 0.0,
) -> Float[Array, "b k d"]:
  """`dense` to a latent of every component, inside a head."""
  k = head.components
  mapped = dense(head, features, name, k * head.latent, bias)
  places = math.prod(features.shape[1:-1])
  return einops.rearrange(mapped, "b (p k c) -> b k (p c)", p=places, k=k)


def location_and_scale(
  head: nn.Module, features: Float[Array, "b ... n"]
) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
  """Two linear maps of features to mu and logvar, inside a head.

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

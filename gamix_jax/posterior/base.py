"""The base classes of posterior families, and functions that they share.

    q(z) = 1/B sum_i q(z | x_i),    q(z | x_i) = sum_k pi_ik q_k(z | x_i)

is the population of the paper (arXiv:2309.13160); its moments are computed from
`Posterior.components`.
"""

import functools
import math
from typing import Any, ClassVar

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from gamix_jax.errors import UserError
from gamix_jax.layers import Dense

# exp(20 / 2) and exp(-30 / 2) and sums of them stay within float32's range. The
# same bounds as in the autoencoders of latent diffusion.
LOGVAR_RANGE = (-30.0, 20.0)

LOG_2PI = 1.8378770664093453


class Posterior:
  """q(z | x) of b images over a latent of size d; a pytree of float32.

  A family is a subclass and a `flax.struct.dataclass`. Objectives and samplers
  use these flags, never the class or its name:

  Attributes:
    discrete: whether z are counts.
    has_variance: whether it has a variance parameter, `initial_logvar`.
    has_density: whether q(z | x) has a density or, of counts, probabilities.
    has_components: whether it is a mixture.
    gaussian_components: whether it is a mixture of diagonal Gaussians, or one,
      with the weights, means and variances of `components`.
    closed_form_kl: whether `kl_divergence` ignores the draws.
    has_finite_elbo: whether the ELBO is a finite bound of ln p(x).
    standard_normal_prior: whether p(z) is N(0, I).
    allows_learned_prior: whether KL(q || p) to a learned prior can be estimated
      from draws, with its gradient.
    adds_prior_noise: whether draws of the prior are added to those of q, as in
      the published EVAE.
    separate: whether every modality has latents of its own and none are shared.
  """

  discrete: ClassVar[bool] = False
  has_variance: ClassVar[bool] = True
  has_density: ClassVar[bool] = True
  has_components: ClassVar[bool] = False
  gaussian_components: ClassVar[bool] = False
  closed_form_kl: ClassVar[bool] = False
  has_finite_elbo = True
  standard_normal_prior: ClassVar[bool] = True
  allows_learned_prior: ClassVar[bool] = False
  adds_prior_noise: ClassVar[bool] = False
  separate: ClassVar[bool] = False

  def sample(
    self,
    key: jax.Array,
    n: int,
    eps: jax.Array | None = None,
    step: jax.Array | None = None,
  ) -> tuple[Float[Array, "s b d"], Float[Array, "s b"]]:
    """Draws z differentiably, with weights w that sum to 1 over s.

    There are s = n draws with w = 1/n or, for a mixture, n of every component
    (s = n k, w = pi / n). sum_s w f(z) is an unbiased estimate of E_q f.

    Args:
      key: a typed PRNG key.
      n: the number of draws (per component).
      eps: standard noise to use instead of random noise, of shape
        `noise_shape(n)`.
      step: the training step, for families with relaxed draws; None for
        evaluation, without relaxation.
    """
    raise NotImplementedError

  def noise_shape(self, n: int) -> tuple[int, ...]:
    """The shape of the standard noise for n draws."""
    raise NotImplementedError

  @functools.partial(jax.jit, static_argnames="n")
  def independent(self, key: jax.Array, n: int) -> Float[Array, "n b d"]:
    """n independent draws of each q(z | x), without weights or gradient."""
    of_draws, of_component = jax.random.split(key)
    z, w = self.sample(of_draws, n)
    z = einops.rearrange(z, "(n k) b d -> n k b d", n=n)
    log_weights = jnp.log(einops.rearrange(w, "(n k) b -> n k b", n=n))
    k = jax.random.categorical(of_component, log_weights, axis=1)
    z = jnp.take_along_axis(z, k[:, None, :, None], axis=1)[:, 0]
    return jax.lax.stop_gradient(z)

  def stratified(self) -> "Posterior":
    """The same q(z | x), of which `sample` draws from every component."""
    return self

  def mean(self) -> Float[Array, "b d"]:
    """E_q z, which deterministic reconstructions decode."""
    raise NotImplementedError

  def log_prob(self, z: Float[Array, "... b d"]) -> Float[Array, "... b"]:
    """ln q(z | x) in nats."""
    raise NotImplementedError

  def log_prior(self, z: Float[Array, "... b d"]) -> Float[Array, "... b"]:
    """ln p(z) in nats; of N(0, I) by default."""
    return log_prior(z)

  def components(
    self,
  ) -> tuple[Float[Array, "b k"], Float[Array, "b k d"], Float[Array, "b k d"]]:
    """Weights (summing to 1 over k), means and variances."""
    raise NotImplementedError

  def kl_divergence(
    self, z: Float[Array, "s b d"], w: Float[Array, "s b"]
  ) -> Float[Array, " b"]:
    """KL(q || p) in nats, in closed form or estimated from draws."""
    return kl_by_draws(self, z, w)

  def kl_of_latents(self) -> Float[Array, "b d"]:
    """KL(q(z_d | x) || p(z_d)) in nats, for families with a closed form."""
    raise NotImplementedError


class Head(nn.Module):
  """Base class of the modules that map features to a posterior.

  Attributes:
    latent: d, the size of z.
    components: the number of components of a mixture.
    initial_logvar: ln of q's variance at initialisation.
    family: the class of posteriors that it returns.
    settings: its own config keys with defaults, `posterior.<name>.<key>`; also
      fields of the class.
  """

  latent: int
  components: int = 1
  initial_logvar: float = 0.0
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  family: ClassVar[type[Posterior]]
  settings: ClassVar[dict[str, Any]] = {}

  def __post_init__(self):
    """Raises UserError if a field is out of its range."""
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
    if not family.has_variance and self.initial_logvar:
      raise UserError(
        f"posterior.initial_logvar={self.initial_logvar}, but a posterior of "
        f"the family {name} has no variance of its own; use "
        "--config.posterior.initial_logvar=0."
      )

  @property
  def posterior_type(self) -> type[Posterior]:
    """The class of posteriors that it returns with these fields."""
    return self.family

  def __call__(self, features: Float[Array, "b ... n"]) -> Posterior:
    """Maps features [b, n], or [b, h', w', n] for spatial latents."""
    raise NotImplementedError

  def prior_draws(
    self, key: jax.Array, n: int, temperature: float = 1.0
  ) -> Float[Array, "n d"]:
    """Draws z from the prior, with its scale multiplied by `temperature`."""
    z = jax.random.normal(key, (n, self.latent), self.param_dtype)
    return temperature * z


def dense(
  head: nn.Module,
  features: Float[Array, "b ... n"],
  name: str,
  outputs: int,
  bias: float = 0.0,
) -> Float[Array, "b outputs"]:
  """A linear map of features, used in a head.

  For spatial features it is the same map at every position, and outputs are
  ordered by position.
  """
  *grid, _ = features.shape[1:]
  linear = Dense(
    outputs // math.prod(grid),
    dtype=head.dtype,
    param_dtype=head.param_dtype,
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
  """`dense` to the latents of every component, used in a head."""
  k = head.components
  mapped = dense(head, features, name, k * head.latent, bias)
  places = math.prod(features.shape[1:-1])
  return einops.rearrange(mapped, "b (p k c) -> b k (p c)", p=places, k=k)


def location_and_scale(
  head: nn.Module, features: Float[Array, "b ... n"]
) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
  """Linear maps of features to mu and logvar, used in a head.

  Their parameters are the head's, under "mu" and "logvar".
  """
  d = head.latent
  logvar = dense(head, features, "logvar", d, head.initial_logvar)
  return dense(head, features, "mu", d), clamp_logvar(logvar)


def kl_by_draws(q: Posterior, z: jax.Array, w: jax.Array) -> jax.Array:
  """sum_s w ( ln q(z | x) - ln p(z) ), [b]; an unbiased estimate of the KL."""
  return jnp.sum(w * (q.log_prob(z) - q.log_prior(z)), axis=0)


def promote_f32(x: jax.Array) -> jax.Array:
  """Casts x to float32, unless it is float64."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def expand_leading(x: jax.Array | float, ndim: int) -> jax.Array:
  """Prepends axes of length 1, so that x has at least ndim axes."""
  return jnp.expand_dims(x, tuple(range(ndim - jnp.ndim(x))))


def clamp_logvar(logvar: jax.Array) -> jax.Array:
  """Clips logvar to LOGVAR_RANGE, so that exp(logvar) is finite."""
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
  return 0.5 * jnp.sum(_twice_kl(mu, logvar), axis=-1)


def normal_kl_of_latents(mu: jax.Array, logvar: jax.Array) -> jax.Array:
  """The summands of `normal_kl`, [..., d]."""
  return 0.5 * _twice_kl(mu, logvar)


def _twice_kl(mu: jax.Array, logvar: jax.Array) -> jax.Array:
  return jnp.exp(logvar) + jnp.square(mu) - 1 - logvar

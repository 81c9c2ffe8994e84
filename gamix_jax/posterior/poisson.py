"""q(z | x) of counts: the Poisson VAE (Vafaii et al., arXiv:2405.14473).

    p(z_d) = Poisson(r_d),    q(z_d | x) = Poisson(r_d dr_d(x))
    KL = sum_d r_d f(dr_d),   f(y) = 1 - y + y ln y

r are learned prior rates, one vector for all images; the encoder gives the
residual rates dr. Counts have no gradient, so training draws relaxed ones: of
a Poisson process of rate lambda = r dr, with arrivals at t_i, the count of
arrivals before 1 is sum_i [t_i < 1]; relaxed, sum_i g((1 - t_i) / temperature)
with a ramp g. Evaluation draws true counts.

One clamped log-rate is used by the sampler and the KL, so that the KL is that
of what is drawn.
"""

import math
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from gamix_jax.errors import UserError
from gamix_jax.layers import Dense
from gamix_jax.posterior import base
from gamix_jax.registry import check_choice

# Probability that more arrivals occur than are drawn.
TAIL = 1e-5
TINY_RATE = 1.19e-7  # float32's epsilon: arrivals stay finite


def _unit(x: jax.Array) -> jax.Array:
  return jnp.clip(0.5 * x + 0.5, 0, 1)


def _cubic(x):
  u = _unit(x)
  return u * u * (3 - 2 * u)


def _quintic(x):
  u = _unit(x)
  return u**3 * (10 + u * (6 * u - 15))


def _cosine(x):
  return 0.5 * (1 - jnp.cos(jnp.pi * _unit(x)))


# With the compact ramps a relaxed count has the mean of the true count, at any
# temperature up to 1. The sigmoid, the published default, is biased.
RAMPS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "cubic": _cubic,
  "linear": _unit,
  "quintic": _quintic,
  "cosine": _cosine,
  "sigmoid": jax.nn.sigmoid,
}
# How far past 1 an arrival still counts, in temperatures; 1 by default.
REACH = {"sigmoid": 12}


def soft_cap(x: jax.Array, c: float) -> jax.Array:
  """c - softplus(c - x): close to x if x is far below c, and always below c.

  At x = c it is c - ln 2.
  """
  return c - jax.nn.softplus(c - x)


def rate_kl(log_y: jax.Array) -> jax.Array:
  """f(y) = 1 - y + y ln y of ln y, by its series near y = 1.

  In float32 the formula has lost all digits at |ln y| = 1e-3.
  """
  near = jnp.abs(log_y) < 0.03
  small = jnp.where(near, log_y, 0.0)
  series = jnp.square(small) * (
    0.5 + small * (1 / 3 + small * (1 / 8 + small / 30))
  )
  large = jnp.where(near, 1.0, log_y)
  return jnp.where(near, series, 1 + jnp.exp(large) * (large - 1))


def arrivals_needed(rate: float, reach: float = 1.0) -> int:
  """The number of arrivals in [0, reach] that is exceeded with p = 1e-5."""
  import scipy.stats  # noqa: PLC0415  (0.4 s)

  return int(scipy.stats.poisson(rate * reach).ppf(1 - TAIL))


def relaxed(
  spacings: jax.Array, rate: jax.Array, temperature: jax.Array, ramp: str
) -> jax.Array:
  """Relaxed counts of a Poisson process; differentiable in the rate.

  Args:
    spacings: standard exponential noise, [arrivals, ...].
    rate: [...].
    temperature: over 0.
    ramp: a name of RAMPS.
  """
  times = jnp.cumsum(spacings, axis=0) / rate[None]
  return jnp.sum(RAMPS[ramp]((1 - times) / temperature), axis=0)


@struct.dataclass
class Poisson(base.Posterior):
  """log_rate = ln r dr(x), clamped, and log_prior_rate = ln r, both [b, d].

  Attributes:
    log_rate: see above.
    log_prior_rate: see above; of all images the same.
    ramp: of the relaxed counts, a name of RAMPS.
    temperature: at the end.
    temperature_steps: over which it comes down from 1, linearly.
    buckets: numbers of arrivals that draws are made with, ascending: the
      smallest is taken that the batch's largest rate needs. All are compiled
      at once, so no rate makes the step compile anew.
  """

  discrete: ClassVar[bool] = True
  has_variance: ClassVar[bool] = False
  closed_form_kl: ClassVar[bool] = True
  standard_normal_prior: ClassVar[bool] = False

  log_rate: Float[Array, "b d"]
  log_prior_rate: Float[Array, "b d"]
  ramp: str = struct.field(pytree_node=False, default="cubic")
  temperature: float = struct.field(pytree_node=False, default=0.05)
  temperature_steps: int = struct.field(pytree_node=False, default=1)
  buckets: tuple[int, ...] = struct.field(pytree_node=False, default=(32,))

  def rate(self) -> Float[Array, "b d"]:
    """lambda = r dr(x), [b, d]: mean and variance of the counts."""
    return jnp.exp(self.log_rate) + TINY_RATE

  def noise_shape(self, n: int) -> tuple[int, ...]:
    """Spacings of arrivals: standard exponential noise."""
    return (self.buckets[-1], n, *self.log_rate.shape)

  def sample(
    self,
    key: jax.Array,
    n: int,
    eps: jax.Array | None = None,
    step: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Draws true counts without a step, relaxed counts with a step or eps."""
    rate = jnp.broadcast_to(self.rate()[None], (n, *self.log_rate.shape))
    w = jnp.full(rate.shape[:2], 1 / n, rate.dtype)
    if eps is None and step is None:
      return jax.random.poisson(key, rate).astype(rate.dtype), w
    at = self._temperature(step)
    if eps is not None:
      return relaxed(eps, rate, at, self.ramp), w

    def draw(arrivals):
      def of(rate, key, at):
        shape = (arrivals, *rate.shape)
        spacings = jax.random.exponential(key, shape, rate.dtype)
        return relaxed(spacings, rate, at, self.ramp)

      return of

    # Arrivals after 1 count too, as far as the ramp reaches.
    reach = 1 + at * REACH.get(self.ramp, 1)
    most = jax.lax.stop_gradient(jnp.max(rate)) * reach
    # An upper bound of the Poisson quantile at 1 - 1e-5, at most 7 too large
    # for rates up to 1,000.
    need = most + 4.3 * jnp.sqrt(most) + 5
    bucket = jnp.sum(need > jnp.asarray(self.buckets[:-1], rate.dtype))
    branches = [draw(arrivals) for arrivals in self.buckets]
    return jax.lax.switch(bucket, branches, rate, key, at), w

  def _temperature(self, step: jax.Array | None) -> jax.Array:
    """Linear from 1 at step 0 to `temperature` at `temperature_steps`."""
    if step is None:
      return jnp.asarray(self.temperature, self.log_rate.dtype)
    gone = jnp.clip(step / self.temperature_steps, 0, 1)
    return (1 + gone * (self.temperature - 1)).astype(self.log_rate.dtype)

  def mean(self) -> Float[Array, "b d"]:
    return self.rate()

  def log_prob(self, z: Float[Array, "... b d"]) -> Float[Array, "... b"]:
    """ln of the probability mass, extended to relaxed counts."""
    return _log_pmf(z, base.expand_leading(jnp.log(self.rate()), z.ndim))

  def log_prior(self, z: Float[Array, "... b d"]) -> Float[Array, "... b"]:
    return _log_pmf(z, base.expand_leading(self.log_prior_rate, z.ndim))

  def components(self) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One component of mean and variance lambda."""
    weights = jnp.ones((self.log_rate.shape[0], 1), self.log_rate.dtype)
    rate = self.rate()[:, None]
    return weights, rate, rate

  def kl_divergence(
    self, z: Float[Array, "s b d"], w: Float[Array, "s b"]
  ) -> Float[Array, " b"]:
    """sum_d r f(lambda / r), in closed form; the draws are ignored."""
    del z, w
    return jnp.sum(self.kl_of_latents(), axis=-1)

  def kl_of_latents(self) -> Float[Array, "b d"]:
    log_r = self.log_prior_rate
    return jnp.exp(log_r) * rate_kl(self.log_rate - log_r)


def _log_pmf(z: jax.Array, log_rate: jax.Array) -> jax.Array:
  each = z * log_rate - jnp.exp(log_rate) - jax.lax.lgamma(z + 1)
  return jnp.sum(each, axis=-1)


class PoissonHead(base.Head):
  """A linear map of the features to ln dr, and the prior's ln r.

  Attributes:
    ramp: a name of RAMPS.
    temperature: of the relaxed counts at the end.
    temperature_steps: from 1 down to it, linearly.
    max_log_rate: ln lambda is soft-clamped below it.
    initial_log_rate: ln r starts uniform within 1 of it.
    bias: whether the map has one.
  """

  ramp: str = "cubic"
  temperature: float = 0.05
  temperature_steps: int = 1_000
  max_log_rate: float = 5.0
  initial_log_rate: float = -1.0
  bias: bool = True

  family: ClassVar[type] = Poisson

  def __post_init__(self):
    super().__post_init__()
    check_choice("posterior.poisson.ramp", self.ramp, RAMPS)
    if not 0 < self.temperature <= 1 or self.temperature_steps < 1:
      raise UserError(
        f"posterior.poisson.temperature={self.temperature} must be > 0 "
        "and at most 1, and posterior.poisson.temperature_steps="
        f"{self.temperature_steps} 1 or more."
      )
    if not self.max_log_rate <= 7:
      raise UserError(
        f"posterior.poisson.max_log_rate={self.max_log_rate} is over 7, where "
        "a draw takes thousands of arrivals."
      )

  def setup(self) -> None:
    self.log_residual = Dense(
      self.latent,
      use_bias=self.bias,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )
    self.log_prior_rate = self.param(
      "log_prior_rate", self._initial, (self.latent,), self.param_dtype
    )

  def _initial(self, key, shape, dtype):
    return self.initial_log_rate + jax.random.uniform(
      key, shape, dtype, minval=-1, maxval=1
    )

  def _log_r(self) -> jax.Array:
    log_r = jnp.maximum(self.log_prior_rate, base.LOGVAR_RANGE[0] / 2)
    return soft_cap(log_r, self.max_log_rate)

  def _buckets(self) -> tuple[int, ...]:
    """Powers of two, up to the number that the largest rate needs."""
    reach = 1 + REACH.get(self.ramp, 1)
    most = math.exp(self.max_log_rate) * reach
    last = arrivals_needed(most) + 12
    return (*(2**i for i in range(4, 16) if 2**i < last), last)

  def __call__(self, features: Float[Array, "b ... n"]) -> Poisson:
    features = features.reshape(len(features), -1)  # of a grid, all places
    log_dr = base.promote_f32(self.log_residual(features))
    log_r = self._log_r()
    # A rate below 1e-7 is 0 for all purposes.
    log_rate = jnp.maximum(
      base.expand_leading(log_r, log_dr.ndim) + log_dr, base.LOGVAR_RANGE[0] / 2
    )
    return Poisson(
      soft_cap(log_rate, self.max_log_rate),
      jnp.broadcast_to(log_r, log_rate.shape),
      self.ramp,
      self.temperature,
      self.temperature_steps,
      self._buckets(),
    )

  def prior_draws(
    self, key: jax.Array, n: int, temperature: float = 1.0
  ) -> jax.Array:
    """Draws counts z [n, d], with the prior's rates times `temperature`."""
    rate = jnp.exp(self._log_r()) * temperature
    shape = (n, self.latent)
    return jax.random.poisson(key, rate, shape).astype(rate.dtype)

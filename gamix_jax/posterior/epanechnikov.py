"""q(z | x) with the Epanechnikov kernel instead of the Gaussian's.

    K(z) = prod_d 3 / (4 r) ( 1 - ((z - mu) / r)^2 )   on [mu - r, mu + r]

Mean mu, variance sigma^2 = r^2 / 5: the location-scale family of least
int K^2 (Qin & Huang, arXiv:2405.12783, lemma 3.2). Two forms:

`Epanechnikov`, prior N(0, I): a proper posterior with a closed-form KL. That
KL is the Gaussian's of the same mu and sigma^2 plus 0.046165 nats a latent, so
the `elbo` differs from the Gaussian's in the shape of the noise alone.

`EVAEPosterior`, the published EVAE: its draws are the kernel, scaled by b, plus
a draw of the prior (algorithm 1), which has width B. With a uniform prior the
posterior extends past the prior's support, so KL(q || p) is infinite, and the
loss of the objective `evae` is no bound of ln p(x).
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float

from gamix_jax.errors import UserError
from gamix_jax.posterior import base
from gamix_jax.registry import check_choice

LOG_5 = 1.6094379124341003
ENTROPY = 5 / 3 - 1.0986122886681098  # of the kernel at r = 1: 5/3 - ln 3
BANDWIDTH = 100 ** (-2 / 9)  # the paper's b(100), 0.359381
PRIORS = ("normal", "uniform", "gaussian")


def quantile(v: jax.Array) -> jax.Array:
  """The kernel's quantile function: t with 1/2 + 3 t / 4 - t^3 / 4 = v.

  2 sin(asin(2 v - 1) / 3): one uniform a draw and no sorting, where the paper's
  algorithm 2 takes the median of three.
  """
  return 2 * jnp.sin(jnp.arcsin(2 * v - 1) / 3)


@struct.dataclass
class Epanechnikov(base.Posterior):
  """mu and logvar = ln sigma^2 = ln (r^2 / 5), both [b, d]."""

  closed_form_kl: ClassVar[bool] = True

  mu: Float[Array, "b d"]
  logvar: Float[Array, "b d"]

  def radius(self) -> Float[Array, "b d"]:
    """r = sqrt(5) sigma, [b, d]: half the kernel's support."""
    return jnp.exp((self.logvar + LOG_5) / 2)

  def noise_shape(self, n: int) -> tuple[int, ...]:
    return (n, *self.mu.shape)

  def _kernel(self, key, n, eps):
    """Standard kernel noise in [-1, 1]; a given eps is uniform in [0, 1]."""
    if eps is None:
      shape = (n, *self.mu.shape)
      eps = jax.random.uniform(key, shape, self.mu.dtype)
    return quantile(eps)

  def sample(
    self,
    key: jax.Array,
    n: int,
    eps: jax.Array | None = None,
    step: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    del step
    z = self.mu[None] + self.radius()[None] * self._kernel(key, n, eps)
    return z, jnp.full(z.shape[:2], 1 / n, z.dtype)

  def mean(self) -> Float[Array, "b d"]:
    return self.mu

  def log_prob(self, z: Float[Array, "... b d"]) -> Float[Array, "... b"]:
    """-inf outside the support."""
    mu, r = (base.expand_leading(v, z.ndim) for v in (self.mu, self.radius()))
    inside = 1 - jnp.square((z - mu) / r)
    # Rounding can place a draw at the edge just outside the support. It gets
    # the density of the last value inside.
    tiny = jnp.finfo(z.dtype).eps
    density = jnp.log(jnp.maximum(inside, tiny)) + jnp.log(0.75 / r)
    each = jnp.where(inside < -4 * tiny, -jnp.inf, density)
    return jnp.sum(each, axis=-1)

  def components(self) -> tuple[jax.Array, jax.Array, jax.Array]:
    weights = jnp.ones((self.mu.shape[0], 1), self.mu.dtype)
    return weights, self.mu[:, None], jnp.exp(self.logvar)[:, None]

  def kl_divergence(
    self, z: Float[Array, "s b d"], w: Float[Array, "s b"]
  ) -> Float[Array, " b"]:
    """KL(q || N(0, I)) in closed form; the draws are ignored.

    sum_d -ln r - (5/3 - ln 3) + 1/2 ln 2 pi + ( mu^2 + r^2 / 5 ) / 2; at least
    0.046165 a latent, at mu = 0, r = sqrt 5.
    """
    del z, w
    return jnp.sum(self.kl_of_latents(), axis=-1)

  def kl_of_latents(self) -> Float[Array, "b d"]:
    log_r = (self.logvar + LOG_5) / 2
    square = jnp.square(self.mu) + jnp.exp(self.logvar)
    return -log_r - ENTROPY + base.LOG_2PI / 2 + square / 2


@struct.dataclass
class EVAEPosterior(Epanechnikov):
  """The posterior of the published EVAE: z = b (mu + r k) + U, U ~ p(z).

  Attributes:
    width: B; the prior is U[-B/2, B/2], or N(0, B^2).
    uniform: which.
  """

  closed_form_kl: ClassVar[bool] = False
  standard_normal_prior: ClassVar[bool] = False
  adds_prior_noise: ClassVar[bool] = True

  width: float = struct.field(pytree_node=False, default=0.1)
  uniform: bool = struct.field(pytree_node=False, default=True)

  @property
  def has_finite_elbo(self) -> bool:
    """True for a Gaussian prior, whose support covers the posterior's."""
    return not self.uniform

  def noise_shape(self, n: int) -> tuple[int, ...]:
    """Noise of the kernel, and of the prior (from N(0, 1) or U[0, 1])."""
    return (2, n, *self.mu.shape)

  def sample(
    self,
    key: jax.Array,
    n: int,
    eps: jax.Array | None = None,
    step: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    del step
    kernel_key, prior_key = jax.random.split(key)
    of_kernel, of_prior = (None, None) if eps is None else eps
    t = self._kernel(kernel_key, n, of_kernel)
    noise = smoothing(
      prior_key, t.shape, self.width, self.uniform, t.dtype, of_prior
    )
    z = BANDWIDTH * (self.mu[None] + self.radius()[None] * t) + noise
    return z, jnp.full(z.shape[:2], 1 / n, z.dtype)

  def mean(self) -> Float[Array, "b d"]:
    """b mu; the paper does not specify what is decoded at test time."""
    return BANDWIDTH * self.mu

  def _noise_var(self) -> float:
    return self.width**2 / (12 if self.uniform else 1)

  def log_prob(self, z: Float[Array, "... b d"]) -> Float[Array, "... b"]:
    """ln of the kernel's convolution with the prior; -inf where it is 0.

    With U[-B/2, B/2] it is [F((z + B/2 - b mu) / (b r)) - F(...)] / B; with
    N(0, B^2) the second moment of a truncated Gaussian.
    """
    mu, r = (base.expand_leading(v, z.ndim) for v in (self.mu, self.radius()))
    off, r = z - BANDWIDTH * mu, BANDWIDTH * r
    density = _of_uniform if self.uniform else _of_gaussian
    return jnp.sum(jnp.log(density(off, r, self.width)), axis=-1)

  def log_prior(self, z: Float[Array, "... b d"]) -> Float[Array, "... b"]:
    """-inf outside of a uniform prior's support."""
    if self.uniform:
      inside = jnp.all(jnp.abs(z) <= self.width / 2, axis=-1)
      height = -z.shape[-1] * jnp.log(self.width)
      return jnp.where(inside, height, -jnp.inf)
    return base.normal_log_prob(z, 0.0, 2 * jnp.log(self.width))

  def components(self) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Moments of the draws: b mu, and b^2 r^2 / 5 plus the prior's variance."""
    weights, _, var = super().components()
    mean = self.mean()[:, None]
    return weights, mean, BANDWIDTH**2 * var + self._noise_var()

  def kl_divergence(
    self, z: Float[Array, "s b d"], w: Float[Array, "s b"]
  ) -> Float[Array, " b"]:
    """Estimated from draws; infinite with a uniform prior."""
    return base.kl_by_draws(self, z, w)


def _of_uniform(off: jax.Array, r: jax.Array, width: float) -> jax.Array:
  def cdf(end):
    t = jnp.clip((off + end) / r, -1, 1)
    return 0.5 + 0.75 * t - 0.25 * t**3

  return (cdf(width / 2) - cdf(-width / 2)) / width


def _of_gaussian(off: jax.Array, r: jax.Array, width: float) -> jax.Array:
  """3 / (4 r) E[1 - (s / r)^2; |s| < r], s ~ N(off, width^2)."""
  low, high = (-r - off) / width, (r - off) / width
  pdf_low, pdf_high = (jax.scipy.stats.norm.pdf(t) for t in (low, high))
  # Computed in the tail that is smaller, to avoid cancellation.
  mass = jnp.where(
    off > 0,
    jax.scipy.special.ndtr(high) - jax.scipy.special.ndtr(low),
    jax.scipy.special.ndtr(-low) - jax.scipy.special.ndtr(-high),
  )
  square = jnp.square(off) * mass
  square += 2 * off * width * (pdf_low - pdf_high)
  square += width**2 * (mass + low * pdf_low - high * pdf_high)
  inside = mass - square / jnp.square(r)
  return 0.75 / r * jnp.maximum(inside, jnp.finfo(off.dtype).eps)


def smoothing(key, shape, width, uniform, dtype, eps=None) -> jax.Array:
  """Draws from the prior of `EVAEPosterior`."""
  if eps is None:
    draw = jax.random.uniform if uniform else jax.random.normal
    eps = draw(key, shape, dtype)
  return width * (eps - 0.5) if uniform else width * eps


class EpanechnikovHead(base.Head):
  """Linear maps of the features to mu and logvar [b, d].

  The radius is sqrt(5) exp(logvar / 2), so that `logvar` and its clamp mean
  what they mean for a Gaussian; the paper does not say how its r stays
  positive.

  Attributes:
    prior: "normal" for N(0, I); "uniform" or "gaussian", of `width`, for the
      EVAE.
    width: B of the paper, 0.1 in its headline runs.
  """

  family: ClassVar[type] = Epanechnikov

  prior: str = "normal"
  width: float = 0.1

  def __post_init__(self):
    super().__post_init__()
    check_choice("posterior.epanechnikov.prior", self.prior, PRIORS)
    if not self.width > 0:
      raise UserError(f"posterior.epanechnikov.width={self.width} must be > 0.")

  @property
  def posterior_type(self) -> type[base.Posterior]:
    return Epanechnikov if self.prior == "normal" else EVAEPosterior

  @nn.compact
  def __call__(self, features: Float[Array, "b ... n"]) -> Epanechnikov:
    mu, logvar = base.location_and_scale(self, features)
    if self.prior == "normal":
      return Epanechnikov(mu, logvar)
    return EVAEPosterior(mu, logvar, self.width, self.prior == "uniform")

  def prior_draws(
    self, key: jax.Array, n: int, temperature: float = 1.0
  ) -> jax.Array:
    """Draws z [n, d] from N(0, I), or from the prior of width B."""
    if self.prior == "normal":
      return super().prior_draws(key, n, temperature)
    return temperature * smoothing(
      key,
      (n, self.latent),
      self.width,
      self.prior == "uniform",
      self.param_dtype,
    )

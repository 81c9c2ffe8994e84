"""Posteriors that only models of several modalities need."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from gamix_jax.posterior import Posterior, base
from gamix_jax.posterior.mixture import Mixture

# Instead of -inf for components that do not exist: exp of it is exactly 0, and
# it has no NaN in its gradient.
EXCLUDED = -1e9


def _of_components(
  mu: Float[Array, "b k d"],
  logvar: Float[Array, "b k d"],
  which: Int[Array, "n b m"],
  eps: Float[Array, "n b m d"],
) -> Float[Array, "n b m d"]:
  """Draws from the components `which` of N(mu, diag e^logvar)."""

  def chosen(leaf):
    return jnp.take_along_axis(leaf[None], which[..., None], axis=2)

  return chosen(mu) + jnp.exp(chosen(logvar) / 2) * eps


@struct.dataclass
class RandomComponent(Mixture):
  """A mixture with known weights, from which each draw takes one component.

  `Mixture` draws from every component, so that learned weights have a
  gradient. Here the weights are constants, and a draw costs one decoding
  however many components there are.
  """

  def noise_shape(self, n: int) -> tuple[int, ...]:
    b, _, d = self.mu.shape
    return (n, b, d)

  def sample(
    self,
    key: jax.Array,
    n: int,
    eps: jax.Array | None = None,
    step: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    del step
    choose, noise = jax.random.split(key)
    if eps is None:
      eps = jax.random.normal(noise, self.noise_shape(n), self.mu.dtype)
    b = len(self.mu)
    which = jax.random.categorical(choose, self.logits, shape=(n, b))
    z = _of_components(self.mu, self.logvar, which[..., None], eps[:, :, None])
    return z[:, :, 0], jnp.full((n, b), 1 / n, z.dtype)

  def stratified(self) -> Mixture:
    return Mixture(self.logits, self.mu, self.logvar)


@struct.dataclass
class Separate(Posterior):
  """Every modality has latents of its own: z = (z_1, ..., z_m), d = m l.

      q(z_i | x) = N(z_i; mu_i, diag sigma_i^2)    if modality i is observed
      q(z_i | x) = 1/|S| sum_{j in S} q(z_j | x)   if it is missing

  S are the observed modalities. The second line is the prior of MMVM
  (arXiv:2403.05300) given what is observed. If nothing is, it is N(0, I).

  Densities and the KL to N(0, I) are of the latents of observed modalities:
  those of the others integrate to 1.

  Attributes:
    mu: [b, m, l].
    logvar: ln sigma^2, [b, m, l].
    mask: 1 where a modality is observed, [b, m].
  """

  closed_form_kl: ClassVar[bool] = True
  separate: ClassVar[bool] = True

  mu: Float[Array, "b m l"]
  logvar: Float[Array, "b m l"]
  mask: Float[Array, "b m"]

  @property
  def latent(self) -> int:
    """l, the number of latents of each modality."""
    return self.mu.shape[-1]

  def split(self, z: Float[Array, "... b d"]) -> Float[Array, "... b m l"]:
    """Separates the latents of the modalities."""
    return z.reshape(*z.shape[:-1], -1, self.latent)

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
    choose, noise = jax.random.split(key)
    if eps is None:
      eps = jax.random.normal(noise, self.noise_shape(n), self.mu.dtype)
    b, m, _ = self.mu.shape
    # For missing modalities the latents of one that is observed, at random.
    logits = jnp.where(self.mask > 0, 0.0, EXCLUDED)
    other = jax.random.categorical(choose, logits[:, None], shape=(n, b, m))
    which = jnp.where(self.mask[None] > 0, jnp.arange(m), other)
    mu, logvar = self._or_prior(self.mu), self._or_prior(self.logvar)
    z = _of_components(mu, logvar, which, eps)
    return z.reshape(n, b, -1), jnp.full((n, b), 1 / n, z.dtype)

  def _or_prior(self, leaf: jax.Array) -> jax.Array:
    """mu or logvar, of N(0, I) where no modality is observed."""
    observed = jnp.any(self.mask > 0, axis=1)
    return jnp.where(observed[:, None, None], leaf, 0)

  def mean(self) -> Float[Array, "b d"]:
    mean, _ = self.moments()
    return mean.reshape(mean.shape[0], -1)

  def components(self) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One component with the mean and the variance of q(z | x)."""
    mean, var = self.moments()
    weights = jnp.ones((mean.shape[0], 1), mean.dtype)
    return weights, *(v.reshape(v.shape[0], 1, -1) for v in (mean, var))

  def moments(self) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of every modality's latents, [b, m, l] each."""
    mu, var = self._or_prior(self.mu), jnp.exp(self._or_prior(self.logvar))
    mask = self.mask[..., None]
    count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    # Of the mixture of the observed modalities' posteriors.
    mean = jnp.sum(mask * mu, axis=1, keepdims=True) / count
    second = jnp.sum(mask * (var + jnp.square(mu)), axis=1, keepdims=True)
    spread = second / count - jnp.square(mean)
    nothing = jnp.sum(mask, axis=1, keepdims=True) == 0
    spread = jnp.where(nothing, 1.0, spread)
    return jnp.where(mask > 0, mu, mean), jnp.where(mask > 0, var, spread)

  def log_prob(self, z: Float[Array, "... b d"]) -> Float[Array, "... b"]:
    return self._observed(
      base.normal_log_prob(self.split(z), self.mu, self.logvar)
    )

  def log_prior(self, z: Float[Array, "... b d"]) -> Float[Array, "... b"]:
    return self._observed(base.log_prior(self.split(z)))

  def _observed(self, each: Float[Array, "... b m"]) -> Float[Array, "... b"]:
    """The sum over observed modalities."""
    mask = base.expand_leading(self.mask, each.ndim)
    return jnp.sum(mask * each, axis=-1)

  def kl_divergence(
    self, z: Float[Array, "s b d"], w: Float[Array, "s b"]
  ) -> Float[Array, " b"]:
    """sum_i KL(q(z_i | x) || N(0, I)) over observed modalities."""
    del z, w
    return self._observed(base.normal_kl(self.mu, self.logvar))


@struct.dataclass
class WithPrivate(Posterior):
  """Shared latents, and private ones of each modality: z = (shared, private).

  The private latents of a missing modality have their prior, N(0, I).

  Attributes:
    shared: the posterior of the shared latents.
    mu: [b, m, p], of the private latents.
    logvar: ln sigma^2, [b, m, p]; mu and logvar are 0 where a modality is
      missing.
  """

  has_components: ClassVar[bool] = True

  shared: Posterior
  mu: Float[Array, "b m p"]
  logvar: Float[Array, "b m p"]

  def split(self, z: Float[Array, "... b d"]) -> tuple[jax.Array, jax.Array]:
    """Returns shared [..., b, l] and private [..., b, m, p] latents."""
    m, p = self.mu.shape[1:]
    own = z[..., -m * p :]
    return z[..., : -m * p], own.reshape(*own.shape[:-1], m, p)

  def stratified(self) -> Posterior:
    return self.replace(shared=self.shared.stratified())

  def noise_shape(self, n: int) -> tuple[int, ...]:
    """Of the shared latents."""
    return self.shared.noise_shape(n)

  def sample(
    self,
    key: jax.Array,
    n: int,
    eps: jax.Array | None = None,
    step: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """As `Posterior.sample`; `eps` is the noise of the shared latents."""
    of_shared, of_private = jax.random.split(key)
    z, w = self.shared.sample(of_shared, n, eps, step)
    noise = jax.random.normal(
      of_private, (len(z), *self.mu.shape), self.mu.dtype
    )
    own = self.mu[None] + jnp.exp(self.logvar / 2)[None] * noise
    return jnp.concatenate([z, own.reshape(*z.shape[:2], -1)], axis=-1), w

  def mean(self) -> Float[Array, "b d"]:
    own = self.mu.reshape(self.mu.shape[0], -1)
    return jnp.concatenate([self.shared.mean(), own], axis=-1)

  def log_prob(self, z: Float[Array, "... b d"]) -> Float[Array, "... b"]:
    shared, own = self.split(z)
    each = base.normal_log_prob(own, self.mu, self.logvar)
    return self.shared.log_prob(shared) + jnp.sum(each, axis=-1)

  def components(self) -> tuple[jax.Array, jax.Array, jax.Array]:
    weights, mu, var = self.shared.components()
    b, k, _ = mu.shape

    def joined(shared, own):
      own = jnp.broadcast_to(own.reshape(b, 1, -1), (b, k, own[0].size))
      return jnp.concatenate([shared, own], axis=-1)

    return weights, joined(mu, self.mu), joined(var, jnp.exp(self.logvar))

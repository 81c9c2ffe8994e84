"""Encoder, posterior head, decoder and prior in one."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from gamix_jax.posterior import Mixture, Posterior, prior


class VAE(nn.Module):
  """Encoder, posterior head and decoder; a prior where it is learned."""

  encoder: nn.Module
  posterior: nn.Module  # features [b, n] -> Posterior; `prior_draws`
  decoder: nn.Module
  prior: nn.Module | None = None  # of posterior/prior.py; None: the head's own

  def encode(self, x: jax.Array, train: bool = False) -> Posterior:
    """Images [b, h, w, c] in [-1, 1] -> q(z | x)."""
    h = self.encoder(x, train)
    return self.posterior(h.reshape(h.shape[0], -1))

  def decode(self, z: jax.Array, train: bool = False) -> jax.Array:
    """Latents [..., d] -> x_hat [..., h, w, c], unbounded.

    The batch axis, the one before the last, stays outermost inside, so that a
    batch spread over devices stays where it is.
    """
    lead = z.shape[:-1]
    z = jnp.moveaxis(z.reshape(-1, *z.shape[-2:]), 1, 0)  # [b, s, d]
    b, s, d = z.shape
    x_hat = self.decoder(z.reshape(b * s, d), train)
    x_hat = jnp.moveaxis(x_hat.reshape(b, s, *x_hat.shape[1:]), 1, 0)
    return x_hat.reshape(*lead, *x_hat.shape[2:])

  def variance(self, var: jax.Array) -> jax.Array:
    """Var x_hat [b, h, w, c] of independent latents of variance [b, d].

    Of a linear decoder alone.
    """
    return self.decoder(var, square=True)

  def learned_prior(self) -> Mixture:
    """Of a model that has one; pseudo-inputs meet stored statistics."""
    if isinstance(self.prior, prior.MixturePrior):
      return self.prior()
    return prior.vamp_mixture(self.encode(self.prior()))

  def with_prior(self, q: Posterior) -> Posterior:
    """q beside the prior that this model has."""
    if self.prior is None:
      return q
    return prior.WithPrior(q, self.learned_prior())

  def prior_draws(
    self, key: jax.Array, n: int, temperature: float = 1.0
  ) -> jax.Array:
    """z [n, d] from the prior p(z)."""
    if self.prior is not None:
      return prior.draw(self.learned_prior(), key, n, temperature)
    return self.posterior.prior_draws(key, n, temperature)

  def __call__(
    self,
    x: jax.Array,
    key: jax.Array,
    draws: int = 1,
    train: bool = False,
    eps: jax.Array | None = None,
    step: jax.Array | None = None,
  ) -> tuple[Posterior, jax.Array, jax.Array, jax.Array]:
    """x [b, h, w, c] -> q, z [s, b, d], w [s, b], x_hat [s, b, h, w, c].

    With draws=0 the one z is q's mean.
    """
    q = self.with_prior(self.encode(x, train))
    if draws:
      z, w = q.sample(key, draws, eps, step)
    else:
      z = q.mean()[None]
      w = jnp.ones(z.shape[:2], z.dtype)
    return q, z, w, self.decode(z, train)

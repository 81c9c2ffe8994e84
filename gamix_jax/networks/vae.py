"""Encoder, posterior head, decoder and prior in one."""

from collections.abc import Mapping
from typing import Any

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float

from gamix_jax import occlusion
from gamix_jax.modality import IMAGE
from gamix_jax.networks.parts import Decoder, Encoder
from gamix_jax.posterior import Head, Mixture, Posterior, prior

Observations = Mapping[str, jax.Array]  # by modality


@struct.dataclass
class VAEOutput:
  """The result of one forward pass of a VAE, from which objectives compute.

  Attributes:
    x: observations by modality, [b, ...], floats; images in [-1, 1]. With the
      entry "hidden", q is of what is not hidden.
    q: their posterior.
    z: draws [s, b, d], with weights w [s, b] that sum to 1 over s.
    w: see z.
    x_hat: the decoded draws, by modality, [s, b, ...].
    x_hat_var: the variance of x_hat over z, by modality, [b, ...], if z is the
      posterior's mean (num_samples=0).
    key: a typed PRNG key of the step, for objectives that draw: of the prior,
      or directions.
    params: the VAE's parameters, for objectives that penalise them.
    code_logits: what an objective's discriminator of codes says of draws of
      the prior, [b], and of z, [s, b].
  """

  x: Observations
  q: Posterior
  z: Float[Array, "s b d"]
  w: Float[Array, "s b"]
  x_hat: Observations
  x_hat_var: Observations | None = None
  key: jax.Array | None = None
  params: Any = None
  code_logits: tuple[jax.Array, jax.Array] | None = None


class VAE(nn.Module):
  """The VAE of one modality.

  Attributes:
    encoder: observations -> features.
    posterior: features -> q(z | x); also draws from its own prior.
    decoder: latents -> the likelihood's parameters.
    prior: a learned prior of posterior/prior.py; None for the head's own.
    modality: the key of the observations in a batch.
  """

  encoder: Encoder
  posterior: Head
  decoder: Decoder
  prior: nn.Module | None = None
  modality: str = IMAGE

  @property
  def posterior_type(self) -> type[Posterior]:
    """The class of q(z | x), without a learned prior."""
    return self.posterior.posterior_type

  @property
  def latent(self) -> int:
    """d, the size of z."""
    return self.posterior.latent

  def encode(self, x: Observations, train: bool = False) -> Posterior:
    """Observations [b, ...] -> q(z | x); with "hidden" of the other pixels."""
    return self._encode(occlusion.seen(x, self.modality), train)

  def _encode(self, x: jax.Array, train: bool = False) -> Posterior:
    h = self.encoder(x, train)
    if self.encoder.latent_shape is None:
      h = h.reshape(h.shape[0], -1)
    return self.posterior(h)

  def decode(
    self, z: Float[Array, "... b d"], train: bool = False
  ) -> dict[str, jax.Array]:
    """Latents -> x_hat [..., b, h, w, c], unbounded, by modality.

    Inside, the batch axis is outermost, so that a batch sharded over devices
    is not moved.
    """
    *lead, b, _ = z.shape
    x_hat = self.decoder(einops.rearrange(z, "... b d -> (b ...) d"), train)
    x_hat = einops.rearrange(x_hat, "(b s) ... -> s b ...", b=b)
    return {self.modality: x_hat.reshape(*lead, b, *x_hat.shape[2:])}

  def learned_prior(self) -> Mixture:
    """The learned prior; pseudo-inputs are encoded with stored statistics."""
    if isinstance(self.prior, prior.MixturePrior):
      return self.prior()
    return prior.vamp_mixture(self._encode(self.prior()))

  def with_prior(self, q: Posterior) -> Posterior:
    """Returns q with the model's own prior attached."""
    if self.prior is None:
      return q
    return prior.WithPrior(q, self.learned_prior())

  def prior_draws(
    self, key: jax.Array, n: int, temperature: float = 1.0
  ) -> Float[Array, "n d"]:
    """Draws z from the prior p(z)."""
    if self.prior is not None:
      return prior.draw(self.learned_prior(), key, n, temperature)
    return self.posterior.prior_draws(key, n, temperature)

  def __call__(
    self,
    x: Observations,
    key: jax.Array,
    num_samples: int = 1,
    train: bool = False,
    eps: jax.Array | None = None,
    step: jax.Array | None = None,
  ) -> VAEOutput:
    """Encodes, samples and decodes.

    Args:
      x: observations by modality, [b, ...].
      key: PRNG key for the draws.
      num_samples: draws of z per observation (and component). 0: z is q's
        mean, and x_hat's variance is computed; for a linear decoder only.
      train: whether batch statistics are those of this batch.
      eps: noise in place of random draws, see `Posterior.sample`.
      step: training step, see `Posterior.sample`.
    """
    q = self.with_prior(self.encode(x, train))
    if num_samples:
      z, w = q.sample(key, num_samples, eps, step)
      return VAEOutput(x, q, z, w, self.decode(z, train))
    z = q.mean()[None]
    w = jnp.ones(z.shape[:2], z.dtype)
    x_hat = self.decode(z, train)
    _, _, var = q.components()
    # Latents are independent, so their variances add up with squared weights.
    x_hat_var = {self.modality: self.decoder(var[:, 0], square=True)}
    return VAEOutput(x, q, z, w, x_hat, x_hat_var)

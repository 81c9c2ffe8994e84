"""A VAE of several modalities, any of which may be missing."""

from collections.abc import Mapping, Sequence
from typing import Any

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float

from gamix_jax.modality import MASK
from gamix_jax.multimodal.fusion import Fusion, PrivateHead
from gamix_jax.multimodal.posteriors import WithPrivate
from gamix_jax.multimodal.subsets import SUBSETS, Mask
from gamix_jax.networks.parts import Decoder, Encoder
from gamix_jax.networks.vae import Observations, VAEOutput
from gamix_jax.posterior import Mixture, Posterior, prior


@struct.dataclass
class MultimodalOutput(VAEOutput):
  """Of all observed modalities, and of a random subset S of them.

  Attributes:
    subset: mask of S, [b, m]; None if the objective does not need subsets, and
      then all that follows.
    q_subset: q(z | x_S).
    z_subset: draws of it, [s, b, d].
    w_subset: their weights, [s, b].
    x_hat_subset: decoded, by modality, [s, b, ...].
  """

  subset: Mask | None = None
  q_subset: Posterior | None = None
  z_subset: Float[Array, "s b d"] | None = None
  w_subset: Float[Array, "s b"] | None = None
  x_hat_subset: Observations | None = None


class MultimodalVAE(nn.Module):
  """Encoders and decoders for each modality, and a fusion between them.

  Observations have the entry "mask" [b, m] besides the modalities.

  Attributes:
    encoders: observations -> features, by modality.
    fusion: features and mask -> posterior.
    decoders: latents -> the likelihood's parameters, by modality.
    private: the posteriors of private latents; None if all are shared.
    subsets: the law of random subsets, a name in SUBSETS; "" if the objective
      does not need them.
    prior: a learned prior; None for N(0, I).
  """

  encoders: Mapping[str, Encoder]
  fusion: Fusion
  decoders: Mapping[str, Decoder]
  private: PrivateHead | None = None
  subsets: str = ""
  prior: nn.Module | None = None

  @property
  def names(self) -> tuple[str, ...]:
    """The modalities, in the order of the mask."""
    return tuple(self.fusion.names)

  @property
  def posterior_type(self) -> type[Posterior]:
    """The class of the posterior of all latents, without a learned prior."""
    if self.private is not None:
      return WithPrivate
    return self.fusion.family(self.fusion.head)

  @property
  def latent(self) -> int:
    """d, the size of z: all that is drawn for one observation."""
    latent, m = self.fusion.head.latent, len(self.names)
    if self.posterior_type.separate:
      return latent * m
    return latent + (0 if self.private is None else self.private.latent * m)

  def trained_sizes(self, observed: Sequence[int]) -> tuple[int, ...]:
    """How many modalities can be given to the encoder after a training.

    Args:
      observed: how many modalities the training observations had; empty if
        that is unknown.

    Returns:
      1, 2, ..., m, or the sizes that training has seen, if the posterior of
      others is arbitrary.
    """
    if self.fusion.any_subset or not observed:
      return tuple(range(1, len(self.names) + 1))
    if self.subsets not in ("", "all"):
      return tuple(range(1, max(observed) + 1))
    return tuple(sorted(observed))

  def _features(self, x: Observations, train: bool) -> dict[str, jax.Array]:
    mask = x[MASK]
    features = {}
    for i, name in enumerate(self.names):
      there = mask[:, i] > 0
      # What a missing modality contains must not matter, not even if it is NaN.
      value = jnp.where(
        there.reshape(-1, *(1,) * (x[name].ndim - 1)), x[name], 0
      )
      h = self.encoders[name](value, train)
      features[name] = h.reshape(h.shape[0], -1)
    return features

  def _embed(self, x: Observations, train: bool) -> Any:
    """All of the encoding that does not depend on the subset."""
    features = self._features(x, train)
    own = None if self.private is None else self.private(features)
    return self.fusion.embed(features), own

  def _posterior(self, embedded: Any, mask: Mask) -> Posterior:
    of_fusion, own = embedded
    q = self.fusion.combine(of_fusion, mask)
    if own is None:
      return q
    there = mask[..., None] > 0
    return WithPrivate(q, *(jnp.where(there, v, 0) for v in own))

  def encode(self, x: Observations, train: bool = False) -> Posterior:
    """Observations with a mask -> q(z | what is observed)."""
    return self._posterior(self._embed(x, train), x[MASK])

  def decode(
    self, z: Float[Array, "... b d"], train: bool = False
  ) -> dict[str, jax.Array]:
    """Latents -> x_hat [..., b, ...] of every modality, unbounded."""
    *lead, b, _ = z.shape
    rows = einops.rearrange(z, "... b d -> (b ...) d")
    out = {}
    for i, name in enumerate(self.names):
      x_hat = self.decoders[name](self._latents_of(rows, i), train)
      x_hat = einops.rearrange(x_hat, "(b s) ... -> s b ...", b=b)
      out[name] = x_hat.reshape(*lead, b, *x_hat.shape[2:])
    return out

  def _latents_of(self, z: Float[Array, "n d"], i: int) -> jax.Array:
    """The latents that modality i is decoded from."""
    latent = self.fusion.head.latent
    if self.posterior_type.separate:
      return z[:, i * latent : (i + 1) * latent]
    if self.private is None:
      return z
    begin = latent + i * self.private.latent
    own = z[:, begin : begin + self.private.latent]
    return jnp.concatenate([z[:, :latent], own], axis=-1)

  def learned_prior(self) -> Mixture:
    """The learned prior."""
    return self.prior()

  def with_prior(self, q: Posterior) -> Posterior:
    """Returns q with the model's own prior attached."""
    if self.prior is None:
      return q
    return prior.WithPrior(q, self.learned_prior())

  def prior_draws(
    self, key: jax.Array, n: int, temperature: float = 1.0
  ) -> Float[Array, "n d"]:
    """Draws z from the prior p(z).

    With separate latents, N(0, I) is drawn from once, for all modalities:
    objectives that align the modalities' posteriors make such draws coherent.
    """
    if self.prior is not None:
      return prior.draw(self.learned_prior(), key, n, temperature)
    kind = self.fusion.head.param_dtype
    if self.posterior_type.separate:
      shape = (n, self.fusion.head.latent)
      z = temperature * jax.random.normal(key, shape, kind)
      return jnp.tile(z, (1, len(self.names)))
    return temperature * jax.random.normal(key, (n, self.latent), kind)

  def __call__(
    self,
    x: Observations,
    key: jax.Array,
    num_samples: int = 1,
    train: bool = False,
    eps: jax.Array | None = None,
    step: jax.Array | None = None,
  ) -> MultimodalOutput:
    """Encodes, samples and decodes.

    Args:
      x: observations by modality, [b, ...], and "mask" [b, m].
      key: PRNG key for the draws and the subsets.
      num_samples: draws of z per observation (and component).
      train: whether the networks are trained.
      eps: noise in place of random draws, see `Posterior.sample`.
      step: training step, see `Posterior.sample`.
    """
    embedded = self._embed(x, train)
    q = self.with_prior(self._posterior(embedded, x[MASK]))
    z, w = q.sample(key, num_samples, eps, step)
    whole = (x, q, z, w, self.decode(z, train))
    if not self.subsets:
      return MultimodalOutput(*whole)
    which, noise = jax.random.split(jax.random.fold_in(key, 1))
    subset = SUBSETS[self.subsets](which, x[MASK])
    q_subset = self.with_prior(self._posterior(embedded, subset))
    z_subset, w_subset = q_subset.sample(noise, num_samples, None, step)
    return MultimodalOutput(
      *whole,
      subset=subset,
      q_subset=q_subset,
      z_subset=z_subset,
      w_subset=w_subset,
      x_hat_subset=self.decode(z_subset, train),
    )

"""Fully connected networks: an encoder, a decoder, a discriminator of codes.

Encoder and decoder are the cheapest for small images.

Each weight is used once per image; a convolution uses it at every pixel. They
do not use that pixels are neighbours, and the number of weights grows with the
number of pixels.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from gamix_jax.config import ConfigDict
from gamix_jax.layers import Dense
from gamix_jax.networks.parts import (
  Decoder,
  Encoder,
  check_features,
)
from gamix_jax.posterior.base import promote_f32


class HiddenLayers:
  """The hidden layers of a fully connected encoder or decoder."""

  @classmethod
  def preset_features(
    cls, width: int, hidden: int, halvings: int
  ) -> tuple[int, ...]:
    del width, halvings
    return hidden, hidden

  def hidden(self, x: jax.Array, train: bool) -> jax.Array:
    """Applies them to [b, n]."""
    for i, width in enumerate(self.features):
      layer = self.dense(width, f"dense{i}", use_bias=self.bias_before_norm)
      x = nn.relu(self.normed(f"norm{i}", layer(x), train))
    return x


class MLPEncoder(HiddenLayers, Encoder):
  """Images [b, h, w, c] -> features [b, features[-1]].

  Attributes:
    features: width of each hidden layer, each followed by a normalisation and
      a ReLU.
    input_norm: see `NetworkModule.normed_input`.
  """

  keys = ("encoder_features", "input_norm", "norm")

  features: Sequence[int] = ()
  input_norm: str = "layer"

  @classmethod
  def from_config(
    cls, model: ConfigDict, shape: Sequence[int], **kind: Any
  ) -> Self:
    del shape
    return cls(
      features=check_features(model, "encoder_features"),
      input_norm=model.input_norm,
      norm=model.norm,
      **kind,
    )

  @classmethod
  def first_layer_size(cls, model: ConfigDict, shape: Sequence[int]) -> int:
    return max(
      math.prod(shape),
      check_features(model, "encoder_features")[0],
    )

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = self.normed_input(self.input_norm, x, self.bias_before_norm)
    return self.hidden(x.reshape(x.shape[0], -1), train)


class MLPDecoder(HiddenLayers, Decoder):
  """Latents [b, d] -> images [b, h, w, c], unbounded, float32 or more.

  Attributes:
    features: width of each hidden layer, see `MLPEncoder`.
    image_shape: (h, w, c).
  """

  keys = ("decoder_features", "norm")

  features: Sequence[int] = ()
  image_shape: tuple[int, int, int] = (1, 1, 1)

  @classmethod
  def from_config(
    cls, model: ConfigDict, shape: Sequence[int], **kind: Any
  ) -> Self:
    return cls(
      features=check_features(model, "decoder_features"),
      image_shape=tuple(shape),
      norm=model.norm,
      **kind,
    )

  @nn.compact
  def __call__(
    self, z: Float[Array, "b d"], train: bool
  ) -> Float[Array, "b h w c"]:
    x = self.hidden(z, train)
    x = self.dense(math.prod(self.image_shape), "out")(x)
    return promote_f32(x).reshape(-1, *self.image_shape)


class CodeDiscriminator(nn.Module):
  """Latents [..., d] -> logits [...]: positive for draws of the prior.

  Attributes:
    width: of the hidden layers, each followed by a ReLU.
    layers: how many there are.
  """

  width: int
  layers: int
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, z: Float[Array, "... d"]) -> Float[Array, "..."]:
    dense = partial(
      Dense,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      kernel_init=nn.initializers.lecun_normal(),
    )
    for i in range(self.layers):
      z = nn.relu(dense(self.width, name=f"dense{i}")(z))
    return promote_f32(dense(1, name="out")(z))[..., 0]

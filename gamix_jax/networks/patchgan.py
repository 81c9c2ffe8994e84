"""The PatchGAN discriminator."""

from collections.abc import Sequence

import jax
import numpy as np
from flax import linen as nn

from gamix_jax.networks.parts import NetworkModule
from gamix_jax.posterior.base import promote_f32

LEAKY_SLOPE = float(np.float32(0.3))  # Keras holds it in float32


class PatchDiscriminator(NetworkModule):
  """PatchGAN (Isola et al., arXiv:1611.07004): images -> logits [b, p, q, 1].

  A normalisation stands behind the last convolution too, as in the reference;
  with `group` and `none` it does not, for it would take the logits' level out.
  """

  features: Sequence[int] = ()
  strides: Sequence[int] = ()
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    last = len(self.features) - 1
    for i, (c, s) in enumerate(zip(self.features, self.strides, strict=True)):
      x = Layer(
        features=c,
        stride=s,
        last=i == last,
        dropout=self.dropout,
        name=f"layer{i}",
        **self.of_same_kind(),
      )(x, train)
    return promote_f32(x)


class Layer(NetworkModule):
  """Of the discriminator: conv 3x3, norm, leaky ReLU (not last), dropout."""

  features: int = 0
  stride: int = 1
  last: bool = False
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = self.conv(
      self.features,
      3,
      "conv",
      strides=self.stride,
      padding="SAME",
      use_bias=self.bias_before_norm,
    )(x)
    if not self.last or self.norm in ("affine", "batch"):
      x = self.normed("bn", x, train)
    if not self.last:
      x = nn.leaky_relu(x, LEAKY_SLOPE)
    return nn.Dropout(self.dropout, deterministic=not train)(x)

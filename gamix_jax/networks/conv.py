"""A plain convolutional encoder and decoder: far cheaper than the ResNets.

Strided 3x3 convolutions down, transposed ones up, a single one for each scale.
"""

import jax
from flax import linen as nn

from gamix_jax.networks.parts import SpatialDecoder, SpatialEncoder


class ConvEncoder(SpatialEncoder):
  """Images [b, h, w, c] -> features [b, h', w', features[-1]].

  h' = h / (patch 2^n) for n feature counts, the channels behind each halving,
  which a normalisation and a ReLU follow.
  """

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = self.patches(x)
    for i, width in enumerate(self.features):
      x = self.conv(
        width, 3, f"conv{i}", strides=2, use_bias=self.bias_before_norm
      )(x)
      x = nn.relu(self.normed(f"norm{i}", x, train))
    return x


class ConvDecoder(SpatialDecoder):
  """Latents [b, d] -> images [b, h, w, c], unbounded, float32 or more.

  The features are the channels behind each doubling; a normalisation and a
  ReLU come before each, and before the output convolution.
  """

  @nn.compact
  def __call__(self, z: jax.Array, train: bool) -> jax.Array:
    x = self.spread(z)
    for i, width in enumerate(self.features):
      x = nn.relu(self.normed(f"norm{i}", x, train))
      x = self.up(
        width,
        self.upsample_gain,
        f"conv{i}_transpose",
        use_bias=self.bias_before_norm,
      )(x)
    x = nn.relu(self.normed("norm_out", x, train))
    return self.image(x)

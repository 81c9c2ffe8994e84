"""A plain convolutional encoder and decoder, much cheaper than the ResNets.

One strided 3x3 convolution per halving, one transposed one per doubling.
"""

from collections.abc import Sequence

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from gamix_jax.config import ConfigDict
from gamix_jax.networks.parts import (
  ConvolutionalDecoder,
  ConvolutionalEncoder,
  check_features,
)


class ConvEncoder(ConvolutionalEncoder):
  """Images [b, h, w, c] -> features [b, h', w', features[-1]].

  h' = h / (patch 2^n) for n feature counts, the channels after each halving. A
  normalisation and a ReLU follow each.
  """

  @classmethod
  def preset_features(
    cls, width: int, hidden: int, halvings: int
  ) -> tuple[int, ...]:
    del hidden
    return preset_features(width, halvings)

  @classmethod
  def first_layer_size(cls, model: ConfigDict, shape: Sequence[int]) -> int:
    h, w, _ = shape
    width = check_features(model, "encoder_features")[0]
    return h * w // (2 * model.patch) ** 2 * width

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = self.patches(x)
    for i, width in enumerate(self.features):
      x = self.conv(
        width, 3, f"conv{i}", strides=2, use_bias=self.bias_before_norm
      )(x)
      x = nn.relu(self.normed(f"norm{i}", x, train))
    return x


class ConvDecoder(ConvolutionalDecoder):
  """Latents [b, d] -> images [b, h, w, c], unbounded, float32 or more.

  The features are the channels after each doubling. A normalisation and a ReLU
  precede each, and the output convolution.
  """

  @classmethod
  def preset_features(
    cls, width: int, hidden: int, halvings: int
  ) -> tuple[int, ...]:
    del hidden
    return preset_features(width, halvings)[::-1]

  @nn.compact
  def __call__(
    self, z: Float[Array, "b d"], train: bool
  ) -> Float[Array, "b h w c"]:
    x = self.to_grid(z)
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


def preset_features(width: int, halvings: int) -> tuple[int, ...]:
  """The widths of an encoder in a preset, from the image to the code.

  The first scale costs most, so it is narrow, unless it is the only one.
  """
  if halvings < 2:
    return (2 * width,)
  return (width, *[2 * width] * (halvings - 1))

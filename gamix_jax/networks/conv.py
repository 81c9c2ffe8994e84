"""A plain convolutional encoder and decoder: far cheaper than the ResNets.

Strided 3x3 convolutions down, transposed ones up, a single one for each scale.
"""

from collections.abc import Sequence

import jax
from flax import linen as nn

from gamix_jax.config import ConfigDict
from gamix_jax.networks.parts import ConvolutionalDecoder, ConvolutionalEncoder


class ConvEncoder(ConvolutionalEncoder):
  """Images [b, h, w, c] -> features [b, h', w', features[-1]].

  h' = h / (patch 2^n) for n feature counts, the channels behind each halving,
  which a normalisation and a ReLU follow.
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
    return h * w // (2 * model.patch) ** 2 * model.encoder_features[0]

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

  The features are the channels behind each doubling; a normalisation and a
  ReLU come before each, and before the output convolution.
  """

  @classmethod
  def preset_features(
    cls, width: int, hidden: int, halvings: int
  ) -> tuple[int, ...]:
    del hidden
    return preset_features(width, halvings)[::-1]

  @nn.compact
  def __call__(self, z: jax.Array, train: bool) -> jax.Array:
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
  """From the image on: the widths of an encoder in a preset.

  The scale next to the patches costs most, so it is narrow, unless it is all.
  """
  if halvings < 2:
    return (2 * width,)
  return (width, *[2 * width] * (halvings - 1))

"""A plain convolutional encoder and decoder: far cheaper than the ResNets.

Strided 3x3 convolutions down, transposed ones up, a single one for each scale.
"""

import math
from collections.abc import Sequence

import jax
from flax import linen as nn

from gamix_jax.networks.parts import Part, space_to_depth


class ConvEncoder(Part):
  """Images [b, h, w, c] -> features [b, h', w', features[-1]].

  h' = h / (patch 2^n) for n feature counts.

  Attributes:
    features: channels behind each halving, each followed by a normalisation
      and a ReLU.
    input_norm: see `Part.normed_input`.
    patch: side of the squares of pixels that are seen as channels.
  """

  features: Sequence[int] = ()
  input_norm: str = "layer"
  patch: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = self.normed_input(self.input_norm, x)
    if self.patch > 1:
      x = space_to_depth(x, self.patch)
    for i, width in enumerate(self.features):
      x = self.conv(
        width, 3, f"conv{i}", strides=2, use_bias=self.bias_before_norm
      )(x)
      x = nn.relu(self.normed(f"norm{i}", x, train))
    return x


class ConvDecoder(Part):
  """Latents [b, d] -> images [b, h, w, c], unbounded, float32 or more.

  Attributes:
    features: channels behind each doubling; a normalisation and a ReLU come
      before each, and before the output convolution.
    start: shape (h', w', c') that latents are mapped to.
    channels: of the images.
    patch: see `ConvEncoder`.
    upsample_gain: of the initial weights of the transposed convolutions.
  """

  features: Sequence[int] = ()
  start: tuple[int, int, int] = (1, 1, 1)
  channels: int = 3
  patch: int = 1
  upsample_gain: float = 1.0

  @nn.compact
  def __call__(self, z: jax.Array, train: bool) -> jax.Array:
    x = self.dense(math.prod(self.start), "dense")(z)
    x = x.reshape(-1, *self.start)
    for i, width in enumerate(self.features):
      x = nn.relu(self.normed(f"norm{i}", x, train))
      x = self.up(
        width,
        self.upsample_gain,
        f"conv{i}_transpose",
        use_bias=self.bias_before_norm,
      )(x)
    x = nn.relu(self.normed("norm_out", x, train))
    return self.image(x, self.channels, self.patch)

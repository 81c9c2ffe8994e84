"""A fully connected encoder and decoder, the cheapest for small images.

Each weight is used once an image, where a convolution uses it at every pixel.
They know nothing of neighbouring pixels, and the number of weights grows with
the number of pixels.
"""

import math
from collections.abc import Sequence

import jax
from flax import linen as nn

from gamix_jax.networks.parts import NetworkModule
from gamix_jax.posterior.base import promote_f32


class MLPEncoder(NetworkModule):
  """Images [b, h, w, c] -> features [b, features[-1]].

  Attributes:
    features: width of each hidden layer, each followed by a normalisation and
      a ReLU.
    input_norm: see `NetworkModule.normed_input`.
  """

  features: Sequence[int] = ()
  input_norm: str = "layer"

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = self.normed_input(self.input_norm, x, self.bias_before_norm)
    return hidden(self, x.reshape(x.shape[0], -1), train)


class MLPDecoder(NetworkModule):
  """Latents [b, d] -> images [b, h, w, c], unbounded, float32 or more.

  Attributes:
    features: width of each hidden layer, see `MLPEncoder`.
    image_shape: (h, w, c).
  """

  features: Sequence[int] = ()
  image_shape: tuple[int, int, int] = (1, 1, 1)

  @nn.compact
  def __call__(self, z: jax.Array, train: bool) -> jax.Array:
    x = hidden(self, z, train)
    x = self.dense(math.prod(self.image_shape), "out")(x)
    return promote_f32(x).reshape(-1, *self.image_shape)


def hidden(part: NetworkModule, x: jax.Array, train: bool) -> jax.Array:
  """The hidden layers, inside an encoder or decoder with `features`."""
  for i, width in enumerate(part.features):
    layer = part.dense(width, f"dense{i}", use_bias=part.bias_before_norm)
    x = nn.relu(part.normed(f"norm{i}", layer(x), train))
  return x

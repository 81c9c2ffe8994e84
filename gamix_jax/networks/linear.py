"""A linear encoder and a linear decoder, without biases.

With a Poisson posterior a linear decoder makes the VAE amortised sparse coding
(Vafaii et al., arXiv:2405.14473): an image is a sum of dictionary elements,
each taken z_d times.
"""

import math
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import linen as nn

from gamix_jax.config import ConfigDict
from gamix_jax.layers import GLOROT
from gamix_jax.networks.parts import Decoder, Encoder
from gamix_jax.parallel import float32_sums
from gamix_jax.posterior.base import promote_f32


class LinearEncoder(Encoder):
  """Returns images [b, h, w, c] unchanged: the posterior's head is linear."""

  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    del train
    return x


class LinearDecoder(Decoder):
  """Latents [b, d] -> images [b, h, w, c], x_hat = Phi z, unbounded.

  Attributes:
    image_shape: (h, w, c).
  """

  image_shape: tuple[int, int, int] = (1, 1, 1)

  @classmethod
  def from_config(
    cls, model: ConfigDict, shape: Sequence[int], **kind: Any
  ) -> Self:
    del model
    return cls(image_shape=tuple(shape), **kind)

  @nn.compact
  def __call__(
    self, z: jax.Array, train: bool = False, square: bool = False
  ) -> jax.Array:
    """Returns Phi z, or with `square` Phi^2 z with elementwise squares.

    With independent latents of variance z, the latter is the images' variance.
    """
    del train
    shape = (z.shape[-1], math.prod(self.image_shape))
    phi = self.param("kernel", GLOROT, shape, self.param_dtype)
    if square:
      return (z @ jnp.square(phi)).reshape(-1, *self.image_shape)
    x_hat = float32_sums.product(z.astype(self.dtype), phi)
    return promote_f32(x_hat).reshape(-1, *self.image_shape)

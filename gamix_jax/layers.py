"""Dense and convolutional layers.

Parameters are in `param_dtype`, the computation is in `dtype`. Gradients to the
parameters are summed in `param_dtype`, see `parallel.float32_sums`; in all else
the layers are those of Flax.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from gamix_jax.cpu import convolutions
from gamix_jax.parallel import float32_sums

GLOROT = nn.initializers.glorot_uniform()
ZEROS = nn.initializers.zeros


class Dense(nn.Module):
  """x @ kernel + bias, over the last axis."""

  features: int
  use_bias: bool = True
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  kernel_init: nn.initializers.Initializer = GLOROT
  bias_init: nn.initializers.Initializer = ZEROS

  @nn.compact
  def __call__(self, x: Float[Array, "... n"]) -> Float[Array, "... m"]:
    shape = (x.shape[-1], self.features)
    kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
    x = float32_sums.product(x.astype(self.dtype), kernel)
    return _add_bias(self, x, self.bias_init)


class Conv(nn.Module):
  """A convolution of images; the kernel is [size, size, c_in, c_out]."""

  features: int
  size: int
  strides: int = 1
  padding: str | Sequence[tuple[int, int]] = "SAME"
  use_bias: bool = True
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 m"]:
    shape = (self.size, self.size, x.shape[-1], self.features)
    kernel = self.param("kernel", GLOROT, shape, self.param_dtype)
    strides = (self.strides, self.strides)
    op = partial(
      convolutions.conv,
      strides=strides,
      padding=self.padding,
      dimension_numbers=convolutions.DIMENSIONS,
    )
    x = float32_sums.convolution(
      op, x.astype(self.dtype), kernel, strides, self.padding
    )
    return _add_bias(self, x, ZEROS)


def glorot(gain: float = 1.0) -> nn.initializers.Initializer:
  """Glorot uniform initial weights, multiplied by `gain`."""
  return nn.initializers.variance_scaling(gain**2, "fan_avg", "uniform")


class ConvTranspose(nn.Module):
  """3x3, stride 2, SAME; the kernel is [3, 3, c_out, c_in] as in Keras.

  An output pixel gets 9/4 of the kernel's 9 taps on average, so Glorot's
  initial weights halve the signal. A gain of 2 keeps its size.
  """

  features: int
  gain: float
  use_bias: bool
  dtype: Any
  param_dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 m"]:
    shape = (3, 3, self.features, x.shape[-1])
    kernel = self.param("kernel", glorot(self.gain), shape, self.param_dtype)
    x = float32_sums.transposed_convolution(
      convolutions.conv_transpose, x.astype(self.dtype), kernel, (2, 2)
    )
    return _add_bias(self, x, ZEROS)


def self_attention(heads: int, dtype: Any, param_dtype: Any) -> nn.Module:
  """Flax's attention among the vectors [..., m, n]; takes a mask, too.

  Its linear maps are `float32_sums.product` in `dtype`. The rest is in
  `param_dtype`, and so is the result.
  """

  def dot_general(x, kernel, dimensions, precision=None):
    del precision
    (summed, _), _ = dimensions
    return float32_sums.product(x.astype(dtype), kernel, axes=len(summed))

  return nn.MultiHeadDotProductAttention(
    heads,
    param_dtype=param_dtype,
    qkv_dot_general=dot_general,
    out_dot_general=dot_general,
  )


def _add_bias(layer: nn.Module, x: jax.Array, init: Any) -> jax.Array:
  if not layer.use_bias:
    return x
  bias = layer.param("bias", init, (layer.features,), layer.param_dtype)
  return float32_sums.add_bias(x, bias)

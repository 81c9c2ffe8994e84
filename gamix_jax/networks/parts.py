"""What the networks are made of: normalisations, convolutions.

Parameters are float32, convolutions and products in `dtype`.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from gamix_jax import ops
from gamix_jax.posterior.base import float_at_least_32, lift

EPSILON = 1e-3  # of every normalisation, Keras' default
MOMENTUM = 0.99  # of the moving statistics, Keras' default
GLOROT = nn.initializers.glorot_uniform()
INPUT_NORMS = ("layer", "none")
NORMS = ("affine", "batch", "group", "none")


class Norm(nn.Module):
  """The normalisation of a block, over the channels, the last axis.

  `affine` is batch normalisation on its stored statistics, which training
  leaves as they are: what the published code does. `batch` takes the
  statistics of the global batch in training. `group` has up to 32 groups.
  """

  kind: str
  dtype: jnp.dtype
  param_dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    channels = x.shape[-1]
    if self.kind == "none":
      return x
    if self.kind == "group":
      return nn.GroupNorm(
        num_groups=math.gcd(32, channels),
        epsilon=EPSILON,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        name="norm",
      )(x)
    if self.kind == "batch":
      return nn.BatchNorm(
        use_running_average=not train,
        momentum=MOMENTUM,
        epsilon=EPSILON,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        name="norm",
      )(x)
    return Affine(self.dtype, self.param_dtype, name="norm")(x)


class Affine(nn.Module):
  """(x - mean) / sqrt(var + 1e-3) * scale + bias, mean and var never moved."""

  dtype: jnp.dtype
  param_dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (x.shape[-1],)
    kind = self.param_dtype
    scale = self.param("scale", nn.initializers.ones, shape, kind)
    bias = self.param("bias", nn.initializers.zeros, shape, kind)
    mean = self.variable("batch_stats", "mean", jnp.zeros, shape, kind)
    var = self.variable("batch_stats", "var", jnp.ones, shape, kind)
    gain = scale * jax.lax.rsqrt(var.value + EPSILON)
    shift = bias - mean.value * gain
    gain, shift = (lift(v.astype(self.dtype), x.ndim) for v in (gain, shift))
    return x * gain + shift


def glorot(gain: float = 1.0) -> nn.initializers.Initializer:
  """Glorot's uniform initial weights, `gain` times as large."""
  return nn.initializers.variance_scaling(gain**2, "fan_avg", "uniform")


class ConvTranspose(nn.Module):
  """3x3, stride 2, SAME; the kernel is [3, 3, c_out, c_in] as in Keras.

  An output pixel sees 9/4 of the kernel's 9 taps on average, so that initial
  weights by Glorot halve the signal; a gain of 2 keeps it.
  """

  features: int
  gain: float
  dtype: jnp.dtype
  param_dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (3, 3, self.features, x.shape[-1])
    kernel = self.param("kernel", glorot(self.gain), shape, self.param_dtype)
    bias = self.param(
      "bias", nn.initializers.zeros, shape[2:3], self.param_dtype
    )
    x = ops.conv_transpose(x.astype(self.dtype), kernel.astype(self.dtype))
    return x + lift(bias.astype(self.dtype), x.ndim)


def space_to_depth(x: jax.Array, patch: int) -> jax.Array:
  """[b, h, w, c] -> [b, h/p, w/p, p p c]: patches as channels."""
  b, h, w, c = x.shape
  x = x.reshape(b, h // patch, patch, w // patch, patch, c)
  x = jnp.swapaxes(x, 2, 3)
  return x.reshape(b, h // patch, w // patch, patch * patch * c)


def depth_to_space(x: jax.Array, patch: int) -> jax.Array:
  """[b, h, w, p p c] -> [b, h p, w p, c]: the inverse of `space_to_depth`."""
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, patch, patch, c // patch**2)
  x = jnp.swapaxes(x, 2, 3)
  return x.reshape(b, h * patch, w * patch, c // patch**2)


def normalize_input(part: "Part", kind: str, x: jax.Array) -> jax.Array:
  """The encoder's input normalisation, inside an encoder.

  `layer` normalises each channel over the image and has a weight a pixel, as
  published. It removes an image's brightness and contrast, which then are no
  part of the code; `none` keeps them.
  """
  if kind == "none":
    return x
  return nn.LayerNorm(
    epsilon=EPSILON,
    reduction_axes=(1, 2),
    feature_axes=(1, 2),
    use_fast_variance=False,
    dtype=part.dtype,
    param_dtype=part.param_dtype,
    name="layernorm",
  )(x)


class Part(nn.Module):
  """What the blocks and networks below have in common."""

  norm: str = "affine"
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  def conv(self, features: int, size: int, name: str, **kwargs) -> nn.Conv:
    return nn.Conv(
      features,
      (size, size),
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      kernel_init=GLOROT,
      conv_general_dilated=ops.conv,
      name=name,
      **kwargs,
    )

  def normed(self, name: str, x: jax.Array, train: bool) -> jax.Array:
    return Norm(self.norm, self.dtype, self.param_dtype, name=name)(x, train)

  @property
  def bias_before_norm(self) -> bool:
    """Batch statistics take a bias out again; its gradient is noise then."""
    return self.norm != "batch"

  def dense(self, features: int, name: str, **kwargs) -> nn.Dense:
    return nn.Dense(
      features,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      kernel_init=GLOROT,
      name=name,
      **kwargs,
    )

  def image(self, x: jax.Array, channels: int, patch: int) -> jax.Array:
    """The output convolution: features [b, h/p, w/p, f] -> [b, h, w, c].

    1x1 as published; of patches 3x3, for their edges.
    """
    size = 1 if patch == 1 else 3
    x = self.conv(channels * patch**2, size, "out")(x)
    return float_at_least_32(depth_to_space(x, patch) if patch > 1 else x)

  def of_same_kind(self) -> dict:
    return dict(norm=self.norm, dtype=self.dtype, param_dtype=self.param_dtype)

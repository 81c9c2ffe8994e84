"""What the networks are made of: normalisations, convolutions.

Parameters are float32, convolutions and products in `dtype`.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from gamix_jax import ops
from gamix_jax.posterior.base import lift

EPSILON = 1e-3  # of every normalisation, Keras' default
MOMENTUM = 0.99  # of the moving statistics, Keras' default
GLOROT = nn.initializers.glorot_uniform()
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


class ConvTranspose(nn.Module):
  """3x3, stride 2, SAME; the kernel is [3, 3, c_out, c_in] as in Keras."""

  features: int
  dtype: jnp.dtype
  param_dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (3, 3, self.features, x.shape[-1])
    kernel = self.param("kernel", GLOROT, shape, self.param_dtype)
    bias = self.param(
      "bias", nn.initializers.zeros, shape[2:3], self.param_dtype
    )
    x = ops.conv_transpose(x.astype(self.dtype), kernel.astype(self.dtype))
    return x + lift(bias.astype(self.dtype), x.ndim)


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

  def of_same_kind(self) -> dict:
    return dict(norm=self.norm, dtype=self.dtype, param_dtype=self.param_dtype)

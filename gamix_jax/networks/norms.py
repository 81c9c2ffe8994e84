"""Normalisations of the networks, over the channels, the last axis."""

import math
from collections.abc import Sequence

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn

from gamix_jax.parallel import float32_sums
from gamix_jax.posterior.base import promote_f32

EPSILON = 1e-3  # of every normalisation, Keras' default
MOMENTUM = 0.99  # of the moving statistics, Keras' default
NORMS = ("affine", "batch", "group", "none")


class Norm(nn.Module):
  """The normalisation of a block, over the channels, the last axis.

  `affine` is batch normalisation with its stored statistics, which training
  never updates, as in the published code. `batch` uses the statistics of the
  global batch in training. `group` is group normalisation, see `groups`.
  """

  kind: str
  dtype: jnp.dtype
  param_dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    if self.kind == "none":
      return x
    if self.kind == "group":
      return GroupNorm(self.dtype, self.param_dtype, name="norm")(x)
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


def groups(shape: Sequence[int]) -> int:
  """The number of groups of `group`, at most 32.

  Each group has at least 4 numbers per image. With one number its difference
  from the mean is always 0, and with two only a sign remains.

  Args:
    shape: [b, ..., c] of the normalised array.
  """
  *axes, channels = shape[1:]
  found = math.gcd(32, channels)
  while found > 1 and math.prod(axes) * channels < 4 * found:
    found //= 2
  return found


class GroupNorm(nn.Module):
  """(x - mean) / sqrt(var + 1e-3) * scale + bias, of `groups` of channels.

  mean and var are those of an image's channels of one group. Source:
  arXiv:1803.08494. It is Flax's GroupNorm, with the same parameters, but sums
  each channel over the image first and the few sums of a group afterwards: a
  group has as few as two channels, and sums over so short an axis are slow
  (benchmarks/LOG.md). The sums are in float32 or better.
  """

  dtype: jnp.dtype
  param_dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises x [b, ..., c] over `...` and the channels of each group."""
    channels, n = x.shape[-1], groups(x.shape)
    kind = self.param_dtype
    scale = self.param("scale", nn.initializers.ones, (channels,), kind)
    bias = self.param("bias", nn.initializers.zeros, (channels,), kind)
    x = promote_f32(x)
    positions = tuple(range(1, x.ndim - 1))

    def mean_of_groups(values):  # [b, ..., c] -> [b, n]
      # einops sums over no axes by doing nothing; ONNX would sum over all.
      sums = einops.reduce(values, "b ... c -> b c", "sum")
      sums = einops.reduce(sums, "b (n c) -> b n", "sum", n=n)
      return sums * (n / math.prod(x.shape[1:]))

    def of_channels(values):  # [b, n] -> [b, c]
      return jnp.repeat(values, channels // n, axis=-1)

    mean = mean_of_groups(x)
    var = jnp.maximum(mean_of_groups(x * x) - mean * mean, 0)
    gain = of_channels(jax.lax.rsqrt(var + EPSILON)) * scale[None]
    shift = bias[None] - of_channels(mean) * gain
    return (
      x * jnp.expand_dims(gain, positions) + jnp.expand_dims(shift, positions)
    ).astype(self.dtype)


class Affine(nn.Module):
  """(x - mean) / sqrt(var + 1e-3) * scale + bias; mean and var are constant."""

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
    return float32_sums.affine(x.astype(self.dtype), gain, shift)

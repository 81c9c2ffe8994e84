"""THE PAPER, 2: the ResNetV2 encoder and decoder, and the PatchGAN.

Pre-activation residual networks (He et al., arXiv:1603.05027) as the reference
ran them. Images are [b, h, w, c] in [-1, 1]; the decoder's output is not
bounded. Parameters are float32, convolutions and products in `dtype`.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gamix_jax import ops
from gamix_jax.posterior import Mixture, Posterior, prior
from gamix_jax.posterior.base import float_at_least_32, lift

EPSILON = 1e-3  # of every normalisation, Keras' default
MOMENTUM = 0.99  # of the moving statistics, Keras' default
LEAKY_SLOPE = float(np.float32(0.3))  # Keras holds it in float32
GLOROT = nn.initializers.glorot_uniform()
NORMS = ("affine", "batch", "group", "none")
# Of these the value at a pixel does not depend on the other pixels, so a
# strided 1x1 convolution may be moved in front of them.
POINTWISE_NORMS = ("affine", "none")


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


class ResidualBlock(Part):
  """x + conv3(relu(n3(conv2(relu(n2(conv1(relu(n1(x)))))))); 3x3, 3x3, 1x1.

  With `down` the 1x1 has stride 2 and the shortcut is its own strided 1x1 of
  relu(n4(x)). Where the norm is pointwise, what a strided 1x1 would drop is
  not computed: the second 3x3 takes the stride (padded by 1 on both sides,
  where SAME would shift it by a pixel) and the shortcut is cut before its
  norm. The numbers are the same, at 12 % less arithmetic for the encoder.
  """

  features: int = 0
  down: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    c, free = self.features, self.bias_before_norm
    early = self.down and self.norm in POINTWISE_NORMS
    stride = 2 if self.down else 1
    at_conv2, at_conv3 = (stride, 1) if early else (1, stride)

    y = nn.relu(self.normed("bn1", x, train))
    y = self.conv(c, 3, "conv1", use_bias=free)(y)
    y = nn.relu(self.normed("bn2", y, train))
    y = self.conv(
      c, 3, "conv2", use_bias=free, strides=at_conv2, padding=((1, 1), (1, 1))
    )(y)
    y = nn.relu(self.normed("bn3", y, train))
    y = self.conv(c, 1, "conv3", strides=at_conv3)(y)
    if not self.down:
      return x + y
    if early:
      x = x[:, ::2, ::2]
    x = nn.relu(self.normed("bn4_shortcut", x, train))
    x = self.conv(c, 1, "conv4_shortcut", strides=1 if early else 2)(x)
    return x + y


class UpBlock(Part):
  """Doubles height and width, by a 1x1 and a transposed 3x3, and a shortcut."""

  features: int = 0

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    def up(name):
      return ConvTranspose(
        self.features, self.dtype, self.param_dtype, name=name
      )

    y = nn.relu(self.normed("bn1", x, train))
    y = self.conv(self.features, 1, "conv1", use_bias=self.bias_before_norm)(y)
    y = nn.relu(self.normed("bn2", y, train))
    y = up("conv2_transpose")(y)
    x = nn.relu(self.normed("bn3_shortcut", x, train))
    return up("conv3_transpose_shortcut")(x) + y


class EncoderStage(Part):
  """Two residual blocks, then one that halves the image."""

  features: int = 0
  next_features: int = 0

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    kind = self.of_same_kind()
    for i in (0, 1):
      x = ResidualBlock(features=self.features, name=f"block{i}", **kind)(
        x, train
      )
    return ResidualBlock(
      features=self.next_features, down=True, name="down", **kind
    )(x, train)


class DecoderStage(Part):
  """One residual block, then one that doubles the image."""

  features: int = 0
  next_features: int = 0

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    kind = self.of_same_kind()
    x = ResidualBlock(features=self.features, name="block0", **kind)(x, train)
    return UpBlock(features=self.next_features, name="up", **kind)(x, train)


class Encoder(Part):
  """Images [b, h, w, c] -> features [b, h', w', head_features].

  h' = h / 2^(n - 1) for n feature counts. The input's layer normalisation has
  a weight a pixel, so an encoder belongs to one image size.
  """

  features: Sequence[int] = ()
  head_features: int = 0

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = nn.LayerNorm(
      epsilon=EPSILON,
      reduction_axes=(1, 2),
      feature_axes=(1, 2),
      use_fast_variance=False,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="layernorm",
    )(x)
    x = self.conv(self.features[0], 3, "stem")(x)
    for s, pair in enumerate(
      zip(self.features, self.features[1:], strict=False)
    ):
      x = EncoderStage(
        features=pair[0],
        next_features=pair[1],
        name=f"stage{s}",
        **self.of_same_kind(),
      )(x, train)
    return self.conv(self.head_features, 1, "head")(x)


class Decoder(Part):
  """Latents [b, d] -> images [b, h, w, c], unbounded, float32 or more.

  `start` is the encoder's output shape (h', w', head_features).
  """

  features: Sequence[int] = ()
  start: tuple[int, int, int] = (1, 1, 1)

  @nn.compact
  def __call__(self, z: jax.Array, train: bool) -> jax.Array:
    x = nn.Dense(
      math.prod(self.start),
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      kernel_init=GLOROT,
      name="dense",
    )(z)
    x = x.reshape(-1, *self.start)
    x = self.conv(self.features[0], 3, "stem")(x)
    for s, pair in enumerate(
      zip(self.features, self.features[1:], strict=False)
    ):
      x = DecoderStage(
        features=pair[0],
        next_features=pair[1],
        name=f"stage{s}",
        **self.of_same_kind(),
      )(x, train)
    return float_at_least_32(self.conv(self.features[-1], 1, "out")(x))


class VAE(nn.Module):
  """Encoder, posterior head and decoder; a prior where it is learned."""

  encoder: nn.Module
  posterior: nn.Module  # features [b, n] -> Posterior; `prior_draws`
  decoder: nn.Module
  prior: nn.Module | None = None  # of posterior/prior.py; None: the head's own

  def encode(self, x: jax.Array, train: bool = False) -> Posterior:
    """Images [b, h, w, c] in [-1, 1] -> q(z | x)."""
    h = self.encoder(x, train)
    return self.posterior(h.reshape(h.shape[0], -1))

  def decode(self, z: jax.Array, train: bool = False) -> jax.Array:
    """Latents [..., d] -> x_hat [..., h, w, c], unbounded.

    The batch axis, the one before the last, stays outermost inside, so that a
    batch spread over devices stays where it is.
    """
    lead = z.shape[:-1]
    z = jnp.moveaxis(z.reshape(-1, *z.shape[-2:]), 1, 0)  # [b, s, d]
    b, s, d = z.shape
    x_hat = self.decoder(z.reshape(b * s, d), train)
    x_hat = jnp.moveaxis(x_hat.reshape(b, s, *x_hat.shape[1:]), 1, 0)
    return x_hat.reshape(*lead, *x_hat.shape[2:])

  def learned_prior(self) -> Mixture:
    """Of a model that has one; pseudo-inputs meet stored statistics."""
    if isinstance(self.prior, prior.MixturePrior):
      return self.prior()
    return prior.of_pseudo_inputs(self.encode(self.prior()))

  def with_prior(self, q: Posterior) -> Posterior:
    """q beside the prior that this model has."""
    if self.prior is None:
      return q
    return prior.WithPrior(q, self.learned_prior())

  def prior_draws(
    self, key: jax.Array, n: int, temperature: float = 1.0
  ) -> jax.Array:
    """z [n, d] from the prior p(z)."""
    if self.prior is not None:
      return prior.draw(self.learned_prior(), key, n, temperature)
    return self.posterior.prior_draws(key, n, temperature)

  def __call__(
    self,
    x: jax.Array,
    key: jax.Array,
    draws: int = 1,
    train: bool = False,
    eps: jax.Array | None = None,
    step: jax.Array | None = None,
  ) -> tuple[Posterior, jax.Array, jax.Array, jax.Array]:
    """x [b, h, w, c] -> q, z [s, b, d], w [s, b], x_hat [s, b, h, w, c]."""
    q = self.with_prior(self.encode(x, train))
    z, w = q.draws(key, draws, eps, step)
    return q, z, w, self.decode(z, train)


class PatchDiscriminator(Part):
  """PatchGAN (Isola et al., arXiv:1611.07004): images -> logits [b, p, q, 1].

  A normalisation stands behind the last convolution too, as in the reference;
  with `group` and `none` it does not, for it would take the logits' level out.
  """

  features: Sequence[int] = ()
  strides: Sequence[int] = ()
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    last = len(self.features) - 1
    for i, (c, s) in enumerate(zip(self.features, self.strides, strict=True)):
      x = Layer(
        features=c,
        stride=s,
        last=i == last,
        dropout=self.dropout,
        name=f"layer{i}",
        **self.of_same_kind(),
      )(x, train)
    return float_at_least_32(x)


class Layer(Part):
  """Of the discriminator: conv 3x3, norm, leaky ReLU (not last), dropout."""

  features: int = 0
  stride: int = 1
  last: bool = False
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = self.conv(
      self.features,
      3,
      "conv",
      strides=self.stride,
      padding="SAME",
      use_bias=self.bias_before_norm,
    )(x)
    if not self.last or self.norm in ("affine", "batch"):
      x = self.normed("bn", x, train)
    if not self.last:
      x = nn.leaky_relu(x, LEAKY_SLOPE)
    return nn.Dropout(self.dropout, deterministic=not train)(x)

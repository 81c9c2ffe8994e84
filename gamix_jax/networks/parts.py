"""Building blocks of the networks, and their base classes.

Parameters are float32; convolutions and matrix products run in `dtype`.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.layers import Conv, ConvTranspose, Dense
from gamix_jax.networks.norms import EPSILON, Norm
from gamix_jax.posterior.base import promote_f32

INPUT_NORMS = ("layer", "none")


def space_to_depth(x: jax.Array, patch: int) -> jax.Array:
  """[b, h, w, c] -> [b, h/p, w/p, p p c]: patches of pixels become channels.

  Pixel (i, j) of a patch has the channels (i p + j) c + (0, ..., c - 1).
  """
  to_channels = "b (h i) (w j) c -> b h w (i j c)"
  return einops.rearrange(x, to_channels, i=patch, j=patch)


def depth_to_space(x: jax.Array, patch: int) -> jax.Array:
  """[b, h, w, p p c] -> [b, h p, w p, c]: the inverse of `space_to_depth`."""
  to_pixels = "b h w (i j c) -> b (h i) (w j) c"
  return einops.rearrange(x, to_pixels, i=patch, j=patch)


class NetworkModule(nn.Module):
  """Base class of blocks and networks."""

  norm: str = "affine"
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  def conv(self, features: int, size: int, name: str, **kwargs) -> Conv:
    return Conv(
      features,
      size,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name=name,
      **kwargs,
    )

  def normed(self, name: str, x: jax.Array, train: bool) -> jax.Array:
    return Norm(self.norm, self.dtype, self.param_dtype, name=name)(x, train)

  @property
  def bias_before_norm(self) -> bool:
    """Whether a layer before a normalisation has a bias; `batch` cancels it."""
    return self.norm != "batch"

  def dense(self, features: int, name: str, **kwargs) -> Dense:
    return Dense(
      features,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name=name,
      **kwargs,
    )

  def up(
    self, features: int, gain: float, name: str, use_bias: bool = True
  ) -> ConvTranspose:
    return ConvTranspose(
      features, gain, use_bias, self.dtype, self.param_dtype, name=name
    )

  def normed_input(
    self, kind: str, x: jax.Array, use_bias: bool = True
  ) -> jax.Array:
    """The input normalisation of an encoder, of images [b, h, w, c].

    `layer` normalises each channel over the image, with a weight per pixel, as
    published; the encoder then works with one image size only. It removes an
    image's brightness and contrast, which the code then lacks. `none` keeps
    them.
    """
    if kind == "none":
      return x
    return nn.LayerNorm(
      epsilon=EPSILON,
      reduction_axes=(1, 2),
      feature_axes=(1, 2),
      use_bias=use_bias,
      use_fast_variance=False,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="layernorm",
    )(x)

  def of_same_kind(self) -> dict:
    return dict(norm=self.norm, dtype=self.dtype, param_dtype=self.param_dtype)


class Network(NetworkModule):
  """Base class of what a config names in its section `model`.

  Attributes:
    keys: the keys of the section that it reads.
    settings: its own config keys with defaults, `model.<name>.<key>`.
    convolutional: whether presets give it patches and group normalisation.
  """

  keys: ClassVar[tuple[str, ...]] = ()
  settings: ClassVar[dict[str, Any]] = {}
  convolutional: ClassVar[bool] = False

  @classmethod
  def from_config(
    cls, model: ConfigDict, shape: Sequence[int], **kind: Any
  ) -> Self:
    """Creates the network from a config.

    Args:
      model: the section `model`.
      shape: (h, w, c) of the images.
      **kind: `dtype` and `param_dtype`.

    Raises:
      UserError: if a value does not fit the network or the images.
    """
    del model, shape
    return cls(**kind)

  @classmethod
  def keys_read(cls, model: ConfigDict) -> set[str]:
    """The `keys` that have an effect, given the values of the others."""
    del model
    return set(cls.keys)

  @classmethod
  def preset_features(
    cls, width: int, hidden: int, halvings: int
  ) -> tuple[int, ...]:
    """The widths of its layers in a preset, in the order of the layers.

    Args:
      width: channels of the convolutions closest to the image.
      hidden: width of fully connected layers.
      halvings: how often convolutions halve the image, to a grid of about 4x4.
    """
    del width, hidden, halvings
    return ()


class Encoder(Network):
  """Base class of encoders, which `ENCODERS` lists by name.

  Attributes:
    latent_shape: (h', w', c) of spatial latents: features [b, h', w', n] are
      mapped to c latents at every position, and d = h' w' c. None: features
      and latents are vectors.
  """

  latent_shape: tuple[int, int, int] | None = None

  @classmethod
  def first_layer_size(cls, model: ConfigDict, shape: Sequence[int]) -> int:
    """Size of the first layer's output per image, or of the image if larger."""
    del model
    return math.prod(shape)

  def __call__(
    self, x: Float[Array, "b h w c"], train: bool
  ) -> Float[Array, "b ... n"]:
    """Features of images in [-1, 1]."""
    raise NotImplementedError


class Decoder(Network):
  """Base class of decoders, which `DECODERS` lists by name."""

  def __call__(
    self, z: Float[Array, "b d"], train: bool
  ) -> Float[Array, "b h w c"]:
    """The likelihood's parameters: unbounded, float32 or float64."""
    raise NotImplementedError


def check_features(model: ConfigDict, key: str) -> tuple[int, ...]:
  """Returns the widths of layers at a key.

  Raises:
    UserError: if there are none.
  """
  if not model[key]:
    raise UserError(f"model.{key} is empty; give it a width.")
  return tuple(model[key])


def check_divides(
  key: str, shape: Sequence[int], patch: int, halvings: int
) -> None:
  """Checks that an image can be halved as often as a network needs.

  Raises:
    UserError: if it cannot; the message lists sizes that can.
  """
  h, w, _ = shape
  factor = patch * 2**halvings
  for side in (h, w):
    if side % factor:
      below = side // factor * factor
      fits = [s for s in (below, below + factor, below + 2 * factor) if s]
      patches = f" in patches of model.patch={patch}" if patch > 1 else ""
      raise UserError(
        f"data.image_size={h if h == w else (h, w)}: model.{key} halves an "
        f"image{patches} {halvings} times, which {side} does not divide by; "
        f"sizes that do: {', '.join(map(str, fits))} (multiples of {factor})."
      )


class ConvolutionalEncoder(Encoder):
  """Base class of encoders with convolutions.

  Attributes:
    features: channels, from the image on.
    input_norm: see `NetworkModule.normed_input`.
    patch: side of the square patches of pixels that become channels.
  """

  keys = ("encoder_features", "input_norm", "patch", "norm")
  convolutional = True

  features: Sequence[int] = ()
  input_norm: str = "layer"
  patch: int = 1

  @classmethod
  def halvings(cls, features: Sequence[int]) -> int:
    """How often it halves the image, in addition to the patches."""
    return len(features)

  @classmethod
  def from_config(
    cls, model: ConfigDict, shape: Sequence[int], **kind: Any
  ) -> Self:
    features = check_features(model, "encoder_features")
    times = cls.halvings(features)
    check_divides("encoder_features", shape, model.patch, times)
    return cls(
      features=features,
      input_norm=model.input_norm,
      patch=model.patch,
      norm=model.norm,
      **kind,
    )

  def patches(self, x: jax.Array) -> jax.Array:
    """[b, h, w, c], normalised, as squares [b, h/p, w/p, p p c]."""
    x = self.normed_input(self.input_norm, x)
    return space_to_depth(x, self.patch) if self.patch > 1 else x


class ConvolutionalDecoder(Decoder):
  """Base class of decoders with convolutions.

  Attributes:
    features: channels, up to the image.
    start: shape (h', w', c') that latents are mapped to.
    channels: of the images.
    patch: see `ConvolutionalEncoder`.
    upsample_gain: of the initial weights of the transposed convolutions.
  """

  keys = ("decoder_features", "upsample_gain", "patch", "norm")
  convolutional = True

  features: Sequence[int] = ()
  start: tuple[int, int, int] = (1, 1, 1)
  channels: int = 3
  patch: int = 1
  upsample_gain: float = 1.0

  @classmethod
  def doublings(cls, features: Sequence[int]) -> int:
    """How often it doubles the image, in addition to the patches."""
    return len(features)

  @classmethod
  def start_channels(cls, model: ConfigDict) -> int:
    """Channels of the grid that latents are mapped to."""
    return model.decoder_features[0]

  @classmethod
  def start_shape(
    cls, model: ConfigDict, shape: Sequence[int]
  ) -> tuple[int, int, int]:
    """(h', w', c') of the grid that latents are mapped to."""
    factor = model.patch * 2 ** cls.doublings(model.decoder_features)
    h, w, _ = shape
    return h // factor, w // factor, cls.start_channels(model)

  @classmethod
  def keys_read(cls, model: ConfigDict) -> set[str]:
    unused = (
      set() if cls.doublings(model.decoder_features) else {"upsample_gain"}
    )
    return set(cls.keys) - unused

  @classmethod
  def from_config(
    cls, model: ConfigDict, shape: Sequence[int], **kind: Any
  ) -> Self:
    features = check_features(model, "decoder_features")
    times = cls.doublings(features)
    check_divides("decoder_features", shape, model.patch, times)
    return cls(
      features=features,
      start=cls.start_shape(model, shape),
      channels=shape[-1],
      patch=model.patch,
      upsample_gain=model.upsample_gain,
      norm=model.norm,
      **kind,
    )

  def to_grid(self, z: jax.Array) -> jax.Array:
    """Latents [b, d] -> [b, h', w', c'], linearly."""
    x = self.dense(math.prod(self.start), "dense")(z)
    return x.reshape(-1, *self.start)

  def image(self, x: jax.Array) -> jax.Array:
    """The output convolution: features [b, h/p, w/p, f] -> [b, h, w, c].

    1x1 as published. With patches it is 3x3, so that it sees the neighbours of
    a patch and adjacent patches fit together.
    """
    size = 1 if self.patch == 1 else 3
    x = self.conv(self.channels * self.patch**2, size, "out")(x)
    return promote_f32(depth_to_space(x, self.patch) if self.patch > 1 else x)

"""Counts the FLOPs of a training step analytically.

Counts convolutions and matrix products only, as two FLOPs per multiply-add;
everything else in a step is negligible. Any implementation needs:

    VAE      forward; backward to weights and to inputs, as much each
    D        forward on x and on every sample of x_hat; backward to its
             weights from both; backward between its layers from both;
             backward to x_hat, for the VAE
"""

import math
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

from gamix_jax.config import ConfigDict, image_shape
from gamix_jax.errors import UserError
from gamix_jax.networks import DECODERS
from gamix_jax.networks.resnet import bottleneck_channels
from gamix_jax.posterior import POSTERIORS

COUNTED = ("resnet", "conv", "mlp")


def check(config: ConfigDict) -> None:
  """Checks that the FLOPs of a config's networks can be counted.

  Raises:
    UserError: if the encoder or the decoder is not one of COUNTED, or the
      config has several modalities.
  """
  if config.data.modalities:
    raise UserError(
      "data.modalities: FLOPs can be counted only for images, without it."
    )
  for name in ("encoder", "decoder"):
    if config.model[name] not in COUNTED:
      raise UserError(
        f"model.{name}={config.model[name]!r}: "
        f"FLOPs can be counted only for {', '.join(COUNTED)}."
      )


class Conv(NamedTuple):
  """c_in -> c_out channels with a size x size kernel, to [h, w]."""

  h: int
  w: int
  size: int
  c_in: int
  c_out: int
  stride: int = 1
  transposed: bool = False

  def flops(self, edges: bool) -> int:
    """Returns the FLOPs per image.

    Args:
      edges: whether to omit the products with padding.
    """
    taps_h, taps_w = (self._taps(n, edges) for n in (self.h, self.w))
    return 2 * taps_h * taps_w * self.c_in * self.c_out

  def _taps(self, n: int, edges: bool) -> int:
    """Returns the number of products along an axis with n outputs."""
    if self.transposed:  # n / 2 inputs, each with 3 products, one cropped
      return n // 2 * 3 - (1 if edges else 0)
    lost = 0
    if edges and self.size == 3:
      # 3x3 pads both sides by 1; SAME with stride 2 on an even axis pads one
      # side.
      lost = 2 if self.stride == 1 else 1
    return n * self.size - lost


def _residual(h, w, c_in, c, down, early) -> Iterator[Conv]:
  yield Conv(h, w, 3, c_in, c)
  if down and early:
    yield Conv(h // 2, w // 2, 3, c, c, stride=2)
  else:
    yield Conv(h, w, 3, c, c)
  if down:
    h, w = h // 2, w // 2
    yield Conv(h, w, 1, c_in, c)
  yield Conv(h, w, 1, c, c)


def _dense(widths: Iterable[int]) -> Iterator[Conv]:
  """Yields fully connected layers from each width to the next."""
  for c_in, c in pairwise(widths):
    yield Conv(1, 1, 1, c_in, c)


def encoder(config: ConfigDict, early: bool) -> list[Conv]:
  """Returns the layers of the encoder and of the posterior head.

  Args:
    config: of the run.
    early: whether down blocks apply their stride in the second convolution.

  Raises:
    UserError: if it is linear.
  """
  check(config)
  model, (h, w, channels) = config.model, image_shape(config)
  features = model.encoder_features
  if model.encoder == "mlp":
    out, inputs = [*_dense((h * w * channels, *features))], features[-1]
  else:
    patch = model.patch
    h, w, channels = h // patch, w // patch, channels * patch**2
    layers = _conv_encoder if model.encoder == "conv" else _resnet_encoder
    out = list(layers(h, w, channels, config, early))
    # The head follows the last layer, which has the encoder's output shape.
    inputs = out[-1].h * out[-1].w * out[-1].c_out
  return [*out, Conv(1, 1, 1, inputs, _head_outputs(config))]


def _conv_encoder(h, w, c_in, config, early) -> Iterator[Conv]:
  del early
  for c in config.model.encoder_features:
    h, w = h // 2, w // 2
    yield Conv(h, w, 3, c_in, c, stride=2)
    c_in = c


def _resnet_encoder(h, w, c_in, config, early) -> Iterator[Conv]:
  features = config.model.encoder_features
  yield Conv(h, w, 3, c_in, features[0])
  for c, after in pairwise(features):
    for _ in range(2):
      yield from _residual(h, w, c, c, False, early)
    yield from _residual(h, w, c, after, True, early)
    h, w = h // 2, w // 2
  yield Conv(h, w, 1, features[-1], bottleneck_channels(config.model))


def _head_outputs(config: ConfigDict) -> int:
  """Returns the total output width of the posterior's dense layers."""
  k, latent = config.posterior.components, config.model.latent
  family = POSTERIORS[config.posterior.name].family
  if family.discrete:
    return latent  # the rates only
  return 2 * k * latent + (k if family.has_components else 0)


def decoder(config: ConfigDict) -> list[Conv]:
  """Returns the layers of the decoder, for one sample.

  Raises:
    UserError: if it is linear.
  """
  check(config)
  model, shape = config.model, image_shape(config)
  features, patch = model.decoder_features, model.patch
  if model.decoder == "mlp":
    return [*_dense((model.latent, *features, math.prod(shape)))]
  h, w, c_in = DECODERS[model.decoder].start_shape(model, shape)
  out = [Conv(1, 1, 1, model.latent, h * w * c_in)]
  if model.decoder == "resnet":
    out.append(Conv(h, w, 3, c_in, features[0]))
    c_in, features = features[0], features[1:]
  for c in features:
    if model.decoder == "resnet":
      out += _residual(h, w, c_in, c_in, False, False)
      out.append(Conv(h, w, 1, c_in, c))
      out.append(Conv(2 * h, 2 * w, 3, c, c, transposed=True))
    h, w = 2 * h, 2 * w
    out.append(Conv(h, w, 3, c_in, c, transposed=True))
    c_in = c
  size = 1 if patch == 1 else 3
  out.append(Conv(h, w, size, c_in, shape[-1] * patch**2))
  return out


def discriminator(config: ConfigDict) -> list[Conv]:
  """Returns the layers of the discriminator, for one image."""
  h, w, c_in = image_shape(config)
  model, out = config.model, []
  for c, stride in zip(
    model.discriminator_features, model.discriminator_strides, strict=True
  ):
    h, w = -(-h // stride), -(-w // stride)
    out.append(Conv(h, w, 3, c_in, c, stride))
    c_in = c
  return out


def per_image(
  config: ConfigDict, *, early: bool | None = None, edges: bool = False
) -> dict[str, float]:
  """Returns the FLOPs of a training step per image of the batch, by part.

  Args:
    config: of the run.
    early: whether down blocks apply their stride early; None: as the step does.
    edges: whether to omit the products with padding, as XLA's count does.

  Returns:
    {"vae": ..., "disc": ..., "total": ...}

  Raises:
    UserError: if the encoder or decoder is linear.
  """
  if early is None:
    early = config.model.norm in ("affine", "none")
  draws = config.objective.num_samples * config.posterior.components

  def total(convs):
    return sum(c.flops(edges) for c in convs)

  encode, decode = encoder(config, early), decoder(config)
  vae = 3 * (total(encode) + draws * total(decode))
  if config.model.input_norm == "none":
    vae -= encode[0].flops(edges)  # no gradient to x is needed
  disc = 0
  if config.adversarial.loss != "none":
    d = discriminator(config)
    forward, first = total(d), d[0].flops(edges)
    own = 2 * forward + (forward - first)  # forward, weights, between layers
    disc = (1 + draws) * own + draws * forward
  return {"vae": vae, "disc": disc, "total": vae + disc}

"""The arithmetic of a training step, counted by hand.

Of convolutions and matrix products, two a product and its sum; nothing else of
a step is worth counting. What a step needs, whoever writes it:

    VAE      forward; backward to weights and inputs, as much each
    D        forward on x and on every draw of x_hat; backward to its weights
             from both; backward between its layers from both; backward to
             x_hat, for the VAE
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from gamix_jax.config import ConfigDict, image_shape


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
    """Of one image.

    Args:
      edges: do not count the products with padding.
    """
    taps_h, taps_w = (self._taps(n, edges) for n in (self.h, self.w))
    return 2 * taps_h * taps_w * self.c_in * self.c_out

  def _taps(self, n: int, edges: bool) -> int:
    """Of an axis with n outputs: the products along it."""
    if self.transposed:  # n / 2 inputs, each with 3 products, one cut off
      return n // 2 * 3 - (1 if edges else 0)
    lost = 0
    if edges and self.size == 3:
      # Padded by 1 on both sides; SAME of stride 2 on an even axis by 1 only.
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


def _head_channels(config: ConfigDict) -> int:
  return config.model.head_features or max(1, config.model.latent // 8)


def encoder(config: ConfigDict, early: bool) -> list[Conv]:
  """The encoder's and the posterior head's products."""
  features = config.model.encoder_features
  h, w, channels = image_shape(config)
  out = [Conv(h, w, 3, channels, features[0])]
  for c, after in pairwise(features):
    for _ in range(2):
      out += _residual(h, w, c, c, False, early)
    out += _residual(h, w, c, after, True, early)
    h, w = h // 2, w // 2
  top = _head_channels(config)
  out.append(Conv(h, w, 1, features[-1], top))
  k, latent = config.posterior.components, config.model.latent
  outputs = 2 * k * latent
  if config.posterior.name == "mixture":
    outputs += k
  out.append(Conv(1, 1, 1, h * w * top, outputs))
  return out


def decoder(config: ConfigDict) -> list[Conv]:
  """The decoder's products, of one draw."""
  features = config.model.decoder_features
  h, w, _ = image_shape(config)
  halvings = len(features) - 1
  h, w, top = h >> halvings, w >> halvings, _head_channels(config)
  out = [Conv(1, 1, 1, config.model.latent, h * w * top)]
  out.append(Conv(h, w, 3, top, features[0]))
  for c, after in pairwise(features):
    out += _residual(h, w, c, c, False, False)
    out.append(Conv(h, w, 1, c, after))
    h, w = 2 * h, 2 * w
    for c_in in (after, c):
      out.append(Conv(h, w, 3, c_in, after, transposed=True))
  out.append(Conv(h, w, 1, features[-1], features[-1]))
  return out


def discriminator(config: ConfigDict) -> list[Conv]:
  """The discriminator's products, of one image."""
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
  """Of a training step, by part, for each image of the batch.

  Args:
    config: of the run.
    early: whether down blocks take their stride early; None: as the step does.
    edges: do not count products with padding, as XLA's count does not.

  Returns:
    {"vae": ..., "disc": ..., "total": ...}
  """
  if early is None:
    early = config.model.norm in ("affine", "none")
  draws = config.objective.draws * config.posterior.components

  def total(convs):
    return sum(c.flops(edges) for c in convs)

  vae = 3 * (total(encoder(config, early)) + draws * total(decoder(config)))
  disc = 0
  if config.adversarial.loss != "none":
    d = discriminator(config)
    forward, first = total(d), d[0].flops(edges)
    own = 2 * forward + (forward - first)  # forward, weights, between layers
    disc = (1 + draws) * own + draws * forward
  return {"vae": vae, "disc": disc, "total": vae + disc}

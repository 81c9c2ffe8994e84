"""The networks of gamix_jax/networks in PyTorch.

Written in plain PyTorch: NCHW, stored as channels-last, with library layers
where they compute the same. Modules have the names of the Flax parameters, so
that `torch_weights` can copy them.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gamix_jax.config import ConfigDict, image_shape
from gamix_jax.networks import ResNetDecoder, ResNetEncoder
from gamix_jax.networks.norms import EPSILON, MOMENTUM, groups
from gamix_jax.networks.patchgan import LEAKY_SLOPE
from gamix_jax.networks.resnet import POINTWISE_NORMS, bottleneck_channels
from gamix_jax.posterior.base import LOGVAR_RANGE


def promote_f32(x: Tensor) -> Tensor:
  """Returns x in float32, or in float64 if it is float64."""
  return x if x.dtype == torch.float64 else x.float()


class BatchNorm(nn.BatchNorm2d):
  """Batch normalisation; `affine` always uses the stored statistics."""

  def __init__(self, channels: int, affine: bool):
    """`affine` selects which of the two."""
    super().__init__(channels, eps=EPSILON, momentum=1 - MOMENTUM)
    self.stored = affine

  def forward(self, x: Tensor) -> Tensor:
    if self.stored:  # a separate product and sum took 5 % longer
      stored = self.running_mean, self.running_var
      return F.batch_norm(x, *stored, self.weight, self.bias, eps=self.eps)
    return super().forward(x)


class GroupNorm(nn.GroupNorm):
  """Group normalisation with as many groups as an image's size allows."""

  def __init__(self, channels: int):
    """`c` is the number of channels."""
    super().__init__(1, channels, eps=EPSILON)

  def forward(self, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    n = groups((b, h, w, c))
    return F.group_norm(x, n, self.weight, self.bias, self.eps)


def space_to_depth(x: Tensor, p: int) -> Tensor:
  """[b, c, h, w] -> [b, p p c, h/p, w/p]; `pixel_unshuffle` has c p p."""
  if p == 1:
    return x  # in any memory layout
  b, c, h, w = x.shape
  x = x.reshape(b, c, h // p, p, w // p, p).permute(0, 3, 5, 1, 2, 4)
  return x.reshape(b, p * p * c, h // p, w // p)


def depth_to_space(x: Tensor, p: int) -> Tensor:
  """The inverse of `space_to_depth`."""
  if p == 1:
    return x
  b, c, h, w = x.shape
  x = x.reshape(b, p, p, c // p**2, h, w).permute(0, 3, 4, 1, 5, 2)
  return x.reshape(b, c // p**2, h * p, w * p)


def norm(kind: str, channels: int) -> nn.Module:
  """Returns the normalisation layer of a block."""
  if kind == "none":
    return nn.Identity()
  if kind == "group":
    return GroupNorm(channels)
  return BatchNorm(channels, kind == "affine")


class Up(nn.Module):
  """Transposed 3x3 convolution of stride 2, cropped to twice the size."""

  def __init__(self, c_in: int, c_out: int):
    """c_in -> c_out channels."""
    super().__init__()
    self.weight = nn.Parameter(torch.empty(c_in, c_out, 3, 3))
    self.bias = nn.Parameter(torch.empty(c_out))

  def forward(self, x: Tensor) -> Tensor:
    h, w = x.shape[2:]
    x = F.conv_transpose2d(x, self.weight, self.bias, stride=2)
    return x[:, :, : 2 * h, : 2 * w]


class ResidualBlock(nn.Module):
  """The residual block of gamix_jax; strides as early if `down`."""

  def __init__(self, c_in: int, c: int, kind: str, down: bool = False):
    """c_in -> c channels, with the given kind of norm."""
    super().__init__()
    free = kind != "batch"
    self.early = down and kind in POINTWISE_NORMS
    late = 2 if down and not self.early else 1
    self.bn1, self.bn2, self.bn3 = (
      norm(kind, c_in),
      norm(kind, c),
      norm(kind, c),
    )
    self.conv1 = nn.Conv2d(c_in, c, 3, padding=1, bias=free)
    stride = 2 if self.early else 1
    self.conv2 = nn.Conv2d(c, c, 3, padding=1, stride=stride, bias=free)
    self.conv3 = nn.Conv2d(c, c, 1, stride=late)
    self.down = down
    if down:
      self.bn4_shortcut = norm(kind, c_in)
      self.conv4_shortcut = nn.Conv2d(c_in, c, 1, stride=late)

  def forward(self, x: Tensor) -> Tensor:
    y = self.conv1(F.relu(self.bn1(x)))
    y = self.conv2(F.relu(self.bn2(y)))
    y = self.conv3(F.relu(self.bn3(y)))
    if not self.down:
      return x + y
    if self.early:
      x = x[:, :, ::2, ::2]
    return self.conv4_shortcut(F.relu(self.bn4_shortcut(x))) + y


class UpBlock(nn.Module):
  """Doubles height and width."""

  def __init__(self, c_in: int, c: int, kind: str):
    """c_in -> c channels, with the given kind of norm."""
    super().__init__()
    self.bn1, self.bn2 = norm(kind, c_in), norm(kind, c)
    self.bn3_shortcut = norm(kind, c_in)
    self.conv1 = nn.Conv2d(c_in, c, 1, bias=kind != "batch")
    self.conv2_transpose = Up(c, c)
    self.conv3_transpose_shortcut = Up(c_in, c)

  def forward(self, x: Tensor) -> Tensor:
    y = self.conv1(F.relu(self.bn1(x)))
    y = self.conv2_transpose(F.relu(self.bn2(y)))
    return self.conv3_transpose_shortcut(F.relu(self.bn3_shortcut(x))) + y


class Stage(nn.Module):
  """A sequence of blocks, in the order of their names."""

  def __init__(self, **blocks: nn.Module):
    """{name: block}."""
    super().__init__()
    for name, block in blocks.items():
      self.add_module(name, block)

  def forward(self, x: Tensor) -> Tensor:
    for block in self.children():
      x = block(x)
    return x


class Encoder(nn.Module):
  """Images [b, c, h, w] -> features [b, n], in the order h, w, c."""

  def __init__(self, config: ConfigDict):
    """Takes a config that `torch_baseline.check` accepts."""
    super().__init__()
    h, w, channels = image_shape(config)
    features, kind = config.model.encoder_features, config.model.norm
    top, self.patch = bottleneck_channels(config.model), config.model.patch
    factor = self.patch * 2 ** ResNetEncoder.halvings(features)
    self.outputs = h // factor * (w // factor) * top
    self.layernorm = nn.Identity()
    if config.model.input_norm == "layer":
      self.layernorm = nn.LayerNorm((h, w), eps=EPSILON)
    self.stem = nn.Conv2d(channels * self.patch**2, features[0], 3, padding=1)
    stages = {}
    for s, (c, after) in enumerate(itertools.pairwise(features)):
      stages[f"stage{s}"] = Stage(
        block0=ResidualBlock(c, c, kind),
        block1=ResidualBlock(c, c, kind),
        down=ResidualBlock(c, after, kind, down=True),
      )
    self.stages = list(stages)
    for name, stage in stages.items():
      self.add_module(name, stage)
    self.head = nn.Conv2d(features[-1], top, 1)

  def forward(self, x: Tensor) -> Tensor:
    x = self.stem(space_to_depth(self.layernorm(x), self.patch))
    for name in self.stages:
      x = getattr(self, name)(x)
    return self.head(x).permute(0, 2, 3, 1).flatten(1)


class Decoder(nn.Module):
  """Latents [b, d] -> images [b, c, h, w], float32."""

  def __init__(self, config: ConfigDict):
    """Takes a config that `torch_baseline.check` accepts."""
    super().__init__()
    features, kind = config.model.decoder_features, config.model.norm
    self.start = ResNetDecoder.start_shape(config.model, image_shape(config))
    self.patch = config.model.patch
    self.dense = nn.Linear(config.model.latent, math.prod(self.start))
    self.stem = nn.Conv2d(self.start[-1], features[0], 3, padding=1)
    self.stages = []
    for s, (c, after) in enumerate(itertools.pairwise(features)):
      self.stages.append(f"stage{s}")
      stage = Stage(
        block0=ResidualBlock(c, c, kind), up=UpBlock(c, after, kind)
      )
      self.add_module(f"stage{s}", stage)
    size = 1 if self.patch == 1 else 3
    channels = config.data.channels * self.patch**2
    self.out = nn.Conv2d(features[-1], channels, size, padding=size // 2)

  def forward(self, z: Tensor) -> Tensor:
    x = self.dense(z).view(-1, *self.start).permute(0, 3, 1, 2)
    x = self.stem(x)
    for name in self.stages:
      x = getattr(self, name)(x)
    return promote_f32(depth_to_space(self.out(x), self.patch))


class Head(nn.Module):
  """Features [b, n] -> logits [b, k] of pi, mu and logvar [b, k, d]."""

  def __init__(self, config: ConfigDict, inputs: int):
    """`inputs` is n."""
    super().__init__()
    self.k, self.d = config.posterior.components, config.model.latent
    self.mu = nn.Linear(inputs, self.k * self.d)
    self.logvar = nn.Linear(inputs, self.k * self.d)
    if config.posterior.name == "mixture":
      self.logits = nn.Linear(inputs, self.k)
    self.temperature = config.posterior.mixture.temperature

  def forward(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shape = (-1, self.k, self.d)
    mu, logvar = (promote_f32(f(h)).view(shape) for f in (self.mu, self.logvar))
    logits = mu.new_zeros(mu.shape[:2])
    if hasattr(self, "logits"):
      logits = promote_f32(self.logits(h)) / self.temperature
    return logits, mu, logvar.clamp(*LOGVAR_RANGE)


class VAE(nn.Module):
  """Encoder, posterior head and decoder."""

  def __init__(self, config: ConfigDict):
    """Takes a config that `torch_baseline.check` accepts."""
    super().__init__()
    self.encoder, self.decoder = Encoder(config), Decoder(config)
    self.posterior = Head(config, self.encoder.outputs)


class Layer(nn.Module):
  """A discriminator layer; SAME padding, one-sided if strided."""

  def __init__(self, c_in: int, c: int, stride: int, kind: str, last: bool):
    """c_in -> c channels."""
    super().__init__()
    self.stride = stride
    self.conv = nn.Conv2d(c_in, c, 3, stride=stride, bias=kind != "batch")
    normed = not last or kind in ("affine", "batch")
    self.bn = norm(kind if normed else "none", c)
    self.last = last

  def forward(self, x: Tensor) -> Tensor:
    pads = []
    for n in (x.shape[3], x.shape[2]):
      total = max((-(-n // self.stride) - 1) * self.stride + 3 - n, 0)
      pads += [total // 2, total - total // 2]
    if len(set(pads)) == 1:
      conv = self.conv
      x = F.conv2d(x, conv.weight, conv.bias, self.stride, padding=pads[0])
    else:
      x = self.conv(F.pad(x, pads))
    x = self.bn(x)
    return x if self.last else F.leaky_relu(x, LEAKY_SLOPE)


class PatchDiscriminator(nn.Module):
  """Images [b, c, h, w] -> logits [b, 1, p, q], float32."""

  def __init__(self, config: ConfigDict):
    """Takes a config that `torch_baseline.check` accepts."""
    super().__init__()
    model, c_in = config.model, config.data.channels
    last = len(model.discriminator_features) - 1
    pairs = zip(
      model.discriminator_features, model.discriminator_strides, strict=True
    )
    for i, (c, s) in enumerate(pairs):
      self.add_module(f"layer{i}", Layer(c_in, c, s, model.norm, i == last))
      c_in = c

  def forward(self, x: Tensor) -> Tensor:
    for layer in self.children():
      x = layer(x)
    return promote_f32(x)

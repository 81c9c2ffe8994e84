"""The PatchGAN discriminator."""

from collections.abc import Sequence
from typing import Any, Self

import jax
import numpy as np
from flax import linen as nn

from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.networks.parts import Network, NetworkModule, check_features
from gamix_jax.posterior.base import promote_f32

LEAKY_SLOPE = float(np.float32(0.3))  # Keras holds it in float32


class PatchDiscriminator(Network):
  """PatchGAN (Isola et al., arXiv:1611.07004): images -> logits [b, p, q, 1].

  A normalisation follows the last convolution too, as in the reference. With
  `group` and `none` it does not: it would remove the level of the logits.
  """

  keys = (
    "discriminator_features",
    "discriminator_strides",
    "dropout",
    "norm",
  )

  features: Sequence[int] = ()
  strides: Sequence[int] = ()
  dropout: float = 0.0

  @classmethod
  def from_config(
    cls, model: ConfigDict, shape: Sequence[int], **kind: Any
  ) -> Self:
    del shape
    features = model.discriminator_features
    strides = model.discriminator_strides
    if len(features) != len(strides) or not features or features[-1] != 1:
      raise UserError(
        f"model.discriminator_features={features} and _strides={strides} must "
        "be of one length, and the last of the features 1, the logit."
      )
    return cls(
      features=check_features(model, "discriminator_features"),
      strides=check_features(model, "discriminator_strides"),
      dropout=model.dropout,
      norm=model.norm,
      **kind,
    )

  @property
  def joint(self) -> bool:
    """Whether real and fake images must share one pass.

    `batch` needs the statistics of both. `affine` does not, but the published
    run used one pass, and its numbers are kept to the bit.
    """
    return self.norm in ("affine", "batch")

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
    return promote_f32(x)


class Layer(NetworkModule):
  """Conv 3x3, normalisation, leaky ReLU (not in the last), dropout."""

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

"""THE PAPER, 2: encoders, decoders and discriminators.

Images are [b, h, w, c] in [-1, 1]; the decoder's output is not bounded. Read
`vae` first, then `resnet`. A network is a class and one line in a table below.
"""

from gamix_jax.config import ConfigDict, image_shape
from gamix_jax.data.modalities import parse
from gamix_jax.networks.conv import ConvDecoder, ConvEncoder
from gamix_jax.networks.linear import LinearDecoder, LinearEncoder
from gamix_jax.networks.mlp import CodeDiscriminator, MLPDecoder, MLPEncoder
from gamix_jax.networks.norms import NORMS
from gamix_jax.networks.parts import (
  INPUT_NORMS,
  Decoder,
  Encoder,
  Network,
  check_divides,
  check_features,
)
from gamix_jax.networks.patchgan import PatchDiscriminator
from gamix_jax.networks.resnet import ResNetDecoder, ResNetEncoder
from gamix_jax.networks.vae import VAE, VAEOutput
from gamix_jax.registry import Registry

ENCODERS: Registry[type[Encoder]] = Registry("model.encoder")
ENCODERS.register("resnet", ResNetEncoder)
ENCODERS.register("conv", ConvEncoder)
ENCODERS.register("mlp", MLPEncoder)
ENCODERS.register("linear", LinearEncoder)

DECODERS: Registry[type[Decoder]] = Registry("model.decoder")
DECODERS.register("resnet", ResNetDecoder)
DECODERS.register("conv", ConvDecoder)
DECODERS.register("mlp", MLPDecoder)
DECODERS.register("linear", LinearDecoder)

DISCRIMINATORS: Registry[type[Network]] = Registry("model.discriminator")
DISCRIMINATORS.register("patchgan", PatchDiscriminator)


def layer_bytes(c: ConfigDict, batch_size: int | None = None) -> int:
  """Bytes of the output of the encoder's first layer, in float32.

  Args:
    c: the config of the run.
    batch_size: images at a time; by default the training's batch size.

  Raises:
    UserError: if there is no such encoder.
  """
  encoder = ENCODERS.choose(c.model.encoder)
  n = c.data.batch_size if batch_size is None else batch_size
  images = [m.shape for m in parse(c.data.modalities) if m.is_image]
  if not c.data.modalities:
    images = [image_shape(c)]
  sizes = (encoder.first_layer_size(c.model, shape) for shape in images)
  return 4 * n * max(sizes, default=0)


__all__ = [
  "DECODERS",
  "DISCRIMINATORS",
  "ENCODERS",
  "INPUT_NORMS",
  "NORMS",
  "VAE",
  "CodeDiscriminator",
  "ConvDecoder",
  "ConvEncoder",
  "Decoder",
  "Encoder",
  "LinearDecoder",
  "LinearEncoder",
  "MLPDecoder",
  "MLPEncoder",
  "Network",
  "PatchDiscriminator",
  "ResNetDecoder",
  "ResNetEncoder",
  "VAEOutput",
  "check_divides",
  "check_features",
  "layer_bytes",
]

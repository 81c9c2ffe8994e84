"""THE PAPER, 2: encoder, decoder and discriminator, as functions.

Images are [b, h, w, c] in [-1, 1]; the decoder's output is not bounded. Read
`vae` first, then `resnet`.
"""

from gamix_jax.networks.conv import ConvDecoder, ConvEncoder
from gamix_jax.networks.linear import LinearDecoder, LinearEncoder
from gamix_jax.networks.mlp import MLPDecoder, MLPEncoder
from gamix_jax.networks.parts import INPUT_NORMS, NORMS
from gamix_jax.networks.patchgan import PatchDiscriminator
from gamix_jax.networks.resnet import Decoder, Encoder
from gamix_jax.networks.vae import VAE

__all__ = [
  "INPUT_NORMS",
  "NORMS",
  "VAE",
  "ConvDecoder",
  "ConvEncoder",
  "Decoder",
  "Encoder",
  "LinearDecoder",
  "LinearEncoder",
  "MLPDecoder",
  "MLPEncoder",
  "PatchDiscriminator",
]

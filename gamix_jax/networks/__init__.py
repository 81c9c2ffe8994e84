"""THE PAPER, 2: encoder, decoder and discriminator, as functions.

Images are [b, h, w, c] in [-1, 1]; the decoder's output is not bounded. Read
`vae` first, then `resnet`.
"""

from gamix_jax.networks.linear import LinearDecoder, LinearEncoder
from gamix_jax.networks.parts import NORMS
from gamix_jax.networks.patchgan import PatchDiscriminator
from gamix_jax.networks.resnet import Decoder, Encoder
from gamix_jax.networks.vae import VAE

__all__ = [
  "NORMS",
  "VAE",
  "Decoder",
  "Encoder",
  "LinearDecoder",
  "LinearEncoder",
  "PatchDiscriminator",
]

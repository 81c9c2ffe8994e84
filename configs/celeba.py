"""CelebA at 64x64: the centre 140 pixels of the aligned faces, as is usual.

  python -m gamix_jax.main --config=configs/celeba.py --workdir=runs/celeba

Needs a GPU or TPU (1.4e17 operations; an hour or two, by count), and the
download that TFDS makes of CelebA. That often fails by Google Drive's quota:
get img_align_celeba.zip by hand, unpack it and add
--config.data.source=folder:/data/img_align_celeba.

Not the published preset: weights by the number of pixels instead of by image,
and the population matched with its correlations, so that samples from N(0, I)
are near the codes. The proportions are those of a first experiment on 32x32
grey faces (64 latents, batch 64: recon 400, population_kl 1, collapse 0.2); not
tuned on CelebA yet.
"""

from gamix_jax import config as gamix
from gamix_jax import presets


def get_config(variant: str = ""):
  """`tiny`: 3 steps on synthetic images."""
  config = gamix.base()
  config.steps = 100_000
  config.dtype = "bfloat16"
  config.log_every = 200
  config.eval_every = config.checkpoint.every = 5_000
  config.data.source = "tfds:celeb_a"
  config.data.image_size = 64
  config.data.crop = 140
  config.data.batch_size = 128
  config.data.cache = "memory"
  config.model.latent = 128
  config.model.encoder_features = (64, 128, 128, 128, 128)
  config.model.decoder_features = (128, 128, 128, 64, 3)
  config.model.discriminator_features = (64, 128, 128, 64, 1)
  config.model.discriminator_strides = (2, 2, 1, 1, 1)
  config.model.head_features = 64
  presets.at_size(config, recon=0.39, population=0.0025, collapse=0.2)
  return presets.variant(config, variant)

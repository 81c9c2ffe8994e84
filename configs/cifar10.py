"""CIFAR-10, 32x32 in colour.

  pip install -e '.[tfds]'    # once: TFDS prepares CIFAR-10 with TensorFlow
  python -m gamix_jax.main --config=configs/cifar10.py --workdir=runs/cifar10

Needs a GPU or TPU for its 50,000 steps (2e16 operations; well under an hour, by
count). Not the published preset: weights by the number of pixels, and the
population matched with its correlations, as in configs/celeba.py. Not tuned on
CIFAR-10 yet.
"""

from gamix_jax import config as gamix
from gamix_jax import presets


def get_config(variant: str = ""):
  """`tiny`: 3 steps on synthetic images."""
  config = gamix.base()
  config.steps = 50_000
  config.dtype = "bfloat16"
  config.log_every = 200
  config.eval_every = config.checkpoint.every = 5_000
  config.data.source = "tfds:cifar10"
  config.data.image_size = 32
  config.data.batch_size = 128
  config.data.cache = "memory"
  config.model.latent = 128
  config.model.encoder_features = (64, 128, 128, 128)
  config.model.decoder_features = (128, 128, 64, 3)
  config.model.discriminator_features = (64, 128, 64, 1)
  config.model.discriminator_strides = (2, 1, 1, 1)
  config.model.head_features = 32
  presets.at_size(config, recon=0.39, population=0.0025, collapse=0.2)
  return presets.variant(config, variant)

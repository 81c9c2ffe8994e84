"""Fashion-MNIST, 28x28 grey.

  pip install -e '.[tfds]'    # once: TFDS prepares it with TensorFlow
  python -m gamix_jax.main --config=configs/fashion_mnist.py \
      --workdir=runs/fashion_mnist

Time, other sources and weights: see configs/mnist.py, with which it shares all
but the pictures (here mirrored, and never trained to the end yet).
"""

from gamix_jax import config as gamix
from gamix_jax import presets


def get_config(variant: str = ""):
  """`tiny`: 3 steps on synthetic images."""
  config = gamix.base()
  config.steps = 20_000
  config.log_every = 100
  config.eval_every = config.checkpoint.every = 2_000
  config.data.source = "tfds:fashion_mnist"
  config.data.image_size = 28
  config.data.channels = 1
  config.data.batch_size = 128
  config.data.cache = "memory"
  config.model.latent = 16
  config.model.encoder_features = (16, 32, 64)
  config.model.decoder_features = (64, 32, 1)
  config.model.discriminator_features = (16, 32, 1)
  config.model.discriminator_strides = (2, 2, 1)
  presets.at_size(config)
  return presets.variant(config, variant)

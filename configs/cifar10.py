"""CIFAR-10, 32x32 in colour.

  python -m gamix_jax.main --config=configs/cifar10.py --workdir=runs/cifar10

TFDS needs TensorFlow once, to prepare CIFAR-10: pip install -e '.[tfds]'. A
folder of images can be used instead: --config.data.source=folder:data/cifar10.

10,000 images of the JPEG subset (5 to 25 minutes of one CPU core), three seeds:
mean absolute error 0.149; Frechet distance on the classifier's features 1.0 for
reconstructions and 2.7 for samples from N(0, I), which are blurred patches of
colour. The ELBO has 0.158, 2.0 and 2.3; see docs/results.md.
"""

from gamix_jax import config as gamix
from gamix_jax import presets


def get_config(variant: str = ""):
  """Returns the config; variant `tiny`: 3 steps on synthetic images."""
  config = gamix.base()
  presets.ours(config, "small")
  config.steps = 15_000
  config.log_every = 200
  config.eval_every = config.checkpoint.every = 2_500
  config.data.source = "tfds:cifar10"
  config.data.image_size = 32
  config.data.batch_size = 64
  config.data.cache = "memory"
  # Larger and smaller weights sample worse; see docs/results.md.
  config.preset_weights.population_kl = 1.0
  return presets.variant(config, variant)

"""Your own images: JPEG, PNG or WebP in a folder, in any nesting."""

from gamix_jax import config as gamix
from gamix_jax import presets


def get_config(variant: str = ""):
  """`tiny`: 3 steps on synthetic images."""
  config = gamix.base()
  presets.ours(config, "small")
  config.steps = 20_000
  config.log_every = 200
  config.eval_every = config.checkpoint.every = 2_500
  config.data.source = "folder:data/images"
  config.data.image_size = 64
  config.data.batch_size = 64
  config.data.cache = "memory"
  return presets.variant(config, variant)

"""CelebA at 64x64: the usual centre crop of 140 pixels of the aligned faces.

  python -m gamix_jax.main --config=configs/celeba.py --workdir=runs/celeba

For a GPU. No complete run with this code exists yet. TFDS downloads CelebA from
Google Drive, which often fails because of its quota. In that case download
img_align_celeba.zip manually and add
--config.data.source=zip:/data/img_align_celeba.zip. On a CPU use
--config.preset=small, see configs/folder.py.
"""

from gamix_jax import config as gamix
from gamix_jax import presets


def get_config(variant: str = ""):
  """Returns the config; variant `tiny`: 3 steps on synthetic images."""
  config = gamix.base()
  presets.ours(config, "base")
  config.steps = 100_000
  config.dtype = "bfloat16"
  config.log_every = 200
  config.eval_every = config.checkpoint.every = 5_000
  config.data.source = "tfds:celeb_a"
  config.data.image_size = 64
  config.data.crop = 140
  config.data.batch_size = 128
  config.data.cache = "memory"
  return presets.variant(config, variant)

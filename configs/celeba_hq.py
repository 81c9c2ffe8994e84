"""The published run: CelebA-HQ at 256x256, all values as in the reference.

  python -m gamix_jax.main --config=configs/celeba_hq.py \
      --config.data.source=folder:/data/celeba_hq --workdir=runs/celeba_hq

It needs a folder with the 30,000 images of CelebA-HQ (24,000 for training, the
rest held out), and a GPU or TPU: training takes 551 GFLOP per image, with 20
images per step and 240,000 steps 2.6e18 operations. The reference needed about
13 minutes for 24,000 images on one RTX 3090. No complete run with this code
exists yet.
"""

from gamix_jax import config as gamix
from gamix_jax import presets


def get_config(variant: str = ""):
  """Returns the config; variant `tiny`: 3 steps on synthetic images."""
  config = gamix.base()  # the defaults are the published run
  config.data.source = "folder:data/celeba_hq"
  config.checkpoint.every = config.eval_every = 6_000  # 5 epochs
  return presets.variant(config, variant)

"""The published run: CelebA-HQ at 256x256, every number as the reference ran.

  python -m gamix_jax.main --config=configs/celeba_hq.py \
      --config.data.source=folder:/data/celeba_hq --workdir=runs/celeba_hq

Needs the 30,000 images of CelebA-HQ in a folder (24,000 are trained on, the
rest held out), and a GPU or TPU: a step costs 20 images of 551 GFLOP, the whole
run 240,000 steps, 2.6e18 operations. The reference took about 13 minutes for
24,000 images on one RTX 3090. Not trained to the end with this code yet.
"""

from gamix_jax import config as gamix
from gamix_jax import presets


def get_config(variant: str = ""):
  """`tiny`: 3 steps on synthetic images."""
  config = gamix.base()  # the defaults are the published run
  config.data.source = "folder:data/celeba_hq"
  config.checkpoint.every = config.eval_every = 6_000  # 5 epochs
  return presets.variant(config, variant)

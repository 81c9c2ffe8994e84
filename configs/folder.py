"""Your own images (JPEG, PNG, WebP, BMP, TIFF) in a folder or its subfolders.

  python -m gamix_jax.main --config=configs/folder.py \
      --config.data.source=folder:/data/images --workdir=runs/images

Images are cropped to the centre square and resized to 64x64 in colour.
Subfolders train/ and test/ define the split; without them a fifth is held out
by a hash of the names. Networks and weights adapt to --config.data.image_size
(32, 64, 128, 256, or a pair), --config.data.channels=1 (grey) and
--config.preset: small for a CPU, base and large for a GPU.

Results for 11,864 grey faces of 64x64 after all 20,000 steps, three seeds:
held-out mean absolute error 0.076; samples from N(0, I) are blurred faces of
different people, about one in six distorted. They took 3:20 minutes of an H200
that trained other models beside it; one CPU core needs 557 CPU-seconds for the
first 11,407 (0.078; benchmarks.quality, one seed). With
--config.preset=base, whose discriminator starts after half of the steps, in 9
minutes of a GPU: 0.079, and sharp faces, some with speckles around the eyes. No
complete run with large exists yet.
"""

from gamix_jax import config as gamix
from gamix_jax import presets


def get_config(variant: str = ""):
  """Returns the config; variant `tiny`: 3 steps on synthetic images."""
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

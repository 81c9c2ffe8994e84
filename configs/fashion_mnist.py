"""Fashion-MNIST, 28x28 grey.

  python -m gamix_jax.main --config=configs/fashion_mnist.py \
      --config.data.source=idx:/usr/share/datasets/fashion-mnist \
      --workdir=runs/fashion_mnist

That folder is where Debian's package dataset-fashion-mnist puts the four idx
files; tfds:fashion_mnist is another source. By count of steps, 30 CPU-minutes.
Reached in a third of that, 600 CPU-seconds of one core (benchmarks.quality, one
seed): mean absolute error 0.105, Frechet distance on the classifier's features
0.054 of reconstructions and 0.87 of samples from N(0, I), most of which are
recognisable garments.
"""

from gamix_jax import config as gamix
from gamix_jax import presets


def get_config(variant: str = ""):
  """`tiny`: 3 steps on synthetic images."""
  config = gamix.base()
  presets.ours(config, "small")
  config.steps = 40_000
  config.log_every = 500
  config.eval_every = config.checkpoint.every = 5_000
  config.data.source = "idx:data/fashion_mnist"
  config.data.image_size = 28
  config.data.channels = 1
  config.data.batch_size = 128
  config.data.flip = False  # shoes point to the left
  config.data.cache = "memory"
  # Its samples were better than the population forms', see docs/results.md.
  config.objective.name = "elbo"
  config.objective.reconstruction = "bernoulli"
  return presets.variant(config, variant)

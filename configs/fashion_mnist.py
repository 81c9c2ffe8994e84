"""Fashion-MNIST, 28x28 grey.

  python -m gamix_jax.main --config=configs/fashion_mnist.py \
      --config.data.source=idx:/usr/share/datasets/fashion-mnist \
      --workdir=runs/fashion_mnist

Debian's package dataset-fashion-mnist installs the four idx files in that
folder; tfds:fashion_mnist is another source. The complete run takes about 30
CPU-minutes. Results after a third of that, 600 CPU-seconds of one core
(benchmarks.quality, one seed): mean absolute error 0.105; Frechet distance on
the classifier's features 0.054 for reconstructions and 0.87 for samples from
N(0, I), most of which are recognisable garments.
"""

from gamix_jax import config as gamix
from gamix_jax import presets


def get_config(variant: str = ""):
  """Returns the config; variant `tiny`: 3 steps on synthetic images."""
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
  # Codes of few kinds of garments form clusters, which forms that see two
  # moments cannot pull apart; see docs/results.md.
  config.objective.population = "kernel"
  config.objective.reconstruction = "bernoulli"
  config.preset_weights.population_kl = 100.0
  config.preset_weights.collapse_penalty = 0.03
  return presets.variant(config, variant)

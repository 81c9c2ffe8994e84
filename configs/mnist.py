"""MNIST, 28x28 grey.

  python -m gamix_jax.main --config=configs/mnist.py \
      --config.data.source=idx:data/mnist --workdir=runs/mnist

The folder holds MNIST's own four files (train-images-idx3-ubyte and so on),
gzip-compressed or not; other sources are npz:mnist.npz and tfds:mnist. By count
of steps, 20 CPU-minutes: ten minutes on two cores. Reached in half of that, 600
CPU-seconds of one core (benchmarks.quality, one seed): mean absolute error
0.057, Frechet distance on the classifier's features 0.11 of reconstructions
and 0.70 of samples from N(0, I), about half of which read as digits.
"""

from gamix_jax import config as gamix
from gamix_jax import presets


def get_config(variant: str = ""):
  """`tiny`: 3 steps on synthetic images."""
  config = gamix.base()
  presets.ours(config, "small")
  config.steps = 26_000
  config.log_every = 500
  config.eval_every = config.checkpoint.every = 5_000
  config.data.source = "idx:data/mnist"
  config.data.image_size = 28
  config.data.channels = 1
  config.data.batch_size = 128
  config.data.flip = False
  config.data.cache = "memory"
  config.objective.reconstruction = "bernoulli"
  config.preset_weights.population_kl = 30.0
  config.preset_weights.collapse_penalty = 0.3
  return presets.variant(config, variant)

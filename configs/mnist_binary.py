"""Binary MNIST with the standard VAE: ln p(x) to compare with the literature.

  python -m gamix_jax.main --config=configs/mnist_binary.py \
      --config.data.source=idx:data/mnist --workdir=runs/mnist_binary

Pixels are black or white at random, by their grey level, anew in each step. The
networks are those of Burda et al., arXiv:1509.00519, section 5 (784-200-200-50,
with ReLU in place of tanh). 100 epochs, 10 minutes of two CPU cores, reach an
ELBO of -95.7 nats and an importance-weighted bound of 1,000 draws of -90.7
(10,000 test images, seed 0). Burda et al. train for 3,280 epochs (-86.8, 5,000
draws). The bounds of all test images:

  python -m gamix_jax.evaluate --workdir=runs/mnist_binary \
      --config.eval.bound_images=10000 --config.eval.draws=1000

The importance-weighted bound with five draws is trained with
--config.objective.name=siwae --config.objective.num_samples=5, and a VampPrior
with --config.prior.name=vamp --config.prior.components=500.
"""

from gamix_jax import config as gamix
from gamix_jax import presets


def get_config(variant: str = ""):
  """Returns the config; variant `tiny`: 3 steps on synthetic images."""
  config = gamix.base()
  presets.ours(config, "small")
  config.steps = 60_000
  config.log_every = 1_000
  config.eval_every = config.checkpoint.every = 15_000
  config.eval_draws = 64
  config.data.source = "idx:data/mnist"
  config.data.image_size = 28
  config.data.channels = 1
  config.data.batch_size = 100
  config.data.binarize = "dynamic"
  config.data.flip = False
  config.data.cache = "memory"
  config.model.encoder = config.model.decoder = "mlp"
  config.model.encoder_features = (200, 200)
  config.model.decoder_features = (200, 200)
  config.model.latent = 50
  config.model.norm = "none"
  config.objective.name = "elbo"
  config.objective.reconstruction = "bernoulli"
  config.optim.vae.learning_rate = 1e-3
  return presets.variant(config, variant)

"""What the files of configs/ share: weights at another size, `tiny`."""

from gamix_jax.config import ConfigDict, image_shape
from gamix_jax.errors import UserError


def at_size(
  config: ConfigDict,
  recon: float = 0.78,
  population: float = 0.05,
  collapse: float = 1.0,
) -> ConfigDict:
  """Sets what the published preset would have at another size and purpose.

  The published 5000 belongs to 256x256x3 numbers (0.0254 each). Weights here
  go with the numbers of an image; the population is matched with its
  correlations, with weight enough that N(0, I) is where the codes are; and the
  optimiser is quicker than the published 1e-4. The defaults were found on
  16x16 digits (configs/digits.py), with 6 latents and a batch of 64.

  More latents than about the square root of the batch need a smaller
  `population`: the correlations of a small batch are mostly chance, and a
  heavy weight on them teaches the encoder to say nothing (seen with 64 latents
  and a batch of 32 at 0.05).

  Args:
    config: with `data.image_size` and `data.channels` set.
    recon: weight of `recon` per number of an image. A larger one gives closer
      reconstructions and codes that fill N(0, I) less well.
    population: weight of `population_kl` per weight of `recon`.
    collapse: weight of `collapse`.
  """
  h, w, c = image_shape(config)
  config.objective.population = "debiased"
  weight = float(round(recon * h * w * c))
  config.weights.update(
    recon=weight,
    population_kl=population * weight,
    collapse=collapse,
    fool=weight / 100,
    real=1.0,  # Adam divides a scale out
    fake=1.0,
  )
  for net in config.optim:
    config.optim[net].update(name="adam", learning_rate=1e-3, eps=1e-8)
  config.optim.vae.b1 = 0.9
  return config


def variant(config: ConfigDict, name: str) -> ConfigDict:
  """The config of `--config=FILE:name`: itself, or its tiny variant.

  `tiny` keeps a config's objective and kind of image, and shrinks what costs:
  3 steps of narrow networks on small synthetic images.

  Raises:
    UserError: another name.
  """
  if not name:
    return config
  if name != "tiny":
    raise UserError(f"--config=...:{name}: the one variant is 'tiny'.")
  config.steps = 3
  config.log_every = config.eval_every = config.checkpoint.every = 1
  config.eval_images, config.eval_draws = 8, 2
  config.data.source = "synthetic"
  config.data.batch_size = 8
  halvings = min(len(config.model.encoder_features) - 1, 1)
  config.data.image_size = 4 * 2**halvings
  config.model.latent = 4
  config.model.head_features = 0
  config.model.encoder_features = (4,) * (halvings + 1)
  config.model.decoder_features = (4,) * halvings + (config.data.channels,)
  config.model.discriminator_features = (4, 1)
  config.model.discriminator_strides = (2, 1)
  return config

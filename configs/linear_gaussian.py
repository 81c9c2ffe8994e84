"""Five modalities of a linear Gaussian model, whose likelihood is known.

    python -m gamix_jax.main --config=configs/linear_gaussian.py \
        --workdir=runs/linear_gaussian

The simulation of Hirt et al., arXiv:2309.00380: 5 latents, modalities of 30 to
59 numbers, noise of variance 1. Widths, batch and optimiser are theirs; they
train for 40,000 steps. `gamix_jax.evaluate` compares with the exact ln p(x).

--config.multimodal.fusion=attention, poe_prior, moe, ... and
--config.objective.name=mixture_bound (with --config.weights.subset_kl=None)
are what they compare.
"""

from ml_collections import ConfigDict

from gamix_jax import presets
from gamix_jax.config import base
from gamix_jax.data.linear_gaussian import sizes

LATENT = 5


def get_config(variant: str = "") -> ConfigDict:
  """Returns the config.

  Args:
    variant: "tiny" for a run of three steps, see `presets.variant`.
  """
  # With the default weight of l2 the noise has variance 1.
  modalities = [f"x{i} {n} l2" for i, n in enumerate(sizes())]
  c = presets.multimodal(base(), modalities)
  c.steps = 10_000
  c.log_every = 500
  c.eval_every = c.checkpoint.every = 5_000
  c.data.source = "linear_gaussian"
  c.data.batch_size = 500

  c.model.latent = LATENT
  c.multimodal.vector_encoder_features = (256, 256)
  c.multimodal.vector_decoder_features = ()
  c.multimodal.fusion = "sum_pooling"
  c.multimodal.width = 256

  c.objective.name = "masked"
  c.multimodal.subsets = "uniform_size"
  c.weights.kl = 1.0
  c.weights.subset_kl = 1.0

  # Without them attention diverges with some seeds.
  c.optim.vae.update(clip=10.0, warmup=200, schedule="cosine")
  return presets.variant(c, variant)

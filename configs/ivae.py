"""Nonlinear ICA from two modalities, with a learned mixture prior.

    python -m gamix_jax.main --config=configs/ivae.py --workdir=runs/ivae

The bimodal simulation of Hirt et al., arXiv:2309.00380: points in R^2, mixed by
a network from two sources whose scale depends on the segment, and the segment.
Widths, batch and learning rate are theirs; they train for 64,000 steps.
`gamix_jax.evaluate` reports how well the sources were found (MCC).
"""

from ml_collections import ConfigDict

from gamix_jax import presets
from gamix_jax.config import base

NOISE = 0.1  # standard deviation of the observations


def get_config(variant: str = "") -> ConfigDict:
  """Returns the config.

  Args:
    variant: "tiny" for a run of three steps, see `presets.variant`.
  """
  weight = 2 / (2 * NOISE**2)  # of 2 numbers with this noise
  c = presets.multimodal(
    base(), [f"x 2 l2 {weight:g}", "segment 5 categorical"]
  )
  c.steps = 20_000
  c.log_every = 1_000
  c.eval_every = c.checkpoint.every = 10_000
  c.data.source = "ivae"
  c.data.batch_size = 250

  c.model.latent = 2
  c.multimodal.vector_encoder_features = (128, 128)
  c.multimodal.vector_decoder_features = (128, 128)
  c.multimodal.fusion = "sum_pooling"
  c.multimodal.width = 128
  c.prior.name = "mixture"
  c.prior.components = 5

  c.objective.name = "masked"
  c.multimodal.subsets = "uniform_size"
  c.weights.kl = 1.0
  c.weights.subset_kl = 1.0

  c.optim.vae.update(learning_rate=5e-4)
  return presets.variant(c, variant)

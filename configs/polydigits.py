"""Five views of a digit, with MMVM: a first multimodal run, without a download.

    python -m gamix_jax.main --config=configs/polydigits.py

Each view is another image of the same class on a background of its own, 16x16
in colour, made from scikit-learn's digits.
"""

from ml_collections import ConfigDict

from gamix_jax import presets
from gamix_jax.config import base

VIEWS = 5


def get_config(variant: str = "") -> ConfigDict:
  """Returns the config.

  Args:
    variant: "tiny" for a run of three steps, see `presets.variant`.
  """
  c = base()
  c.steps = 1500
  c.log_every = 100
  c.eval_every = 500
  c.checkpoint.every = 500
  c.data.source = "polydigits"
  c.data.modalities = tuple(f"m{i} 16x16x3 l1 500" for i in range(VIEWS))
  c.data.batch_size = 64
  c.data.flip = False
  c.model.encoder = c.model.decoder = "conv"
  c.model.encoder_features = (32, 64)
  c.model.decoder_features = (64, 32)
  c.model.norm = "none"
  c.model.input_norm = "none"
  c.model.upsample_gain = 2.0
  c.model.patch = 2
  c.model.latent = 16
  c.posterior.initial_logvar = -4.0
  c.multimodal.fusion = "separate"
  c.objective.name = "mmvm_population"
  c.objective.population = "debiased"
  c.weights.update({
    **dict.fromkeys(c.weights),
    "recon": 1.0,
    "kl": 1.0,
    "population_kl": 3.0,
    "collapse_penalty": 0.1,
  })
  c.adversarial.loss = "none"
  for net in c.optim:
    c.optim[net].update(name="adam", eps=1e-8, warmup=100, schedule="cosine")
  c.optim.vae.update(b1=0.9, learning_rate=2e-3)
  return presets.variant(c, variant)

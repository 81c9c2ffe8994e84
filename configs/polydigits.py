"""Five views of a digit, with MMVM: a first run of several modalities.

    python -m gamix_jax.main --config=configs/polydigits.py \
        --workdir=runs/polydigits

Each view is another image of the same class on a background of its own, 16x16
in colour, made from scikit-learn's digits: nothing is downloaded.
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
  c = presets.multimodal(base(), [f"m{i} 16x16x3 l1" for i in range(VIEWS)])
  c.steps = 3_000
  c.eval_every = c.checkpoint.every = 1_000
  c.data.source = "polydigits"
  c.data.batch_size = 64

  c.model.latent = 16
  c.model.patch = 2
  c.model.encoder_features = (32, 64)
  c.model.decoder_features = (64, 32)

  c.multimodal.fusion = "separate"
  # The exact sum saturates while posteriors are far apart, so that nothing
  # pulls them together; the surrogate does not.
  c.objective.name = "mmvm_population"
  c.objective.mmvm.estimate = "surrogate"
  c.objective.population = "debiased"
  c.weights.kl = 1.0
  c.weights.population_kl = 3.0
  c.weights.collapse_penalty = 0.1

  c.optim.vae.update(learning_rate=2e-3, warmup=100, schedule="cosine")
  return presets.variant(c, variant)

"""PolyMNIST, translated, three views, with MMVM.

    python -m gamix_jax.main --config=configs/polymnist.py \
        --config.data.source="polymnist:idx:/data/mnist?translated=1" \
        --workdir=runs/polymnist

The folder holds MNIST's four files (*-ubyte, packed or not). Each view shows
another image of the same class on a background of its own, 28x28 in colour; in
the translated variant at 3/4 of its size, at a random place (arXiv:2403.05300).
"""

from ml_collections import ConfigDict

from gamix_jax import presets
from gamix_jax.config import base

VIEWS = 3


def get_config(variant: str = "") -> ConfigDict:
  """Returns the config.

  Args:
    variant: "tiny" for a run of three steps, see `presets.variant`.
  """
  c = presets.multimodal(base(), [f"m{i} 28x28x3 l1" for i in range(VIEWS)])
  c.steps = 3_000
  c.eval_every = c.checkpoint.every = 1_000
  c.data.source = "polymnist:tfds:mnist?translated=1"
  c.data.batch_size = 128

  c.model.latent = 64
  c.model.patch = 2
  c.model.encoder_features = (32,)
  c.model.decoder_features = (32,)

  c.multimodal.fusion = "separate"
  c.objective.name = "mmvm"
  c.objective.mmvm.estimate = "surrogate"
  c.weights.kl = 1.0

  c.optim.vae.update(warmup=100, schedule="cosine")
  return presets.variant(c, variant)

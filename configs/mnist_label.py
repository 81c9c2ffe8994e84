"""MNIST's images and their labels, with attention between them.

    python -m gamix_jax.main --config=configs/mnist_label.py \
        --config.data.source=mnist_label:idx:/data/mnist \
        --workdir=runs/mnist_label

The folder holds MNIST's four files (*-ubyte, packed or not); Fashion-MNIST's
have the same names. mnist_label:digits takes scikit-learn's 8x8 digits, with
--config.data.modalities="('image 8x8x1 bernoulli','digit 10 categorical size')"
and needs no files.
"""

from ml_collections import ConfigDict

from gamix_jax import presets
from gamix_jax.config import base


def get_config(variant: str = "") -> ConfigDict:
  """Returns the config.

  Args:
    variant: "tiny" for a run of three steps, see `presets.variant`.
  """
  c = presets.multimodal(
    base(), ["image 28x28x1 bernoulli", "digit 10 categorical size"]
  )
  c.steps = 3_000
  c.eval_every = c.checkpoint.every = 1_000
  c.data.source = "mnist_label:tfds:mnist"
  c.data.batch_size = 128

  c.model.latent = 16
  c.model.update(encoder="mlp", decoder="mlp", upsample_gain=1.0)
  c.model.encoder_features = c.model.decoder_features = (512, 512)
  c.multimodal.vector_encoder_features = (128, 128)
  c.multimodal.vector_decoder_features = (128, 128)
  c.multimodal.fusion = "attention"
  c.multimodal.width = 128

  c.objective.name = "masked"
  c.multimodal.subsets = "uniform_size"
  c.weights.kl = 1.0
  c.weights.subset_kl = 1.0

  c.optim.vae.update(warmup=100, schedule="cosine")
  return presets.variant(c, variant)

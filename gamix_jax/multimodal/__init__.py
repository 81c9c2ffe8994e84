"""VAEs of several modalities, any of which may be missing.

`fusion` combines what the encoders say about the observed modalities into one
posterior, `posteriors` has the families that only such models need, `subsets`
draws random subsets of the observed modalities, and `model` is the VAE. The
objectives are in `objectives`, with those of one modality.
"""

from gamix_jax.multimodal.build import vae
from gamix_jax.multimodal.fusion import FUSIONS, Fusion
from gamix_jax.multimodal.model import MultimodalOutput, MultimodalVAE
from gamix_jax.multimodal.posteriors import (
  RandomComponent,
  Separate,
  WithPrivate,
)
from gamix_jax.multimodal.subsets import SUBSETS

__all__ = [
  "FUSIONS",
  "SUBSETS",
  "Fusion",
  "MultimodalOutput",
  "MultimodalVAE",
  "RandomComponent",
  "Separate",
  "WithPrivate",
  "vae",
]

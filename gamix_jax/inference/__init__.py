"""The inference API of a trained model, for notebooks and other commands.

    model = gamix_jax.load("runs/digits")
    q = model.encode(images)                    # the posterior q(z | x)
    pictures = model.decode(q.mean())
    pictures = model.sample(jax.random.key(0), 16)

Input images are uint8 or floats in [-1, 1], shaped [b, h, w, c] or [h, w, c],
as NumPy or JAX arrays. Output images are NumPy float32 arrays in [-1, 1]. The
devices hold `batch_size` images at a time, however many are passed.

A run of several modalities has a `MultimodalModel`, which takes dicts of
arrays, of any subset of the modalities, and returns such dicts.

Reading order:

  load         loads a workdir's config and weights
  model        `Model`: the inference API of images
  multimodal   `MultimodalModel`: that of several modalities
  base         what both share
  arrays       validates observations and latents
  device       runs the networks on this process's devices, in chunks
  likelihood   lower bounds of ln p(x)
  samplers     fits, saves and reads samplers of q(z)
  sources      all latent sources of one model
  fitting      fits samplers to a run's own training data
  latents      interpolation, traversal and 2D projections
"""

from gamix_jax.inference.load import load
from gamix_jax.inference.model import Model
from gamix_jax.inference.multimodal import MultimodalModel

__all__ = ["Model", "MultimodalModel", "load"]

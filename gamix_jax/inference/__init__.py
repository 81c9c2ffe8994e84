"""A trained model, as notebooks and the other commands use it.

    model = gamix_jax.load("runs/digits")
    q = model.encode(images)                    # the posterior q(z | x)
    pictures = model.decode(q.mean())
    pictures = model.sample(jax.random.key(0), 16)

Images go in as uint8 or as floats in [-1, 1], [b, h, w, c] or one [h, w, c], of
numpy or of JAX; they come out as numpy, float32 in [-1, 1]. Whatever the number
of images, the devices hold `batch_size` of them at a time.

Read in this order:

  load         a workdir's config and weights
  model        `Model`: all that can be asked of it
  arrays       what comes in, checked
  device       the networks on this process's devices, a chunk at a time
  likelihood   the bounds of ln p(x)
  samplers     where latents come from besides the prior: fitted, kept, read
  sources      all such sources of one model
  fitting      them fitted to a run's own training images
  ways         between latents and around one
  maps         latents in the plane
"""

from gamix_jax.inference.load import load
from gamix_jax.inference.model import Model

__all__ = ["Model", "load"]

"""Computes a model's outputs on all emulated devices.

test_inference runs it with a workdir and the .npz to write.
"""

import sys

import jax
import numpy as np

import gamix_jax


def answers(workdir):
  """Returns {name: array} for 10 images, which do not divide by 8 devices."""
  model = gamix_jax.load(workdir, batch_size=16)
  rng = np.random.default_rng(0)
  x = rng.uniform(-1, 1, (10, *model.spec.image.shape)).astype("f4")
  key = jax.random.key(1)
  rows = model._device.by_chunks(lambda x: x, x)
  np.testing.assert_array_equal(rows, x)
  seen = set()
  model._device.by_chunks(lambda x: seen.update(x.devices()) or x, x)
  q = model.encode(x)
  return {
    "devices": len(seen),
    "mean": q.mean(),
    "x_hat": model.decode(q.mean()),
    "sample": model.sample(key, 5),
    "line": model.traverse(x[0], 1),
    "bound": model.log_likelihood(x, 6),
  }


if __name__ == "__main__":
  np.savez(sys.argv[2], **answers(sys.argv[1]))

"""Steps on the number of emulated devices there are; run by test_step.

Writes every number of the run to the .npz named.
"""

import sys
from functools import partial

import jax
import numpy as np
from conftest import QUICK, images, run_of, small

from gamix_jax import mesh, step


def config():
  """All that sums over the batch: statistics, moments, memory, strata."""
  return small(
    data__batch_size=16,
    model__norm="batch",
    model__discriminator_features=(1,),
    model__discriminator_strides=(2,),
    posterior__name="mixture",
    posterior__components=2,
    objective__population="covariance",
    objective__memory=0.5,
    optim__vae__learning_rate=1e-2,
    optim__disc__learning_rate=1e-2,
    # A bias that batch statistics take out again has rounding for a gradient,
    # and Adam's step would be its sign.
    optim__vae__eps=1e-2,
    optim__disc__eps=1e-2,
  )


def history():
  """{name: array} of all metrics and of the last state."""
  run = run_of(config())
  grid = mesh.make(16)
  whole, rows = mesh.replicated(grid), mesh.by_rows(grid)
  train = jax.jit(
    partial(step.train_step, run.recipe),
    in_shardings=(whole, rows),
    out_shardings=(whole, whole),
    compiler_options=QUICK,
  )
  state, metrics = jax.device_put(run.state, whole), []
  for t in range(4):
    batch = {"image": np.asarray(images(run.config, t)["image"])}
    batch = mesh.global_batch(grid, batch)
    assert len(batch["image"].sharding.device_set) == jax.device_count()
    state, now = train(state, batch)
    metrics.append(now)
  leaves = jax.tree_util.tree_leaves_with_path((state, metrics))
  return {jax.tree_util.keystr(path): np.asarray(v) for path, v in leaves}


if __name__ == "__main__":
  np.savez(sys.argv[1], devices=jax.device_count(), **history())

"""Runs steps on all emulated devices; started by test_mesh.

Writes all values of the runs to the given .npz, with a run per sharding plan,
and the collectives of each.
"""

import sys
import warnings

import jax
import numpy as np
from conftest import QUICK, images, run_of, small

from benchmarks import communication
from gamix_jax import step
from gamix_jax.parallel import mesh

DEVICES, STEPS = 8, 4
FSDP = (1, 2, 8)
MIN_SIZE = 64
# (mesh.fsdp, objective.population) of each run.
RUNS = (*((fsdp, "debiased") for fsdp in FSDP), (1, "quadratic"), (1, "kernel"))


def config(form):
  """A config with all sums over the batch: statistics, moments, strata."""
  return small(
    data__batch_size=16,
    model__norm="batch",
    model__latent=8,
    model__encoder_features=(8, 8),
    model__decoder_features=(8, 1),
    model__discriminator_features=(1,),
    model__discriminator_strides=(2,),
    posterior__name="mixture",
    posterior__components=2,
    objective__population=form,
    optim__vae__learning_rate=1e-2,
    optim__disc__learning_rate=1e-2,
    # The gradient of a bias before batch statistics is a rounding error, and
    # Adam's step would be its sign.
    optim__vae__eps=1e-1,
    optim__disc__eps=1e-1,
    mesh__fsdp_min_size=MIN_SIZE,
    # The gradient of `kernel` does not grow with the distance. With the whole
    # weight of `recon` the codes would run away, and rounding errors with them.
    **({"weights__recon": 100.0} if form == "kernel" else {}),
  )


def history(fsdp=1, form="debiased"):
  """Returns {name: array} of all metrics and the last state; the program."""
  run = run_of(config(form))
  grid = mesh.create_mesh(16, fsdp)
  layout = mesh.ShardingPlan(grid, MIN_SIZE)
  # A copy: donated buffers may be the very ones that it came from.
  state = jax.device_put(
    jax.tree.map(np.array, run.state), layout.shardings(run.state)
  )
  train, metrics = (
    step.jit_train_step(run.spec, layout, compiler_options=QUICK),
    [],
  )
  for t in range(STEPS):
    batch = {"image": np.asarray(images(run.config, t)["image"])}
    batch = mesh.global_batch(grid, batch)
    assert len(batch["image"].sharding.device_set) == jax.device_count()
    if t == 0:
      train = train.lower(state, batch).compile()
    before, (state, now) = state, train(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    metrics.append(now)
  assert_shardings(state, now, fsdp)
  leaves = jax.tree_util.tree_leaves_with_path((state, metrics))
  found = {jax.tree_util.keystr(path): np.asarray(v) for path, v in leaves}
  return found, train.as_text(), communication.law(run.config, layout, state)


def assert_shardings(state, metrics, fsdp):
  """Checks that exactly the large arrays of each network are sharded."""
  kinds = (".params", ".mu", ".nu", ".ema")
  spread = dict.fromkeys(kinds, 0)
  for path, leaf in jax.tree_util.tree_leaves_with_path((state, metrics)):
    name = jax.tree_util.keystr(path)
    parts = {leaf.size // s.data.size for s in leaf.addressable_shards}
    large = leaf.size >= MIN_SIZE and any(n % fsdp == 0 for n in leaf.shape)
    kind = next((k for k in kinds if k in name), None)
    assert parts == {fsdp if large and kind else 1}, (name, parts)
    if parts != {1}:
      spread[kind] += 1
  # Each parameter has two optimizer slots and an average.
  assert len(set(spread.values())) == 1, spread
  assert (spread[".ema"] > 0) == (fsdp > 1)


def main(out):
  """Runs all of them; array names begin with `fsdp` and the population form."""
  arrays = {"devices": jax.device_count()}
  for fsdp, form in RUNS:
    found, text, law = history(fsdp, form)
    arrays |= {f"{fsdp} {form} {k}": value for k, value in found.items()}
    arrays[f"text {fsdp} {form}"] = np.asarray(text)
    arrays[f"law {fsdp} {form}"] = np.asarray(law)
  np.savez(out, **arrays)


if __name__ == "__main__":
  warnings.simplefilter("error")  # unusable donated buffers
  main(sys.argv[1])

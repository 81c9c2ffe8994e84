"""Runs `gamix_jax.main` with one fault injected from inside.

python faults_child.py FAULT[:STEP ...] FLAGS OF MAIN ...

For faults that cannot be triggered from outside: a moment within a save, a
value within a batch. Otherwise the process equals `python -m gamix_jax.main`.
"""

import os
import runpy
import signal
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp

from gamix_jax import step
from gamix_jax.checkpoint import integrity
from gamix_jax.parallel import mesh
from gamix_jax.training import compiled_steps, validation


def die():
  os.kill(os.getpid(), signal.SIGKILL)


def after_calls(holder, name, count, act, first=False):
  """Calls `act()` before or after the n-th call of `holder.name`."""
  original, calls = getattr(holder, name), 0

  def call(*args, **kwargs):
    nonlocal calls
    calls += 1
    if first and calls == count:
      act()
    result = original(*args, **kwargs)
    if not first and calls == count:
      act()
    return result

  setattr(holder, name, call)


def arrays(count):
  """SIGKILL in a save, while its arrays are being written."""
  after_calls(ocp.CheckpointManager, "save", count, die)


def commit(count):
  """SIGKILL in a save, before its checksums and final name."""
  after_calls(integrity, "write_checksums", count, die, first=True)


def ask():
  os.kill(os.getpid(), signal.SIGTERM)


def looking(count):
  """SIGTERM in a validation."""
  after_calls(validation.Validator, "numbers", count, ask, first=True)


def compiling():
  """SIGTERM while the step is compiled."""
  original = compiled_steps.compile_step

  def compile_(*args):
    ask()
    return original(*args)

  compiled_steps.compile_step = compile_


def batch(*at):
  """Puts a NaN into one pixel of the batches of these steps.

  uint8 images cannot hold a NaN, so these batches are passed as what the step
  converts them to: floats in [-1, 1].
  """
  original, calls = mesh.global_batch, 0

  def poisoned(devices, rows):
    nonlocal calls
    calls += "valid" not in rows  # validation batches have one
    if "valid" not in rows and calls in at:
      image = rows["image"].astype(np.float32) / 127.5 - 1
      image[0, 0, 0, 0] = np.nan
      rows = {"image": image}
    return original(devices, rows)

  mesh.global_batch = poisoned

  def with_floats(compiled, spec, layout):
    of_floats = step.jit_train_step(spec, layout)

    def stepped(state, batch):
      of = compiled if batch["image"].dtype == np.uint8 else of_floats
      return of(state, batch)

    return stepped

  _around_the_step(with_floats)


def weights(at):
  """Puts a NaN into one weight of the VAE before a step."""

  def poisoned(compiled, spec, layout):
    del spec, layout

    def stepped(state, batch):
      if int(state.step) + 1 == at:
        state = state.replace(vae=_with_nan(state.vae))
      return compiled(state, batch)

    return stepped

  _around_the_step(poisoned)


def _around_the_step(wrap):
  """Makes the loop run `wrap` of the compiled step."""
  original = compiled_steps.compile_step

  def compile_(spec, config, abstract, layout):
    return wrap(original(spec, config, abstract, layout), spec, layout)

  compiled_steps.compile_step = compile_


def _with_nan(net):
  leaves, tree = jax.tree.flatten(net.params)
  largest = max(range(len(leaves)), key=lambda i: leaves[i].size)
  value = np.array(leaves[largest])
  value.flat[0] = np.nan
  leaves[largest] = jax.device_put(value, leaves[largest].sharding)
  return net.replace(params=jax.tree.unflatten(tree, leaves))


FAULTS = (arrays, commit, compiling, looking, batch, weights)

if __name__ == "__main__":
  words = sys.argv.pop(1).split(":")
  {f.__name__: f for f in FAULTS}[words[0]](*map(int, words[1:]))
  runpy.run_module("gamix_jax.main", run_name="__main__", alter_sys=True)

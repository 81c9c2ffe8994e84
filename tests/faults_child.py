"""`gamix_jax.main` with one thing done to it from inside.

python faults_child.py FAULT[:STEP ...] FLAGS OF MAIN ...

For what cannot be aimed at from outside: a moment within a save, a number
within a batch. All else of the process is `python -m gamix_jax.main`.
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
from gamix_jax.training import loop, validation


def die():
  os.kill(os.getpid(), signal.SIGKILL)


def after_calls(holder, name, count, act, first=False):
  """`act()` when `holder.name` has been called so often, after it or first."""
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
  """kill -9 in a save: its arrays are on their way to the disk."""
  after_calls(ocp.CheckpointManager, "save", count, die)


def commit(count):
  """kill -9 in a save: its files are complete but for the sums and the name."""
  after_calls(integrity, "write_checksums", count, die, first=True)


def ask():
  os.kill(os.getpid(), signal.SIGTERM)


def looking(count):
  """SIGTERM in an evaluation."""
  after_calls(validation.Validator, "numbers", count, ask, first=True)


def compiling():
  """SIGTERM while the step is compiled."""
  original = loop._compile

  def compile_(*args):
    ask()
    return original(*args)

  loop._compile = compile_


def batch(*at):
  """A NaN in one pixel of the batches of these steps.

  An image of uint8 cannot hold one, so these batches are handed over as what
  the step makes of them anyway: floats in [-1, 1]; to a step that takes them.
  """
  original, calls = mesh.global_batch, 0

  def poisoned(devices, rows):
    nonlocal calls
    calls += "mask" not in rows  # an evaluation's have one
    if "mask" not in rows and calls in at:
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
  """A NaN in one weight of the VAE, before a step."""

  def poisoned(compiled, spec, layout):
    del spec, layout

    def stepped(state, batch):
      if int(state.step) + 1 == at:
        state = state.replace(vae=_with_nan(state.vae))
      return compiled(state, batch)

    return stepped

  _around_the_step(poisoned)


def _around_the_step(wrap):
  """The loop is given `wrap` of the step that it compiles."""
  original = loop._compile

  def compile_(spec, config, abstract, layout):
    return wrap(original(spec, config, abstract, layout), spec, layout)

  loop._compile = compile_


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

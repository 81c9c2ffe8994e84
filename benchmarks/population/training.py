"""Trains runs that differ in their weights and seeds with one program.

The step is `gamix_jax.step`, as in `python -m gamix_jax.main`. What is left out
is what a run of seconds does not need: checkpoints, logs, validation. The
images are on the device, and weights and seeds are arguments of the program.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gamix_jax import step
from gamix_jax.modality import IMAGE
from gamix_jax.step import TrainSpec


class Trained(NamedTuple):
  """A trained VAE.

  Attributes:
    params: averaged parameters.
    batch_stats: batch statistics.
    sec_per_step: seconds a step, without compilation.
    skipped: updates that were left out, since they were not finite.
  """

  params: Any
  batch_stats: Any
  sec_per_step: float
  skipped: int


def order(images: int, batch: int, steps: int, seed: int) -> np.ndarray:
  """Returns the rows of every batch, int32 [steps, batch].

  Each epoch is a new permutation of all images, without what does not fill a
  batch.
  """
  rng = np.random.Generator(np.random.PCG64(seed))
  each = images // batch
  epochs = [
    rng.permutation(images)[: each * batch] for _ in range(-(-steps // each))
  ]
  rows = np.concatenate(epochs).reshape(-1, batch)
  return rows[:steps].astype(np.int32)


class Trainer:
  """The program of a method: from weights, seeds and batches to parameters."""

  def __init__(
    self,
    spec: TrainSpec,
    images: ArrayLike,
    stack: bool,
    by_steps: bool = False,
  ):
    """Compiles nothing yet.

    Args:
      spec: of the method; its seed and weights are replaced.
      images: uint8 [n, h, w, c].
      stack: whether runs are trained side by side, as one program; faster on a
        GPU that one run does not fill.
      by_steps: whether each step is a call. Convolutions are a hundred times
        as slow in XLA's loops on a CPU; small networks are slower by steps.
    """
    self._spec, self._stack, self._by_steps = spec, stack, by_steps
    self._images = jax.device_put(images)
    self._compiled: dict[Any, Any] = {}

  def _of(self, seed, weights) -> TrainSpec:
    """The spec with a run's seed and weights, which may be traced."""
    vae, disc = weights
    own = dataclasses.replace(self._spec.weights, vae=vae, disc=disc)
    return dataclasses.replace(self._spec, seed=seed, weights=own)

  def _step(self, state, images, rows, seed, weights):
    batch = {IMAGE: images[rows]}
    return step.train_step(self._of(seed, weights), state, batch)[0]

  def _run(self, images, rows, seed, weights):
    """Trains one run; all but `images` may have a leading axis of runs."""

    def body(state, rows):
      return self._step(state, images, rows, seed, weights), None

    start = step.init(self._of(seed, weights))
    return _result(jax.lax.scan(body, start, rows)[0])

  def _as_loop(self, *args):
    """Compiles `_run`."""
    function = self._run
    if self._stack:
      function = jax.vmap(function, in_axes=(None, 0, 0, 0))
    return jax.jit(function).lower(*args).compile()

  def _as_steps(self, images, rows, seed, weights):
    """Compiles a step, which the returned function calls for each batch."""
    start = jax.jit(lambda *args: step.init(self._of(*args)))
    state = jax.eval_shape(start, seed, weights)
    one = jax.jit(self._step, donate_argnums=0)
    start = start.lower(seed, weights).compile()
    one = one.lower(state, images, rows[0], seed, weights).compile()

    def train(images, rows, seed, weights):
      state = start(seed, weights)
      for r in np.asarray(rows):
        state = one(state, images, r, seed, weights)
      return _result(state)

    return train

  def _program(self, *args):
    """The compiled training for arguments of these shapes."""
    key = str(jax.tree.map(lambda v: (v.shape, v.dtype.name), args))
    if key not in self._compiled:
      compiled = self._as_steps if self._by_steps else self._as_loop
      self._compiled[key] = compiled(*args)
    return self._compiled[key]

  def __call__(
    self, specs: Sequence[TrainSpec], rows: Sequence[np.ndarray]
  ) -> list[Trained]:
    """Trains runs whose specs differ in seed and weights only.

    Args:
      specs: of the runs.
      rows: the batches of each, see `order`.
    """
    runs = [
      (r, np.uint32(s.seed), jax.tree.map(jnp.float32, _weights(s)))
      for s, r in zip(specs, rows, strict=True)
    ]
    if self._stack:
      runs = [jax.tree.map(lambda *v: np.stack(v), *runs)]
    found = []
    for run in runs:
      args = jax.device_put((self._images, *run))
      program = self._program(*args)
      started = time.perf_counter()
      out = jax.device_get(program(*args))
      seconds = (time.perf_counter() - started) / rows[0].shape[0]
      if not self._stack:
        out = jax.tree.map(lambda v: np.asarray(v)[None], out)
      for i in range(len(out[-1])):
        params, stats, skipped = jax.tree.map(lambda v, i=i: v[i], out)
        each = seconds / len(out[-1])
        found.append(Trained(params, stats, each, int(skipped)))
    return found


def _result(state):
  return state.ema, state.vae.batch_stats, state.nonfinite[0]


def _weights(spec: TrainSpec) -> tuple[dict[str, float], dict[str, float]]:
  return spec.weights.vae, spec.weights.disc

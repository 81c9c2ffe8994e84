"""Timing: groups of steps, in turns, and what the machine can do at most."""

import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

GROUP_SECONDS = 0.2  # shorter, and the clock's own noise is seen
MOST_IN_GROUP = 100
ROUNDS = 5


class Spread(NamedTuple):
  """Seconds a step: quartiles over the groups that were timed."""

  low: float
  median: float
  high: float
  groups: int
  steps_in_group: int

  def milliseconds(self) -> str:
    """`12.3 (12.0 to 13.1)`, median and quartiles."""
    shown = (_short(1e3 * v) for v in (self.median, self.low, self.high))
    return "{} ({} to {})".format(*shown)


def _short(value: float) -> str:
  return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def in_turns(
  runners: Mapping[str, Callable[[int], None]], steps: int
) -> dict[str, Spread]:
  """Times each of them, in rounds, so that what disturbs one disturbs all.

  A sample is the time of a group of steps that is begun at once and waited for
  at its end, over its length; groups take 0.2 s or more. Each turn begins with
  a step that is not timed.

  Args:
    runners: {name: function that does n steps and waits for the last}; warm.
    steps: to be timed of each, at least, in 5 rounds.
  """
  group, times = {}, {name: [] for name in runners}
  for name, run in runners.items():
    run(1)
    once = _seconds(run, 1)
    group[name] = min(max(math.ceil(GROUP_SECONDS / once), 1), MOST_IN_GROUP)
  for _ in range(ROUNDS):
    for name, run in runners.items():
      run(1)
      n = group[name]
      for _ in range(max(math.ceil(steps / ROUNDS / n), 1)):
        times[name].append(_seconds(run, n) / n)
  return {
    name: Spread(*np.percentile(t, (25, 50, 75)).tolist(), len(t), group[name])
    for name, t in times.items()
  }


def _seconds(run: Callable[[int], None], n: int) -> float:
  start = time.perf_counter()
  run(n)
  return time.perf_counter() - start


# ------------------------------------------------------------ ceilings


def product_ceiling(dtype: str, side: int, repeats: int = 5) -> float:
  """FLOP/s of the product of two side x side matrices, the best of some."""
  a = jnp.asarray(np.random.default_rng(0).normal(size=(side, side)), dtype)
  product = jax.jit(jnp.matmul)

  def run(n):
    for _ in range(n):
      out = product(a, a)
    out.block_until_ready()

  return 2 * side**3 / _best(run, repeats)


def copy_ceiling(megabytes: int, repeats: int = 5) -> float:
  """Bytes/s read and written by x + 1 over an array, the best of some."""
  x = jnp.zeros(megabytes * 2**18, jnp.float32)
  add = jax.jit(lambda x: x + 1)

  def run(n):
    for _ in range(n):
      out = add(x)
    out.block_until_ready()

  return 2 * x.nbytes / _best(run, repeats)


def _best(run: Callable[[int], None], repeats: int) -> float:
  """Seconds of one, from the quickest group."""
  run(1)
  n = min(max(math.ceil(0.1 / _seconds(run, 1)), 1), MOST_IN_GROUP)
  return min(_seconds(run, n) for _ in range(repeats)) / n

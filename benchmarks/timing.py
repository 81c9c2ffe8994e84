"""Times groups of steps in turns, and measures the machine's ceilings."""

import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

GROUP_SECONDS = 0.2  # shorter groups show the clock's own noise
MAX_GROUP_STEPS = 100
ROUNDS = 5


class Spread(NamedTuple):
  """Seconds per step: quartiles over the timed groups."""

  low: float
  median: float
  high: float
  groups: int
  steps_in_group: int

  def milliseconds(self) -> str:
    """Returns `12.3 (12.0 to 13.1)`: median and quartiles."""
    shown = (_short(1e3 * v) for v in (self.median, self.low, self.high))
    return "{} ({} to {})".format(*shown)


def _short(value: float) -> str:
  return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def in_turns(
  runners: Mapping[str, Callable[[int], None]], steps: int
) -> dict[str, Spread]:
  """Times all runners in alternating rounds, so that disturbances affect all.

  A sample is the time of a group of steps that are dispatched together and
  waited for at the end, divided by their number; groups take 0.2 s or more.
  Each turn begins with an untimed step.

  Args:
    runners: {name: function that runs n steps and waits for the last one},
      warm.
    steps: minimum number to time of each, in 5 rounds.
  """
  group, times = {}, {name: [] for name in runners}
  for name, run in runners.items():
    run(1)
    once = _seconds(run, 1)
    group[name] = min(max(math.ceil(GROUP_SECONDS / once), 1), MAX_GROUP_STEPS)
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
  """Returns the best FLOP/s of a matmul of two side x side matrices."""
  a = jnp.asarray(np.random.default_rng(0).normal(size=(side, side)), dtype)
  product = jax.jit(jnp.matmul)

  def run(n):
    for _ in range(n):
      out = product(a, a)
    out.block_until_ready()

  return 2 * side**3 / _best(run, repeats)


def copy_ceiling(megabytes: int, repeats: int = 5) -> float:
  """Returns the best bytes/s, read and written, of x + 1 over an array."""
  x = jnp.zeros(megabytes * 2**18, jnp.float32)
  add = jax.jit(lambda x: x + 1)

  def run(n):
    for _ in range(n):
      out = add(x)
    out.block_until_ready()

  return 2 * x.nbytes / _best(run, repeats)


def _best(run: Callable[[int], None], repeats: int) -> float:
  """Returns the seconds of one call, from the fastest group."""
  run(1)
  n = min(max(math.ceil(0.1 / _seconds(run, 1)), 1), MAX_GROUP_STEPS)
  return min(_seconds(run, n) for _ in range(repeats)) / n

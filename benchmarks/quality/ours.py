"""Our side: runs the library's training command within a CPU-time budget.

The budget covers the whole process: imports, reading the data, compiling
(without a cache), training, the final evaluation and the checkpoint. A learning
rate may follow a schedule over `steps`, so that number must be known before: it
is predicted from the times of short runs, which are linear in the steps.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags as absl_flags
from ml_collections import config_flags

import gamix_jax
from benchmarks.quality import child
from benchmarks.quality.rows import Images, Task
from gamix_jax import cli, files, pictures, presets, step
from gamix_jax import config as configs
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError

NUM_LOGS = 10  # how often a run logs its metrics, whatever its length
FIRST_STEPS = 20, 100  # steps of the first two timed runs
# Of the budget: longer runs are timed until their steps took that.
TIMED_FRACTION = 0.12
MAX_GROWTH = 20  # times the longest so far, at most
MAX_TIMED = 6  # maximum number of timed runs
MARGIN = 0.01, 0.5  # fraction of the budget, and CPU-seconds, to leave unused
# Times the budget; if exceeded, the run is repeated with fewer steps.
MAX_OVERRUN = 1.02
ATTEMPTS = 4
KEY = 0  # of the samples
# The benchmark sets these keys, so they do not identify a run.
BENCHMARK_KEYS = ("steps", "log_every", "eval_every", "seed", "data.source")
BENCHMARK_KEYS += (
  "checkpoint.every",
  "checkpoint.keep",
  "checkpoint.keep_best",
)
# The keys of `data` that do not change the images.
NEUTRAL_DATA_KEYS = ("batch_size", "flip", "cache", "workers")

Times = list[tuple[int, float]]  # (steps, CPU-seconds) of whole runs


class Ours:
  """Trainings of one task.

  Attributes:
    config: the config of the flags, without BENCHMARK_KEYS.
    settings: {key: value} that identifies a finished run.
  """

  def __init__(self, task: Task, source: str, more: Sequence[str]):
    """`more` are overrides of the config, "key=value".

    Raises:
      UserError: if one is malformed, or would change the images.
    """
    for override in more:
      key, equals, _ = override.partition("=")
      section, _, name = key.partition(".")
      changes = section == "data" and name not in NEUTRAL_DATA_KEYS
      if not equals or key in BENCHMARK_KEYS or changes:
        raise UserError(
          f"--ours={override} must be key=value; what changes the images, "
          f"and {', '.join(BENCHMARK_KEYS)} are set by the benchmark."
        )
    overrides = [
      f"data.source={source}",
      f"data.image_size={task.size}",
      "data.channels=1",
      f"model.latent={task.latent}",
      *task.more,
      *more,
    ]
    self._flags = [f"--config={cli.shipped_config(task.config)}"]
    self._flags += [f"--config.{override}" for override in overrides]
    self.config = _resolved(self._flags)
    values = configs.flat(self.config)
    self.settings = {k: v for k, v in values.items() if k not in BENCHMARK_KEYS}

  def run(
    self, folder: Path, seed: int, seconds: int, images: Images
  ) -> dict[str, Any]:
    """Trains, unless there is a finished run.

    Args:
      folder: of the row.
      seed: of the run.
      seconds: the budget.
      images: to be reconstructed; their hash is part of the run's identity.

    Returns:
      {"cpu_seconds", "wall_seconds", "steps", "images": number trained on,
      "parameters": of encoder and decoder, "parameters_discriminator",
      "settings"}. Reconstructions and samples are stored in the same folder.

    Raises:
      UserError: if the budget is too small, or a finished run has other
        settings.
    """
    name = f"ours_s{seed}"
    file = folder / f"{name}.json"
    settings = self.settings | {"seconds": seconds, "images": images.sha256}
    if saved := child.finished(file, settings):
      return saved
    times = self._times(folder.parent, images)
    steps = times.steps_for(seconds)
    for _ in range(ATTEMPTS):
      child.say(f"{folder.name} {name}: {steps} steps")
      usage = self._train(folder / name, steps, seed)
      took = usage["cpu_seconds"]
      child.say(f"{folder.name} {name}: {took:.1f} CPU-seconds of {seconds}")
      times.add(steps, took)
      if took <= MAX_OVERRUN * seconds:
        break
      steps = min(times.steps_for(seconds), int(steps * seconds / took))
    else:
      raise UserError(
        f"{folder.name}: {ATTEMPTS} runs took more CPU-seconds than "
        "predicted from earlier ones; is the machine busy?"
      )
    facts = usage | _write_images(folder, name, steps, images)
    facts["settings"] = settings
    files.write_text(file, json.dumps(facts, indent=1) + "\n")
    return facts

  def _times(self, out: Path, images: Images) -> "Timing":
    """Returns the timings of these settings, for any budget and seed."""
    identity = json.dumps([self.settings, images.sha256], sort_keys=True)
    identity = hashlib.sha256(identity.encode()).hexdigest()[:16]

    def train(steps: int) -> float:
      child.say(f"Timing {steps} steps")
      try:
        took = self._train(out / "timing", steps, 0)["cpu_seconds"]
      finally:
        shutil.rmtree(out / "timing", ignore_errors=True)
      child.say(f"{steps} steps took {took:.1f} CPU-seconds")
      return took

    return Timing(out / f"timing-{identity}.json", train)

  def _train(self, path: Path, steps: int, seed: int) -> dict[str, float]:
    """Trains from scratch; evaluates and saves at the end."""
    shutil.rmtree(path, ignore_errors=True)
    own = {
      "steps": steps,
      "seed": seed,
      "log_every": math.ceil(steps / NUM_LOGS),
      "eval_every": steps,
      "checkpoint.every": steps,
      "checkpoint.keep": 1,
      "checkpoint.keep_best": 0,
    }
    flags = [f"--config.{k}={v}" for k, v in own.items()]
    return child.run(
      "gamix_jax.main",
      [*self._flags, *flags, f"--workdir={path}"],
      path.with_name(f"{path.name}.log"),
      JAX_COMPILATION_CACHE_DIR="",
    )


class Timing:
  """Predicts the time of a number of steps from runs of a few lengths."""

  def __init__(self, path: Path, train):
    """`path` stores the times; `train` runs n steps and returns CPU-seconds."""
    self._path, self._train = path, train
    saved = json.loads(path.read_text()) if path.is_file() else []
    self.times: Times = [(int(n), float(t)) for n, t in saved]

  def add(self, steps: int, took: float) -> None:
    """Records a run's CPU-seconds."""
    self.times.append((steps, took))
    files.write_text(self._path, json.dumps(self.times) + "\n")

  def steps_for(self, seconds: float) -> int:
    """Returns how many steps fit into a budget; runs more timings if needed.

    Raises:
      UserError: if none fits.
    """
    share, least = MARGIN
    budget = seconds * (1 - share) - least
    for steps in FIRST_STEPS:
      if len(self.times) < len(FIRST_STEPS):
        self.add(steps, self._train(steps))
    start, each = line(self.times)
    while len(self.times) < MAX_TIMED:
      lengths = [steps for steps, _ in self.times]
      room = budget - start  # for steps
      if each * (max(lengths) - min(lengths)) >= TIMED_FRACTION * room:
        break
      longer = min(
        int(1.5 * TIMED_FRACTION * room / each), MAX_GROWTH * max(lengths)
      )
      steps = max(longer, 2 * max(lengths))
      self.add(steps, self._train(steps))
      start, each = line(self.times)
    if budget < start + each:
      raise UserError(
        f"{start:.1f} of {seconds} CPU-seconds pass before the first step; "
        "use a larger budget for the row."
      )
    return int((budget - start) / each)


def line(times: Times) -> tuple[float, float]:
  """Returns the CPU-seconds of a start and of a step.

  Fits a line through the mean times of the shortest and of the longest runs.
  The start is at least 0, and a step more than 0, whatever the noise.
  """
  ends = min(times)[0], max(times)[0]
  short, long = (np.mean([t for n, t in times if n == end]) for end in ends)
  each = max(float(long - short) / (ends[1] - ends[0]), 1e-6)
  return max(float(short) - ends[0] * each, 0.0), each


def _write_images(
  folder: Path, name: str, steps: int, images: Images
) -> dict[str, int]:
  """Writes reconstructions and samples of the EMA weights; returns facts."""
  model = gamix_jax.load(folder / name)
  if model.step != steps:
    raise RuntimeError(f"{folder / name} ended at {model.step} of {steps}.")
  samples = model.sample(jax.random.key(KEY), len(images.test))
  np.savez(
    folder / f"{name}.npz",
    reconstructions=pictures.to_uint8(model.reconstruct(images.test)),
    samples=pictures.to_uint8(samples),
  )
  state = jax.eval_shape(partial(step.init, model.spec))
  jax.clear_caches()  # of programs that no other run has
  return {
    "steps": steps,
    "images": steps * model.config.data.batch_size,
    "parameters": _count(state.vae.params),
    "parameters_discriminator": _count(state.disc.params),
  }


def _count(params: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def _resolved(flags: Sequence[str]) -> ConfigDict:
  """Returns the config that the trainer will resolve from the same flags.

  Raises:
    UserError: if a key does not exist, or a value has another type or range.
  """
  values, argv = absl_flags.FlagValues(), ["quality", *flags]
  holder = config_flags.DEFINE_config_file(
    "config", flag_values=values, sys_argv=argv
  )
  try:
    values(argv)
  except (
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
    absl_flags.Error,
  ) as e:
    raise UserError(f"--ours: {str(e).strip().splitlines()[0]}") from e
  return presets.complete(holder.value)

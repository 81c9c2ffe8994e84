"""Our side: the product's own command, for so many CPU-seconds in all.

The budget is of the whole process: imports, reading the data, compiling (anew,
without a cache), training, the last evaluation and the checkpoint. Rates may
follow a schedule over `steps`, so that number must be known before: it comes
from the times of short runs, which are a constant and so much a step.
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

LOGS = 10  # times that a run logs its numbers, whatever its length
SHORT = 20, 100  # steps of the two runs that are timed first
SHARE = 0.12  # of the budget: longer ones follow until their steps took that
LONGER = 20  # times the longest so far, at most
TIMED = 6  # runs, at most
MARGIN = 0.01, 0.5  # share of the budget, and CPU-seconds, that stay unused
OVER = 1.02  # times the budget; over it, the run is made again, shorter
ATTEMPTS = 4
KEY = 0  # of the samples
# Set here, so not what a run is known by; the images are, by their hash.
OWN = ("steps", "log_every", "eval_every", "seed", "data.source")
OWN += ("checkpoint.every", "checkpoint.keep", "checkpoint.keep_best")
FREE_DATA = ("batch_size", "flip", "cache", "workers")  # change no image

Times = list[tuple[int, float]]  # (steps, CPU-seconds) of whole runs


class Ours:
  """Trainings of one task.

  Attributes:
    config: as the flags make it, but for the keys in OWN.
    settings: what a finished run is known by, {key: value}.
  """

  def __init__(self, task: Task, source: str, more: Sequence[str]):
    """`more` are overrides of the config, "key=value".

    Raises:
      UserError: one of them is none, or would change the images.
    """
    for override in more:
      key, equals, _ = override.partition("=")
      section, _, name = key.partition(".")
      changes = section == "data" and name not in FREE_DATA
      if not equals or key in OWN or changes:
        raise UserError(
          f"--ours={override} must be key=value; what changes the images, "
          f"and {', '.join(OWN)} are set by the benchmark."
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
    self.settings = {k: v for k, v in values.items() if k not in OWN}

  def run(
    self, folder: Path, seed: int, seconds: int, images: Images
  ) -> dict[str, Any]:
    """Trains, unless that was done before.

    Args:
      folder: of the row.
      seed: of the run.
      seconds: the budget.
      images: to be reconstructed; their hash is what the run is known by.

    Returns:
      {"cpu_seconds", "wall_seconds", "steps", "images": seen in training,
      "parameters": of encoder and decoder, "parameters_discriminator",
      "settings"}. Beside it lie reconstructions and samples.

    Raises:
      UserError: the budget is too small; a finished run has other settings.
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
      used = self._train(folder / name, steps, seed)
      took = used["cpu_seconds"]
      child.say(f"{folder.name} {name}: {took:.1f} CPU-seconds of {seconds}")
      times.add(steps, took)
      if took <= OVER * seconds:
        break
      steps = min(times.steps_for(seconds), int(steps * seconds / took))
    else:
      raise UserError(
        f"{folder.name}: {ATTEMPTS} runs took more CPU-seconds than those "
        "before them promised; is the machine busy with something else?"
      )
    facts = used | _write_images(folder, name, steps, images)
    facts["settings"] = settings
    files.write_text(file, json.dumps(facts, indent=1) + "\n")
    return facts

  def _times(self, out: Path, images: Images) -> "Timing":
    """Of runs with these settings, whatever their budget and seed."""
    known_by = json.dumps([self.settings, images.sha256], sort_keys=True)
    known_by = hashlib.sha256(known_by.encode()).hexdigest()[:16]

    def train(steps: int) -> float:
      child.say(f"Timing {steps} steps")
      try:
        took = self._train(out / "timing", steps, 0)["cpu_seconds"]
      finally:
        shutil.rmtree(out / "timing", ignore_errors=True)
      child.say(f"{steps} steps took {took:.1f} CPU-seconds")
      return took

    return Timing(out / f"timing-{known_by}.json", train)

  def _train(self, path: Path, steps: int, seed: int) -> dict[str, float]:
    """A run from its beginning, which evaluates and saves at its end."""
    shutil.rmtree(path, ignore_errors=True)
    own = {
      "steps": steps,
      "seed": seed,
      "log_every": math.ceil(steps / LOGS),
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
  """How long a number of steps takes, learned from a few lengths of run."""

  def __init__(self, path: Path, train):
    """`path` keeps the times; `train` runs so many steps: CPU-seconds."""
    self._path, self._train = path, train
    saved = json.loads(path.read_text()) if path.is_file() else []
    self.times: Times = [(int(n), float(t)) for n, t in saved]

  def add(self, steps: int, took: float) -> None:
    """A run's CPU-seconds."""
    self.times.append((steps, took))
    files.write_text(self._path, json.dumps(self.times) + "\n")

  def steps_for(self, seconds: float) -> int:
    """How many steps fit into so many CPU-seconds; runs some if need be.

    Raises:
      UserError: none does.
    """
    share, least = MARGIN
    budget = seconds * (1 - share) - least
    for steps in SHORT:
      if len(self.times) < len(SHORT):
        self.add(steps, self._train(steps))
    start, each = line(self.times)
    while len(self.times) < TIMED:
      lengths = [steps for steps, _ in self.times]
      room = budget - start  # for steps
      if each * (max(lengths) - min(lengths)) >= SHARE * room:
        break
      longer = min(int(1.5 * SHARE * room / each), LONGER * max(lengths))
      steps = max(longer, 2 * max(lengths))
      self.add(steps, self._train(steps))
      start, each = line(self.times)
    if budget < start + each:
      raise UserError(
        f"Of {seconds} CPU-seconds {start:.1f} are gone before the first step; "
        "give the row more."
      )
    return int((budget - start) / each)


def line(times: Times) -> tuple[float, float]:
  """CPU-seconds of a start and of a step.

  On the line through the shortest and the longest runs, of each the mean.
  Neither is under 0 (a step's is over it), whatever the noise.
  """
  ends = min(times)[0], max(times)[0]
  short, long = (np.mean([t for n, t in times if n == end]) for end in ends)
  each = max(float(long - short) / (ends[1] - ends[0]), 1e-6)
  return max(float(short) - ends[0] * each, 0.0), each


def _write_images(
  folder: Path, name: str, steps: int, images: Images
) -> dict[str, int]:
  """Reconstructions and samples of the averaged weights; facts of the run."""
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
  """The config that the trainer will make of the same flags.

  Raises:
    UserError: a key that is none, a value of another type or out of range.
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

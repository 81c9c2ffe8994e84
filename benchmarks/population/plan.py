"""Which runs there are, who does them, and which weight is chosen.

    sweep   runs of a few seeds with each tried weight, judged on validation
            images
    final   runs of several seeds with the chosen weight, judged on test images
    batch   the same with other batch sizes and as many images seen

The chosen weight has the lowest sum of two Frechet distances on the validation
images, in the mean over seeds: of reconstructions, and of samples from the
source that the method is meant for (`Method.sampler`).

A finished run is a file. Several processes can share an output folder: each
takes a method that no other one has locked.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.population.images import (
  features,
  judged,
  test_images,
  training_parts,
)
from benchmarks.population.judge import Judge
from benchmarks.population.methods import METHODS, Problem, config_of
from benchmarks.population.training import Trained, Trainer, order
from gamix_jax import build, files, metrics, pictures
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.inference import Model

RESULT, PICTURE, PROTOCOL = "result.json", "images.png", "protocol.json"
FORMAT = 1  # of these files
PHASES = ("sweep", "final", "batch")
WAIT = 1.0  # seconds between looks at what another process does


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Problem):
  """What all runs of an output folder share, beside the problem.

  Attributes:
    batch: images of a step, but for the runs of other batch sizes.
    sweep_epochs: passes over the training images of a run of the sweep.
    epochs: the same of all other runs.
    sweep_seeds: runs of the sweep with each weight.
    judged: held-out images, and samples, that a run is judged on.
    sources: latent sources of the final runs beside the prior.
  """

  batch: int
  sweep_epochs: int
  epochs: int
  judged: int
  sources: tuple[str, ...]
  sweep_seeds: int = 1

  def check(self, out: Path) -> None:
    """Writes the settings to the output folder, or compares them.

    Raises:
      UserError: if the folder has runs with other settings.
    """
    mine = json.loads(json.dumps(dataclasses.asdict(self)))
    out.mkdir(parents=True, exist_ok=True)
    with files.exclusive(out / ".protocol"):
      theirs = read_settings(out)
      if theirs is None:
        files.write_text(out / PROTOCOL, json.dumps(mine, indent=1) + "\n")
        return
    different = [k for k in mine if mine[k] != theirs.get(k)]
    if different:
      raise UserError(
        f"{out} has runs with other values of {', '.join(different)}: "
        f"{', '.join(str(theirs.get(k)) for k in different)}. Use them, or "
        "another --out."
      )


def read_settings(out: Path) -> dict[str, Any] | None:
  """Returns the settings of an output folder; None if it has none.

  Those that the folder does not name, since it is older, have their defaults.
  """
  file = out / PROTOCOL
  if not file.is_file():
    return None
  missing = dataclasses.MISSING
  defaults = {f.name: f.default for f in dataclasses.fields(Settings)}
  defaults = {k: v for k, v in defaults.items() if v is not missing}
  return defaults | json.loads(file.read_text())


@dataclasses.dataclass(frozen=True)
class Run:
  """One run.

  Attributes:
    method: its name.
    phase: "sweep", "final" or "batch".
    weight: the value of the regulariser's weight.
    seed: of initial weights, batches and noise.
    batch: images of a step.
    epochs: passes over the training images.
  """

  method: str
  phase: str
  weight: float
  seed: int
  batch: int
  epochs: int

  @property
  def folder(self) -> str:
    """The run's folder in the output folder."""
    name = f"{self.phase}_w{self.weight:g}_b{self.batch}_s{self.seed}"
    return f"{self.method}/{name}"


def results(out: Path, method: str = "*") -> Iterator[dict[str, Any]]:
  """Yields the results of finished runs, in the order of their names."""
  for file in sorted(out.glob(f"{method}/*/{RESULT}")):
    found = json.loads(file.read_text())
    if found.get("format") == FORMAT and found["method"] in METHODS:
      yield found


def choose(out: Path, method: str, seeds: int) -> float | None:
  """Returns the chosen weight of a method; None before its sweep is done.

  Args:
    out: the output folder.
    method: its name.
    seeds: see `Settings.sweep_seeds`.
  """
  fd = f"fd_{METHODS[method].sampler}"
  sums = {
    (r["weight"], r["seed"]): r["numbers"]["fd_reconstructions"]
    + r["numbers"][fd]
    for r in results(out, method)
    if r["phase"] == "sweep"
  }
  tried = METHODS[method].weights
  if not all((w, seed) in sums for w in tried for seed in range(seeds)):
    return None
  return min(tried, key=lambda w: sum(sums[w, seed] for seed in range(seeds)))


class Bench:
  """Trains and judges runs in an output folder.

  Attributes:
    out: the folder.
  """

  def __init__(
    self,
    settings: Settings,
    out: Path,
    stack: bool,
    say: Callable[[str], None],
    inception: str = "",
    weights: Mapping[str, float] | None = None,
  ):
    """Reads the training images and trains or reads the classifier.

    Args:
      settings: of all runs.
      out: the output folder.
      stack: see `Trainer`.
      say: called with a line for each run.
      inception: a file of Inception's weights, for a FID of final runs that
        are not finished yet; "": there is none.
      weights: {method: weight} of those whose weight is not swept.

    Raises:
      UserError: if the data or the weights cannot be read, or the folder has
        runs of a method with another weight, or as `Settings.check`.
    """
    self._inception = None
    if inception:
      self._inception = metrics.inception_features(inception)
    settings.check(out)
    self._settings, self.out, self._stack = settings, out, stack
    self._weights = weights or {}
    self._check_weights()
    self._say = say
    self._train, self._validation = training_parts(self._config("ae", 0.0))
    self._features = features(self._train, out)
    self._on_device = jax.device_put(self._train.x)
    self._trainers: dict[Any, Trainer] = {}
    self._judges: dict[str, Judge] = {}

  def _check_weights(self) -> None:
    """Tables average the runs of a method, so all must have one weight."""
    for name, weight in self._weights.items():
      for r in results(self.out, name):
        if r["phase"] != "sweep" and r["weight"] != weight:
          raise UserError(
            f"{self.out} has runs of {name} with the weight {r['weight']:g}, "
            f"not {weight:g}. Use it, or another --out."
          )

  def _judge(self, phase: str) -> Judge:
    """The judge of a phase; the test split is read for final runs only."""
    part = "validation" if phase == "sweep" else "test"
    if part not in self._judges:
      images = self._validation
      if part == "test":
        images = test_images(self._config("ae", 0.0))
      used = judged(images, self._settings.judged)
      self._judges[part] = Judge(
        self._features, used, self._train, self._inception
      )
    return self._judges[part]

  def _config(self, method: str, weight: float, **changes: Any) -> ConfigDict:
    s = self._settings
    keys = {"batch": s.batch, "steps": 1, "images": 2**31} | changes
    return config_of(method, weight, s, **keys)

  def methods(self, names: Sequence[str], seeds: int) -> None:
    """Sweeps, chooses and does the final runs of methods."""
    mine = [name for name in names if self._sweep(name)]
    # Those of this process first: their programs are compiled. All methods
    # once before any of them twice, unless their seeds are one program.
    ordered = sorted(names, key=lambda name: name not in mine)
    every = range(seeds)
    for group in [every] if self._stack else [[seed] for seed in every]:
      for name in ordered:
        weight, s = self._weight(name), self._settings
        self._do(
          [
            Run(name, "final", weight, seed, s.batch, s.epochs)
            for seed in group
          ]
        )

  def batches(
    self, names: Sequence[str], sizes: Sequence[int], seeds: int
  ) -> None:
    """Does the runs of other batch sizes, with the weights chosen by sweeps."""
    epochs = self._settings.epochs
    for name in names:
      weight = self._weight(name)
      for size in sizes:
        self._do(
          [
            Run(name, "batch", weight, seed, size, epochs)
            for seed in range(seeds)
          ]
        )

  def _weight(self, name: str) -> float:
    """The given weight, or that of a sweep here or by another process."""
    if name in self._weights:
      return self._weights[name]
    seeds = self._settings.sweep_seeds
    while (weight := choose(self.out, name, seeds)) is None:
      if not self._sweep(name):
        time.sleep(WAIT)
    return weight

  def _sweep(self, name: str) -> bool:
    """Sweeps a method that no other process sweeps; whether anything was done.

    One process does all of it, since the runs share a program.
    """
    if name in self._weights:
      return False
    s = self._settings
    with _claim(self.out / name) as mine:
      return mine and self._do(
        [
          Run(name, "sweep", weight, seed, s.batch, s.sweep_epochs)
          for weight in METHODS[name].weights
          for seed in range(s.sweep_seeds)
        ]
      )

  def _do(self, runs: Sequence[Run]) -> bool:
    """Does runs that differ in weight and seed only; whether any was left.

    Finished runs, and those that another process does, are left out.
    """
    done = False
    for group in [runs] if self._stack else [[r] for r in runs]:
      if not self._left(group):
        continue
      with _claim(self.out / group[0].folder) as mine:
        if mine and (left := self._left(group)):
          self._train_and_judge(left)
          done = True
    return done

  def _left(self, runs: Sequence[Run]) -> list[Run]:
    """The runs that are not finished."""
    return [r for r in runs if not (self.out / r.folder / RESULT).is_file()]

  def _train_and_judge(self, runs: Sequence[Run]) -> None:
    first, n = runs[0], len(self._train)
    steps = first.epochs * (n // first.batch)
    if not steps:
      raise UserError(
        f"A batch of {first.batch} is larger than the {n} training images."
      )
    configs = [self._run_config(r, steps) for r in runs]
    specs = [build.train_spec(c) for c in configs]
    started = time.perf_counter()
    trained = self._trainer(first, specs[0])(
      specs, [order(n, r.batch, steps, r.seed) for r in runs]
    )
    seconds = time.perf_counter() - started
    self._say(
      f"{first.method}: {len(runs)} of {steps} steps in {seconds:.1f} s, "
      f"{trained[0].sec_per_step * 1e3:.3g} ms a step"
    )
    for run, config, spec, found in zip(
      runs, configs, specs, trained, strict=True
    ):
      self._keep(run, config, spec, found)

  def _run_config(self, run: Run, steps: int) -> ConfigDict:
    config = self._config(
      run.method,
      run.weight,
      batch=run.batch,
      steps=steps,
      images=len(self._train),
    )
    config.seed = run.seed
    return config

  def _trainer(self, run: Run, spec) -> Trainer:
    key = run.method, run.batch, run.epochs
    if key not in self._trainers:
      on_cpu = jax.default_backend() == "cpu" and not self._stack
      by_steps = on_cpu and self._settings.network != "mlp"
      self._trainers[key] = Trainer(
        spec, self._on_device, self._stack, by_steps
      )
    return self._trainers[key]

  def _keep(self, run: Run, config: ConfigDict, spec, trained: Trained) -> None:
    """Judges a run and writes its result and its picture."""
    started = time.perf_counter()
    complete = run.phase == "final"
    vae = {"params": trained.params, "batch_stats": trained.batch_stats}
    model = Model(config, spec, config.steps, vae, {})
    own = METHODS[run.method].sampler
    sources = {"final": ("prior", *self._settings.sources), "sweep": (own,)}
    numbers, picture = self._judge(run.phase)(
      model, sources.get(run.phase, ("prior",)), complete
    )
    numbers["sec_per_step"] = trained.sec_per_step
    numbers["skipped_updates"] = trained.skipped
    folder = self.out / run.folder
    folder.mkdir(parents=True, exist_ok=True)
    if complete and run.seed == 0:
      pictures.save_png(folder / PICTURE, picture)
    result = {
      "format": FORMAT,
      **dataclasses.asdict(run),
      "steps": config.steps,
      "weights": {
        k: float(v) for k, v in config.weights.items() if v is not None
      },
      "numbers": numbers,
      "train_images": len(self._train),
      "features": self._features.name,
      "features_sha256": self._features.sha256,
      "jax": jax.__version__,
      "device": jax.devices()[0].device_kind,
    }
    files.write_text(folder / RESULT, json.dumps(result, indent=1) + "\n")
    self._say(
      f"{run.folder}: "
      + ", ".join(f"{k} {v:.4g}" for k, v in numbers.items() if k[:2] == "fd")
      + f"; judged in {time.perf_counter() - started:.1f} s"
    )


@contextlib.contextmanager
def _claim(folder: Path) -> Iterator[bool]:
  """Locks a folder; yields False if another process has locked it."""
  folder.mkdir(parents=True, exist_ok=True)
  with files.Lock(folder) as lock:
    try:
      lock.acquire()
      mine = True
    except UserError:
      mine = False
    yield mine

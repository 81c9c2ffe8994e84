"""The training loop: steps, logging, validation and checkpoints."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from clu import parameter_overview

from gamix_jax import build, data, files, paths, presets, step
from gamix_jax.checkpoint import Checkpoints, Preemption
from gamix_jax.config import ConfigDict
from gamix_jax.data.modalities import shape_text
from gamix_jax.errors import UserError
from gamix_jax.files import Lock
from gamix_jax.parallel import distributed, mesh
from gamix_jax.training import trackers, workdir
from gamix_jax.training.compiled_steps import CompiledSteps
from gamix_jax.training.monitor import HealthMonitor
from gamix_jax.training.profiling import Profile
from gamix_jax.training.progress import HELD_OUT, Progress
from gamix_jax.training.validation import Validator
from gamix_jax.training.writer import Writer

# Steps that are dispatched ahead of the device: enough to hide the host's work,
# few enough that the progress is accurate and a signal is handled promptly.
MAX_STEPS_IN_FLIGHT = 2


@dataclasses.dataclass
class Trainer:
  """The parts of a run; `done` is the number of steps done so far."""

  config: ConfigDict
  spec: step.TrainSpec
  layout: mesh.ShardingPlan
  compiled: CompiledSteps
  checkpoints: Checkpoints
  preemption: Preemption
  writer: Writer
  validator: Validator
  progress: Progress
  monitor: HealthMonitor
  profile: Profile

  def is_due(self, every: int, done: int) -> bool:
    """Whether `done` is a multiple of `every`, or the last step."""
    return done % every == 0 or done == self.config.steps

  def report(self, done: int, metrics: dict[str, Any]) -> None:
    """Logs scalars and histograms, and prints new warnings.

    Nothing of a discriminator before its start, since it has not learned yet.
    """
    if self.spec.has_discriminator and done <= self.spec.disc_start:
      metrics = {k: v for k, v in metrics.items() if not _of_a_discriminator(k)}
    metrics = {k: np.asarray(v) for k, v in metrics.items()}
    scalars = {k: float(v) for k, v in metrics.items() if v.ndim == 0}
    scalars |= self.progress.speed()
    self.writer.scalars(done, scalars)
    self.writer.histograms(done, {k: v for k, v in metrics.items() if v.ndim})
    self.progress.show(done, scalars)
    for line in self.monitor.messages(done, scalars):
      self.progress.say(line)

  def evaluate(self, done: int, state: step.TrainState) -> dict[str, float]:
    """Computes and logs metrics and pictures of held-out images.

    Returns:
      {"eval/mae": ...}.
    """
    with self.progress.paused():
      eval_metrics = self.validator.numbers(state)
      self.writer.scalars(done, eval_metrics)
      self.writer.images(done, self.validator.panels(state))
    text = "  ".join(
      f"{k} {eval_metrics[f'eval/{k}']:.4g}"
      for k in HELD_OUT
      if f"eval/{k}" in eval_metrics
    )
    self.progress.say(f"held out at {done}: {text}")
    return eval_metrics

  def save(
    self,
    done: int,
    state: step.TrainState,
    metrics: dict[str, Any],
    eval_metrics: dict[str, float],
    last: bool,
  ) -> None:
    """Saves a checkpoint, unless the run could not continue from it.

    While the loss is not finite the weights may be beyond recovery. They must
    not replace good ones among the checkpoints that are kept.
    """
    nonfinite = int(metrics["nonfinite/consecutive"]) > 0
    if nonfinite and not last:
      self.progress.say(f"{done}: not saved, since the loss is not finite.")
      return
    if nonfinite:
      _check_weights(done, state)
    self.checkpoints.save(done, state, eval_metrics)

  def step_after(self, done: int) -> Callable:
    """Returns the compiled step, and says if the discriminator starts."""
    spec, first = self.spec, self.spec.disc_start
    if 0 < first == done and spec.has_discriminator:
      text = f"{first}: the discriminator starts to learn"
      if (late := spec.weights.adversarial_start) > first:
        text += f", and the VAE to learn from it at {late}"
      self.progress.say(f"{text}.")
    with self.progress.paused():
      return self.compiled.at(done)

  def run(
    self,
    state: step.TrainState,
    begin: int,
    batches: Iterator[dict[str, np.ndarray]],
  ) -> dict[str, float]:
    """Runs the steps after `begin`.

    Args:
      state: of step `begin`.
      begin: the number of steps done.
      batches: from that step on.

    Returns:
      The metrics of the last evaluation; empty if a signal stopped the run.
    """
    config = self.config
    in_flight: collections.deque = collections.deque()
    eval_metrics: dict[str, float] = {}
    with self.progress.paused():
      first = next(batches)  # starts the readers
    batches = itertools.chain([first], batches)
    train_step = self.step_after(begin)
    for done in range(begin + 1, config.steps + 1):
      with self.profile.around(done):
        with self.progress.waiting():
          batch = next(batches)
        batch = {name: batch[name] for name in self.spec.batch_shapes(1)}
        batch = mesh.global_batch(self.layout.mesh, batch)
        if begin < done - 1 == self.spec.disc_start:
          train_step = self.step_after(done - 1)
        state, metrics = train_step(state, batch)
      if self.profile.after(done, state):
        self.progress.say(f"The trace of steps {config.profile} is written.")
      in_flight.append((done, metrics))
      if len(in_flight) > MAX_STEPS_IN_FLIGHT:
        _check_updates(*in_flight.popleft(), config)
      self.progress.advance(done)

      stop = self.preemption.reached(done)
      if self.is_due(config.log_every, done):
        self.compiled.check()
        self.report(done, metrics)
      save = self.is_due(config.checkpoint.every, done) or stop
      eval_metrics = {}
      # The best checkpoints are chosen by eval/elbo.
      needs_elbo = save and config.checkpoint.keep_best and not stop
      if self.is_due(config.eval_every, done) or needs_elbo:
        eval_metrics = self.evaluate(done, state)
      if save:
        while in_flight:
          _check_updates(*in_flight.popleft(), config)
        last = stop or done == config.steps
        self.save(done, state, metrics, eval_metrics, last)
      if stop:
        self.progress.say(f"Asked to stop: saving step {done}.")
        return {}
    return eval_metrics


def train(config: ConfigDict, folder: str) -> dict[str, float]:
  """Trains up to `config.steps`; continues the run that `folder` holds, if any.

  Args:
    config: as returned by a file in configs/; it is validated here.
    folder: the workdir.

  Returns:
    The metrics of the last evaluation, {"eval/mae": ...}; empty if a signal
    stopped the run.

  Raises:
    UserError: any problem that the user can fix. Most are raised before
      anything is written.
  """
  presets.complete(config)
  if "://" in folder:
    raise UserError(
      f"--workdir={folder} is an address, but must be a folder. Mount the "
      "storage and use its path; see launch/README.md."
    )
  path = paths.resolve(folder)
  lock = Lock(path)
  # Fail before the data are read.
  distributed.run_on_main(lock.check)
  distributed.run_on_main(partial(trackers.check_installed, config))
  spec = build.train_spec(config)
  devices = mesh.create_mesh(
    config.data.batch_size, config.mesh.fsdp, config.optim.accumulate
  )
  layout = mesh.ShardingPlan(devices, config.mesh.fsdp_min_size)
  _make_absolute(config.data)
  train_set = data.open_dataset(config.data, "train", config.seed)
  test_set = data.open_dataset(config.data, "test", config.seed)
  if spec.multimodal:
    _note_observed(config, spec, train_set)
  fingerprint = data.fingerprint(train_set, test_set)
  abstract = layout.with_shardings(jax.eval_shape(partial(step.init, spec)))

  with (
    lock,
    CompiledSteps(spec, config, abstract, layout) as compiled,
    Checkpoints(
      path / "checkpoints",
      keep=config.checkpoint.keep,
      keep_best=config.checkpoint.keep_best,
    ) as checkpoints,
    Preemption() as preemption,
  ):
    distributed.run_on_main(
      partial(workdir.prepare, path, config, lock, fingerprint)
    )
    _log_setup(path, config, spec, abstract, devices, train_set, test_set)

    compiled.start(checkpoints.latest() or 0)
    begin, state = _restore_or_init(spec, checkpoints, abstract, layout)
    compiled.start(begin)  # if the newest is damaged
    trainer = Trainer(
      config,
      spec,
      layout,
      compiled,
      checkpoints,
      preemption,
      trackers.open_writer(path, begin, config)
      if distributed.is_main_process()
      else Writer(),
      Validator(spec, config, layout, test_set),
      Progress(
        begin,
        config.steps,
        config.data.batch_size,
        shown=distributed.is_main_process(),
      ),
      HealthMonitor(config, train_set.in_memory),
      Profile(config, path, shown=distributed.is_main_process()),
    )
    if trainer.validator.left_out:
      _print_main(trainer.validator.left_out)
    batches = data.batches(
      train_set,
      batch_size=config.data.batch_size,
      seed=config.seed,
      start=begin,
      flip=config.data.flip,
      workers=config.data.workers,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    try:
      if begin < config.steps:
        eval_metrics = trainer.run(state, begin, batches)
      else:  # an earlier start finished and logged these
        eval_metrics = trainer.validator.numbers(state)
    finally:
      batches.close()
      trainer.profile.close()
      trainer.progress.close()
      trainer.writer.close()
  latest = checkpoints.latest()
  _log_result(path, config, eval_metrics, latest, trainer.progress)
  return eval_metrics


def _note_observed(
  config: ConfigDict, spec: step.TrainSpec, train_set: data.MultimodalDataset
) -> None:
  """Writes to the config which subsets of the modalities are trained.

  Raises:
    UserError: one is missing in all training observations.
  """
  for name, there in zip(train_set.names, train_set.mask.T, strict=True):
    if not there.any():
      raise UserError(
        f"data.source={train_set.settings.source}: {name} is missing in all "
        "training observations, so it cannot be learned; leave it out of "
        "data.modalities."
      )
  sizes = np.unique(train_set.mask.sum(axis=1)).astype(int).tolist()
  config.multimodal.observed_sizes = tuple(sizes)
  trained = spec.vae.trained_sizes(sizes)
  if len(trained) < len(spec.modalities):
    _print_main(
      f"Note: multimodal.fusion={config.multimodal.fusion} is trained only "
      f"for {' or '.join(map(str, trained))} of {len(spec.modalities)} "
      "modalities. To encode other subsets, use another objective, such as "
      "masked, or data.missing."
    )


def _make_absolute(section: ConfigDict) -> None:
  """Makes paths absolute, in place, so that later commands find the data."""
  section.source = data.resolve_source(section.source)
  if section.cache not in ("none", "memory"):
    section.cache = str(paths.resolve(section.cache))


def _of_a_discriminator(name: str) -> bool:
  """Whether a metric is computed with a discriminator."""
  return name.startswith(("disc/", "code/")) or name.endswith("adversarial")


def _restore_or_init(spec, checkpoints, abstract, layout):
  """Returns (step, state) of the newest complete checkpoint, or a new state."""
  restored = checkpoints.restore(abstract)
  if restored is not None:
    _print_main(f"Continuing at step {restored[0]}.")
    return restored
  return 0, step.init_sharded(spec, layout.shardings(abstract))


def _check_updates(
  done: int, metrics: dict[str, Any], config: ConfigDict
) -> None:
  """Stops the run after too many consecutive non-finite updates.

  Raises:
    UserError: `guard.max_nonfinite` updates in a row were not finite.
  """
  consecutive = int(metrics["nonfinite/consecutive"])
  if consecutive >= config.guard.max_nonfinite:
    raise UserError(
      f"The loss or its gradient was not finite in the {consecutive} steps up "
      f"to {done}, whose updates were skipped. The last checkpoint is kept.\n"
      "Lower the learning rates, set optim.*.clip, or start the discriminator "
      "later (adversarial.disc_start, .gen_delay, ramp.adversarial)."
    )


def _check_weights(done: int, state: step.TrainState) -> None:
  """Checks that a state is finite before it is saved.

  Raises:
    UserError: a value of the state is not finite.
  """
  if not jax.jit(step.finite)(state):
    raise UserError(
      f"The weights are not finite after step {done}, which is not saved; the "
      "last checkpoint is kept, and the same command continues from there.\n"
      "If it happens again: lower the learning rates, set optim.*.clip, or "
      "start the discriminator later (adversarial.disc_start, .gen_delay, "
      "ramp.adversarial)."
    )


def _log_setup(
  path, config, spec, abstract, devices, train_set, test_set
) -> None:
  """Prints a summary of the data, the model and the devices."""
  table = parameter_overview.get_parameter_overview(
    {"vae": abstract.vae.params, "disc": abstract.disc.params},
    include_stats=False,
    max_lines=None,
  )
  if distributed.is_main_process():
    files.write_text(path / "parameters.txt", table + "\n")
  parts = dict(abstract.vae.params) | {"discriminator": abstract.disc.params}
  counts = {k: parameter_overview.count_parameters(v) for k, v in parts.items()}
  shapes = [shape_text(m.shape) for m in spec.modalities.values()]
  if spec.multimodal:
    shapes = map(" ".join, zip(spec.modalities, shapes, strict=True))
  noun = "observations" if spec.multimodal else "images"
  kinds = collections.Counter(d.device_kind for d in devices.devices.flat)
  hardware = ", ".join(f"{n} x {kind}" for kind, n in kinds.items())
  if distributed.is_multiprocess():
    hardware += f" in {jax.process_count()} processes"
  if (fsdp := config.mesh.fsdp) > 1:
    hardware += f", each copy of the state sharded over {fsdp}"
  _print_main(
    f"Data       {config.data.source}: {len(train_set)} {noun} to train on, "
    f"{len(test_set)} held out, {', '.join(shapes)}\n"
    f"Parameters {sum(counts.values()):,}: "
    + ", ".join(f"{k} {v:,}" for k, v in counts.items())
    + f" (all in {path / 'parameters.txt'})\n"
    f"Devices    {hardware}; batch {config.data.batch_size}, "
    f"{config.data.batch_size // devices.size} per device; {config.dtype}"
  )


def _log_result(path, config, eval_metrics, latest, progress) -> None:
  """Prints a summary at the end of a run."""
  status = "Done" if latest == config.steps else "Stopped"
  _print_main(
    f"{status}: step {latest} of {config.steps}, {progress.elapsed()}."
  )
  if eval_metrics:
    width = max(map(len, eval_metrics))
    for name, value in eval_metrics.items():
      _print_main(f"  {name:<{width}}  {value:.5g}")
    _print_main(
      f"Pictures in {path / 'images'}, checkpoint in {path}/checkpoints."
    )
  else:
    _print_main("The same command continues it.")


def _print_main(line: str) -> None:
  """Prints a line from the main process only."""
  if distributed.is_main_process():
    print(line, flush=True)

"""The loop: batches in; a state, numbers, pictures and checkpoints out."""

import collections
import concurrent.futures
import dataclasses
import itertools
from functools import partial
from typing import Any

import jax
import numpy as np
from clu import parameter_overview

from gamix_jax import build, data, files, paths, presets, step
from gamix_jax.checkpoint import Checkpoints, Preemption
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.files import Lock
from gamix_jax.parallel import distributed, mesh
from gamix_jax.training import workdir
from gamix_jax.training.monitor import HealthMonitor
from gamix_jax.training.profiling import Profile
from gamix_jax.training.progress import HELD_OUT, Progress
from gamix_jax.training.validation import Validator
from gamix_jax.training.writer import NullWriter, Writer

# Steps that may be under way on the device: enough to hide the host, few
# enough for the progress to be true and a signal to be answered.
IN_FLIGHT = 2


@dataclasses.dataclass
class Trainer:
  """What one run holds while it runs."""

  config: ConfigDict
  spec: step.TrainSpec
  checkpoints: Checkpoints
  writer: Writer | NullWriter
  examiner: Validator
  progress: Progress
  monitor: HealthMonitor
  profile: Profile

  def is_due(self, every: int, done: int) -> bool:
    """Whether something is to be done after `done` steps; at the end, too."""
    return done % every == 0 or done == self.config.steps

  def report(self, done: int, metrics: dict[str, Any]) -> None:
    """Scalars to the log, histograms, and what ails the run."""
    metrics = {k: np.asarray(v) for k, v in metrics.items()}
    scalars = {k: float(v) for k, v in metrics.items() if v.ndim == 0}
    scalars |= self.progress.speed()
    self.writer.scalars(done, scalars)
    self.writer.histograms(done, {k: v for k, v in metrics.items() if v.ndim})
    self.progress.show(done, scalars)
    for line in self.monitor.messages(done, scalars):
      self.progress.say(line)

  def examine(self, done: int, state: step.TrainState) -> dict[str, float]:
    """Held-out numbers and pictures."""
    with self.progress.paused():
      numbers = self.examiner.numbers(state)
      self.writer.scalars(done, numbers)
      self.writer.images(done, self.examiner.panels(state))
    text = "  ".join(
      f"{k} {numbers[f'eval/{k}']:.4g}"
      for k in HELD_OUT
      if f"eval/{k}" in numbers
    )
    self.progress.say(f"held out at {done}: {text}")
    return numbers

  def save(self, done, state, numbers, skipping: bool, last: bool) -> None:
    """A checkpoint, if the run can go on from it.

    Weights may be past mending where the loss is not finite: they are not to
    push good ones out of the checkpoints.
    """
    if skipping and not last:
      self.progress.say(f"{done}: not saved, since the loss is not finite.")
      return
    if skipping:
      _check_weights(done, state)
    self.checkpoints.save(done, state, numbers)


def train(config: ConfigDict, folder: str) -> dict[str, float]:
  """Trains, or goes on with what `folder` holds, up to `config.steps`.

  Args:
    config: from a file of configs/; checked here.
    folder: the workdir.

  Returns:
    The last held-out numbers, {"eval/mae": ...}; empty if a signal ended it.

  Raises:
    UserError: whatever the user can fix, before anything is written where
      possible.
  """
  presets.complete(config)
  if "://" in folder:
    raise UserError(
      f"--workdir={folder} is an address, and a folder is needed; mount it, "
      "see launch/README.md."
    )
  path = paths.resolve(folder)
  lock = Lock(path)
  distributed.run_on_main(lock.check)  # now, not only after all data are read
  spec = build.train_spec(config)
  devices = mesh.create_mesh(config.data.batch_size, config.mesh.fsdp)
  layout = mesh.ShardingPlan(devices, config.mesh.fsdp_min_size)
  _make_absolute(config.data)
  train_set = data.open_dataset(config.data, "train", config.seed)
  test_set = data.open_dataset(config.data, "test", config.seed)
  fingerprint = data.fingerprint(train_set, test_set)

  with (
    lock,
    Checkpoints(
      path / "checkpoints",
      keep=config.checkpoint.keep,
      keep_best=config.checkpoint.keep_best,
    ) as checkpoints,
    concurrent.futures.ThreadPoolExecutor(1) as beside,
    Preemption() as preemption,
  ):
    distributed.run_on_main(
      partial(workdir.prepare, path, config, lock, fingerprint)
    )
    abstract = layout.with_shardings(jax.eval_shape(partial(step.init, spec)))
    _log_setup(path, config, abstract, devices, train_set, test_set)
    # What takes longest goes beside all that is to be made ready.
    compiling = None
    if (checkpoints.latest() or 0) < config.steps:
      compiling = beside.submit(_compile, spec, config, abstract, layout)
    begin, state = _restore_or_init(spec, checkpoints, abstract, layout)
    loop = Trainer(
      config,
      spec,
      checkpoints,
      Writer(path, begin) if distributed.is_main_process() else NullWriter(),
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
    if loop.examiner.left_out:
      _print_main(loop.examiner.left_out)
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
      numbers = _run(loop, layout, compiling, state, begin, batches, preemption)
    finally:
      batches.close()
      loop.profile.close()
      loop.progress.close()
      loop.writer.close()
  _log_result(path, config, numbers, checkpoints.latest(), loop.progress)
  return numbers


def _make_absolute(section: ConfigDict) -> None:
  """Paths that mean the same wherever a later command is started."""
  section.source = data.resolve_source(section.source)
  if section.cache not in ("none", "memory"):
    section.cache = str(paths.resolve(section.cache))


def _compile(spec, config, abstract, layout):
  """The training step, compiled for the state and the batch that will come."""
  batch = {
    name: jax.ShapeDtypeStruct(
      (config.data.batch_size, *modality.shape),
      modality.dtype,
      sharding=mesh.batch_sharding(layout.mesh),
    )
    for name, modality in spec.modalities.items()
  }
  train_step = step.jit_train_step(spec, layout)
  return train_step.lower(abstract, batch).compile()


def _restore_or_init(spec, checkpoints, abstract, layout):
  """The step and the state to go on from: the newest whole one, or a new."""
  restored = checkpoints.restore(abstract)
  if restored is not None:
    _print_main(f"Continuing at step {restored[0]}.")
    return restored
  return 0, step.init_sharded(spec, layout.shardings(abstract))


def _prepare(loop, layout, compiling, state, batches):
  """The compiled step; the batches, the first of which is there by now."""
  with loop.progress.paused():
    batches = itertools.chain([next(batches)], batches)  # begins to read
    if compiling is not None:
      return compiling.result(), batches
    return _compile(loop.spec, loop.config, state, layout), batches


def _run(
  loop, layout, compiling, state, begin, batches, preemption
) -> dict[str, float]:
  """The steps; returns the last held-out numbers."""
  config = loop.config
  if begin < config.steps:
    train_step, batches = _prepare(loop, layout, compiling, state, batches)
  in_flight: collections.deque = collections.deque()
  numbers: dict[str, float] = {}
  for done in range(begin + 1, config.steps + 1):
    with loop.profile.around(done):
      with loop.progress.waiting():
        batch = next(batches)
      batch = {name: batch[name] for name in loop.spec.modalities}
      batch = mesh.global_batch(layout.mesh, batch)
      state, metrics = train_step(state, batch)
    if loop.profile.after(done, state):
      loop.progress.say(f"The trace of steps {config.profile} is written.")
    in_flight.append((done, metrics))
    if len(in_flight) > IN_FLIGHT:
      _check(*in_flight.popleft(), config)
    loop.progress.advance(done)

    stop = preemption.reached(done)
    if loop.is_due(config.log_every, done):
      loop.report(done, metrics)
    save = loop.is_due(config.checkpoint.every, done) or stop
    numbers = {}
    best = save and config.checkpoint.keep_best and not stop
    if loop.is_due(config.eval_every, done) or best:
      numbers = loop.examine(done, state)
    if save:
      while in_flight:
        _check(*in_flight.popleft(), config)
      skipping = int(metrics["nonfinite/consecutive"]) > 0
      last = stop or done == config.steps
      loop.save(done, state, numbers, skipping, last)
    if stop:
      loop.progress.say(f"Asked to stop: saving step {done}.")
      return {}
  if begin >= config.steps:  # done before, and written down then
    numbers = loop.examiner.numbers(state)
  return numbers


def _check(done: int, metrics: dict[str, Any], config: ConfigDict) -> None:
  """Ends a run whose updates have not been finite for a while.

  Raises:
    UserError: says since when, and what helps.
  """
  in_a_row = int(metrics["nonfinite/consecutive"])
  if in_a_row >= config.guard.max_nonfinite:
    raise UserError(
      f"The loss or its gradient was not finite in the {in_a_row} steps up to "
      f"{done}; the weights are those before. The last checkpoint is kept.\n"
      "Lower the learning rates, set optim.*.clip, or start the discriminator "
      "later (adversarial.disc_start, .gen_delay, ramp.adversarial)."
    )


def _check_weights(done: int, state: step.TrainState) -> None:
  """Refuses to save, for a run to go on from, what it could not go on from.

  Raises:
    UserError: a number of the state is not finite.
  """
  if not jax.jit(step.finite)(state):
    raise UserError(
      f"The weights are not finite after step {done}, which is not saved; the "
      "last checkpoint is kept, and the same command continues from there.\n"
      "If it comes again: lower the learning rates, set optim.*.clip, or start "
      "the discriminator later (adversarial.disc_start, .gen_delay, "
      "ramp.adversarial)."
    )


def _log_setup(path, config, abstract, devices, train_set, test_set) -> None:
  """What is about to be trained, and on what."""
  table = parameter_overview.get_parameter_overview(
    {"vae": abstract.vae.params, "disc": abstract.disc.params},
    include_stats=False,
    max_lines=None,
  )
  if distributed.is_main_process():
    files.write_text(path / "parameters.txt", table + "\n")
  parts = dict(abstract.vae.params) | {"discriminator": abstract.disc.params}
  counts = {k: parameter_overview.count_parameters(v) for k, v in parts.items()}
  h, w, c = train_set.shape
  kinds = collections.Counter(d.device_kind for d in devices.devices.flat)
  on = ", ".join(f"{n} x {kind}" for kind, n in kinds.items())
  if distributed.is_multiprocess():
    on += f" in {jax.process_count()} processes"
  if (parts := config.mesh.fsdp) > 1:
    on += f", each copy of the state over {parts}"
  _print_main(
    f"Data       {config.data.source}: {len(train_set)} images to train on, "
    f"{len(test_set)} held out, {h}x{w}x{c}\n"
    f"Parameters {sum(counts.values()):,}: "
    + ", ".join(f"{k} {v:,}" for k, v in counts.items())
    + f" (all in {path / 'parameters.txt'})\n"
    f"Devices    {on}; batch {config.data.batch_size}, "
    f"{config.data.batch_size // devices.size} a device; {config.dtype}"
  )


def _log_result(path, config, numbers, latest, progress) -> None:
  """The summary at the end."""
  word = "Done" if latest == config.steps else "Stopped"
  _print_main(f"{word}: step {latest} of {config.steps}, {progress.elapsed()}.")
  if numbers:
    width = max(map(len, numbers))
    for name, value in numbers.items():
      _print_main(f"  {name:<{width}}  {value:.5g}")
    _print_main(
      f"Pictures in {path / 'images'}, checkpoint in {path}/checkpoints."
    )
  else:
    _print_main("The same command continues it.")


def _print_main(line: str) -> None:
  """To the user, once for all processes."""
  if distributed.is_main_process():
    print(line, flush=True)

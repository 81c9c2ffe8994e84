"""Saves a run's state in the background; restores only undamaged steps.

A directory holds one folder per step, which Orbax writes under a temporary name
and renames when it is complete:

30/state        the arrays by name
30/about        JSON: format, versions, the arrays' shapes and dtypes, metrics
30/SHA256SUMS   checksums of all other files of the step
damaged/30      a step that was found damaged

Reading changes nothing in the directory. The first `save` deletes what
interrupted saves left behind.
"""

import errno
import importlib.metadata
import logging
import math
import os
import pathlib
import tempfile
import time
import weakref
from collections.abc import Collection, Mapping
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from gamix_jax import save_errors
from gamix_jax.checkpoint import integrity, leaves
from gamix_jax.errors import UserError
from gamix_jax.parallel import distributed

DELETION_SECONDS = 0.2  # a folder unchanged for so long is not being deleted
_LOOKS = 20  # attempts to find a step while a run replaces them
_TOO_FAST = -1
_SHOWN = 3  # damaged steps or differing arrays named in a message
_DAMAGED = "damaged"
_PATTERN = "[]*?"
_PACKAGES = ("gamix_jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")
_LAST_WRITES = 10.0  # seconds that writes may go on after a save has failed
_LONG_WAIT = 1.0  # seconds; longer waits are logged
_log = logging.getLogger(__name__)


class Checkpoints:
  """The checkpoints of one run, in one directory.

  Use it in a `with` block: a process that ends without `close`, for instance by
  an exception, loses the save in progress (never a complete one).

  Every process of a run creates one on the same (shared) directory and calls
  the same methods in the same order.

  Attributes:
    directory: where the steps are.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    *,
    keep: int,
    keep_best: int = 0,
    best_metric: str = "eval/elbo",
    best_mode: str = "max",
  ) -> None:
    """Reads and changes nothing yet.

    Args:
      directory: where the steps are; the first `save` creates it.
      keep: how many of the newest steps to keep, 1 or more.
      keep_best: how many of the best steps to keep in addition.
      best_metric: the metric that decides which steps are best; a step that was
        saved without it, or with NaN, is never one of them.
      best_mode: "max" or "min".

    Raises:
      UserError: `keep`, `keep_best` or `best_mode` is out of range.
    """
    if keep < 1 or keep_best < 0:
      raise UserError(
        f"checkpoint: keep is {keep} and keep_best {keep_best}; "
        "keep at least 1 and keep_best at least 0."
      )
    if best_mode not in ("max", "min"):
      raise UserError(f"checkpoint: best_mode is {best_mode!r}; max or min.")
    self.directory = (
      epath.Path(os.path.abspath(directory))
      if "://" not in os.fspath(directory)
      else epath.Path(directory)
    )
    self._keep, self._keep_best = keep, keep_best
    self._best_metric, self._best_mode = best_metric, best_mode
    self._faults: dict[int, str] = {}  # {damaged step: what is wrong with it}
    self._manager: ocp.CheckpointManager | None = None
    self._alias: tempfile.TemporaryDirectory | None = None
    self._saving: int | None = None  # the step that is being written
    # The last saved step and weak references to its leaves.
    self._saved: tuple[int, list[Any]] | None = None

  # --- list ---

  def steps(self) -> list[int]:
    """The complete steps, oldest first, without those found damaged."""
    return [
      step
      for step in self._folders()
      if step not in self._faults
      and (self._folder(step) / integrity.CHECKSUMS).exists()
    ]

  def latest(self) -> int | None:
    """The newest complete step, or None."""
    return max(self.steps(), default=None)

  def saved_bytes(self, step: int | None = None) -> int:
    """The bytes that a step takes on disk; by default the newest step."""
    step = self.latest() if step is None else step
    return 0 if step is None else integrity.saved_bytes(self._folder(step))

  def metadata(self, step: int) -> dict[str, Any]:
    """What was saved with a step besides its arrays.

    Args:
      step: one of `steps()`.

    Returns:
      `format`, `step`, `versions` {package: version}, `leaves` {name: [shape,
      dtype]} and `metrics`.

    Raises:
      UserError: a newer version of the program wrote it.
    """
    path = self._folder(step) / "about"
    found = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(path)
    if found["format"] > integrity.FORMAT:
      wrote = found["versions"].get("gamix_jax", "a newer version")
      raise UserError(
        f"{self._folder(step)} has checkpoint format {found['format']}, this "
        f"program knows {integrity.FORMAT} and older.\n"
        f"Install gamix_jax {wrote}, which wrote it, or later."
      )
    return found

  def _folder(self, step: int) -> epath.Path:
    return self.directory / str(step)

  def _folders(self) -> list[int]:
    """The steps that have a folder, whatever is in it, oldest first."""
    try:
      names = [p.name for p in self.directory.iterdir() if p.is_dir()]
    except FileNotFoundError:
      return []
    except OSError as error:
      raise UserError(
        f"The checkpoints in {self.directory} cannot be listed: "
        f"{error.strerror}.\nFix that, or use another workdir."
      ) from error
    return sorted(int(n) for n in names if n.isdecimal() and n == str(int(n)))

  # --- restore ---

  def restore(
    self, abstract_state: Any, step: int | None = None
  ) -> tuple[int, Any] | None:
    """Restores the newest undamaged step, after checking all its files.

    Args:
      abstract_state: the state as `jax.eval_shape` returns it, each leaf with
        the sharding to restore it to, which need not be the one it was saved
        with. A leaf without a sharding goes to this process's first device.
      step: restore this step and no other.

    Returns:
      The step and its state, or None if there is no checkpoint at all. Damaged
      steps are skipped with a warning; the next `save` moves them aside.

    Raises:
      UserError: there are steps but all are damaged; the requested step is
        missing or damaged; the step is of another model or was written by a
        newer version of the program.
    """
    return self._restore(abstract_state, step, part=False)

  def restore_part(
    self, abstract_part: Any, step: int | None = None
  ) -> tuple[int, Any] | None:
    """Restores a part of a state, such as the weights without the optimizers.

    Args:
      abstract_part: any pytree whose leaves have the names that they have in
        the state, such as `{"vae": {"params": ...}, "ema": ...}`, or the state
        with `None` for what is not wanted; shardings as in `restore`.
      step: restore this step and no other.

    Returns:
      As `restore`. The other leaves are not read, apart from their checksums.

    Raises:
      UserError: as `restore`.
    """
    return self._restore(abstract_part, step, part=True)

  def _restore(
    self, abstract: Any, step: int | None, *, part: bool
  ) -> tuple[int, Any] | None:
    self.wait()
    named = leaves.flatten(abstract).items()
    wanted = {name: leaves.to_abstract(leaf) for name, leaf in named}
    tried: set[int] = set()  # passed all checks and still could not be read
    while (chosen := self._choose(step, tried)) is not None:
      found = self._try_read(chosen, wanted, part=part)
      if found is not None:
        return chosen, leaves.unflatten(abstract, found)
      tried.add(chosen)
    return None

  def _try_read(
    self, step: int, wanted: dict[str, jax.ShapeDtypeStruct], *, part: bool
  ) -> dict[str, jax.Array] | None:
    """The arrays of a step that passed all checks; None if reading fails.

    Raises:
      UserError: it is of another model or was written by a newer version.
    """
    found, fault = None, None
    try:
      where = str(self._folder(step))
      shapes = leaves.shapes(wanted)
      leaves.check_same(self._shapes(step), shapes, where, part=part)
      found = self._read(step, wanted)
    except (UserError, MemoryError, jax.errors.JaxRuntimeError):
      raise  # caused by the model or the devices, not by the files
    # A bad file makes Orbax and tensorstore raise almost anything.
    except Exception as error:
      if distributed.peer_failure(error):
        raise
      cause = error.__cause__ or error
      fault = f"it cannot be read ({integrity.first_sentence(cause)})"
    if not distributed.any_process(fault is not None):
      return found
    # A run in progress deletes its old steps; that is not damage.
    lasting = self._lasting_fault(step)
    if self._folder(step).exists():
      self._report(step, lasting or fault or "another host cannot read it")
    return None

  def _read(
    self, step: int, wanted: dict[str, jax.ShapeDtypeStruct]
  ) -> dict[str, jax.Array]:
    stored = {n: x for n, x in wanted.items() if x.size}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      found = reader.restore(
        self._folder(step) / integrity.STATE,
        args=ocp.args.PyTreeRestore(
          item=stored,
          restore_args=ocp.checkpoint_utils.construct_restore_args(stored),
          partial_restore=True,
        ),
      )
    return found | {
      n: jnp.empty(x.shape, x.dtype, device=x.sharding)
      for n, x in wanted.items()
      if not x.size
    }

  def _shapes(self, step: int) -> dict[str, leaves.ShapeDtype]:
    saved = self.metadata(step)["leaves"]
    return {n: (tuple(shape), dtype) for n, (shape, dtype) in saved.items()}

  # --- find an undamaged step ---

  def _choose(
    self, step: int | None, tried: Collection[int] = ()
  ) -> int | None:
    """The undamaged step to restore; None if there is no step at all."""
    chosen = self._newest_undamaged(step, tried)
    if chosen is not None:
      return chosen
    if step is not None and step not in self._faults:
      have = ", ".join(map(str, distributed.broadcast(self.steps()))) or "none"
      raise UserError(
        f"{self.directory} holds no checkpoint of step {step}; "
        f"complete are: {have}."
      )
    if self._faults:
      damaged = sorted(self._faults.items(), reverse=True)
      shown = "; ".join(f"step {s}: {f}" for s, f in damaged[:_SHOWN])
      more = len(damaged) - _SHOWN
      raise UserError(
        f"Every checkpoint in {self.directory} is damaged "
        f"({shown}{f'; and {more} more' if more > 0 else ''}).\n"
        "Put a good copy there, or start a new run in another workdir."
      )
    return None

  def _newest_undamaged(
    self, step: int | None = None, tried: Collection[int] = ()
  ) -> int | None:
    """The newest undamaged step; process 0 looks, for all processes.

    Args:
      step: consider this step and no other.
      tried: steps not to consider.

    Raises:
      UserError: a run in progress deletes steps faster than they are checked.
    """
    found = None
    if jax.process_index() == 0:
      found = [self._look(step, tried), sorted(self._faults.items())]
    chosen, faults = distributed.broadcast(found)
    self._faults = dict(faults)
    if chosen == _TOO_FAST:
      raise UserError(
        f"The checkpoints in {self.directory} came and went faster than they "
        "could be read.\nTry again, or raise the run's checkpoint.keep or "
        "checkpoint.every."
      )
    return chosen

  def _look(self, step: int | None, tried: Collection[int]) -> int | None:
    """As `_newest_undamaged`, in one process; _TOO_FAST instead of raising."""
    for _ in range(_LOOKS):
      folders = self._folders()
      for one in reversed(folders if step is None else [step]):
        if one in tried:
          continue
        fault = self._lasting_fault(one)
        if fault is None and one in self._folders():
          self._faults.pop(one, None)
          return one
        if fault is not None:
          self._report(one, fault)
      if self._folders() == folders:
        return None
    return _TOO_FAST

  def _lasting_fault(self, step: int) -> str | None:
    """A step's fault; None if it has none or is being deleted."""
    folder = self._folder(step)
    while (fault := integrity.verify(folder)) is not None:
      before = integrity.file_sizes(folder)
      time.sleep(DELETION_SECONDS)
      if integrity.file_sizes(folder) == before:
        return fault if folder.exists() else None
    return None

  def _report(self, step: int, fault: str) -> None:
    """Remembers a damaged step, and logs it once."""
    if self._faults.get(step) != fault:
      _log.warning(
        "The checkpoint of step %d in %s is damaged: %s.",
        *(step, self.directory, fault),
      )
    self._faults[step] = fault

  # --- save ---

  def save(
    self, step: int, state: Any, metrics: Mapping[str, float] | None = None
  ) -> None:
    """Saves a state in the background.

    The arrays are copied before this returns, so the state may be donated to
    the next step. The oldest steps are deleted once the new one is complete.
    If the step is saved already with the same bits, it is left as it is,
    including its metrics.

    Args:
      step: its number; no complete step may have a larger one.
      state: any pytree of arrays and numbers.
      metrics: saved with the step; `keep_best` uses one of them.

    Raises:
      UserError: this save or the one before failed (full disk, no permission),
        or the directory holds this step with another state, or a later step.
    """
    began = time.monotonic()
    self.wait()
    if (waited := time.monotonic() - began) > _LONG_WAIT:
      _log.debug("Step %d waited %.1f s for the save before.", step, waited)
    if self._already_saved(step, state):
      return
    arrays = leaves.to_arrays(state)
    metrics = {k: float(v) for k, v in (metrics or {}).items()}
    about = {
      "format": integrity.FORMAT,
      "step": step,
      "versions": _versions(),
      "leaves": leaves.shapes(arrays),
      # JSON has no NaN; as text it is readable everywhere.
      "metrics": {
        k: v if math.isfinite(v) else str(v) for k, v in metrics.items()
      },
    }
    best = metrics.get(self._best_metric, math.nan)
    self._saving = step
    try:
      self._quarantine()
      self._open().save(
        step,
        args=ocp.args.Composite(
          # Orbax refuses arrays without elements; their shapes are enough.
          state=ocp.args.StandardSave(
            {n: x for n, x in arrays.items() if x.size}
          ),
          about=ocp.args.JsonSave(about),
        ),
        metrics={"best": best} if math.isfinite(best) else None,
        force=True,  # the training loop decides whether to save
      )
    except Exception as error:
      self._fail(error)
    self._saved = (step, [_reference(x) for x in jax.tree.leaves(state)])

  def wait(self) -> None:
    """Returns when the last save is complete.

    Raises:
      UserError: it failed.
    """
    if self._manager is None or self._saving is None:
      return
    try:
      self._manager.wait_until_finished()
      if jax.process_index() == 0:
        integrity.finalize_checksums(self._folder(self._saving))
    except Exception as error:
      self._fail(error)
    self._saving = None

  def close(self) -> None:
    """Waits for the last save and stops the threads.

    Raises:
      UserError: the last save failed.
    """
    self.wait()
    if self._manager is not None:
      self._manager.close()
      self._manager = None
    if self._alias is not None:
      self._alias.cleanup()
      self._alias = None

  def __enter__(self) -> Self:
    """Does nothing yet."""
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    ended: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    """Closes; a failed save does not hide the exception of the block."""
    if ended is not None and distributed.peer_failure(ended):
      return  # the save in progress would wait for a process that is gone
    try:
      self.close()
    except UserError as error:
      if ended is None:
        raise
      # A full disk that both ran into is reported once.
      known = isinstance(ended, UserError) and save_errors.reason(ended)
      if known != save_errors.reason(error):
        _log.error("%s", error)

  def _already_saved(self, step: int, state: Any) -> bool:
    """Whether the step is saved with these very bits.

    Raises:
      UserError: it is saved with others, or there is a later step.
    """
    steps, folders = distributed.broadcast([self.steps(), self._folders()])
    latest = max([*steps, step])
    if latest > step:
      raise UserError(
        f"{self.directory} holds step {latest} already, so step {step} would "
        "not be what a run continues from.\n"
        f"Move the later steps away, or continue from step {latest}."
      )
    if self._saved is not None and self._saved[0] == step:
      now, then = jax.tree.leaves(state), self._saved[1]
      same = len(now) == len(then) and all(
        r is not None and r() is x for r, x in zip(then, now, strict=True)
      )
      if not distributed.any_process(not same):
        return True  # the same array objects: no need to read the files
    if step not in folders or step in self._faults:
      return False
    if self._newest_undamaged(step) is None:
      return False
    arrays = leaves.to_arrays(state)
    where = str(self._folder(step))
    shapes = leaves.shapes(arrays)
    leaves.check_same(self._shapes(step), shapes, where, part=False)
    abstract = {n: leaves.to_abstract(x) for n, x in arrays.items()}
    saved = self._read(step, abstract)
    differ = [
      n for n in arrays if not leaves.bitwise_equal(saved[n], arrays[n])
    ]
    if distributed.any_process(bool(differ)):
      names = ", ".join(differ[:_SHOWN]) or "on another host"
      raise UserError(
        f"{where} is there already with another state ({names} differ).\n"
        "Continue from it, or use another workdir."
      )
    return True

  def _quarantine(self) -> None:
    """Moves damaged steps aside, so that they can be saved again."""
    if not self._faults:
      return
    if jax.process_index() == 0:
      place = self.directory / _DAMAGED
      place.mkdir(parents=True, exist_ok=True)
      for step in self._faults:
        target = place / str(step)
        if target.exists():
          target.rmtree()
        self._folder(step).rename(target)
        _log.warning(
          "Moved the damaged checkpoint of step %d to %s; delete it when you "
          "no longer need it.",
          step,
          target,
        )
    distributed.barrier("move damaged checkpoints aside")
    self._faults.clear()
    if self._manager is not None:
      self._manager.reload()

  def _open(self) -> ocp.CheckpointManager:
    """Orbax's manager; it deletes what interrupted saves left behind."""
    if self._manager is None:
      if jax.process_index() == 0:
        for step in self.steps():  # a run may have been killed before this
          integrity.finalize_checksums(self._folder(step))
      keep: list[Any] = [policies.LatestN(self._keep)]
      if self._keep_best:
        keep.append(
          policies.BestN(
            get_metric_fn=_best,
            reverse=self._best_mode == "min",
            n=self._keep_best,
            keep_checkpoints_without_metrics=False,
          )
        )
      self._manager = ocp.CheckpointManager(
        self._plain_name(),
        options=ocp.CheckpointManagerOptions(
          preservation_policy=policies.AnyPreservationPolicy(keep),
          best_fn=_best if self._keep_best else None,
          best_mode=self._best_mode,
          cleanup_tmp_directories=True,
          async_options=ocp.options.AsyncOptions(
            post_finalization_callback=self._add_checksums,
            # If the directory turns out to be read-only, Orbax's other threads
            # would wait 20 minutes for the folder that the first cannot make.
            create_directories_asynchronously=False,
          ),
        ),
      )
    return self._manager

  def _plain_name(self) -> epath.Path:
    """The directory under a name without glob characters.

    Orbax looks for the arrays it has just written with a glob; in a directory
    such as `lr [1]` it would find none.
    """
    if not set(_PATTERN) & set(str(self.directory)):
      return self.directory
    if self._alias is None:
      self._alias = tempfile.TemporaryDirectory(prefix="gamix_jax_")
      self.directory.mkdir(parents=True, exist_ok=True)
      link = pathlib.Path(self._alias.name, "checkpoints")
      link.symlink_to(self.directory)
    return epath.Path(self._alias.name) / "checkpoints"

  def _add_checksums(self) -> None:
    """Checks the arrays of a step and writes its checksums.

    Orbax calls this in its thread when all files of a step are written. It
    renames the folder after that and then deletes old steps; it does neither if
    this raises.
    """
    temporary = self._unfinished(f"{self._saving}.")
    for folder in temporary or [self._folder(self._saving)]:
      if fault := integrity.verify_arrays(folder):
        raise UserError(
          f"The checkpoint of step {self._saving} in {self.directory} came out "
          f"incomplete ({fault}).\nIf another program deletes files there, "
          "stop it; the same command continues from the checkpoint before."
        )
      integrity.write_checksums(folder)

  def _unfinished(self, prefix: str = "") -> list[epath.Path]:
    """Orbax's temporary folders whose names begin with `prefix`."""
    # Not by glob, which takes a name such as `lr [1]` for a pattern.
    return [
      path
      for path in self.directory.iterdir()
      if path.name.startswith(prefix) and save_errors.UNFINISHED in path.name
    ]

  def _delete_unfinished(self) -> None:
    """Deletes what a failed save left, until its last writes have ended.

    Orbax does not wait for the writes that run while another one fails. They
    rename and create files in the folder that is being deleted, and may create
    the folder again.

    Raises:
      OSError: the files cannot be deleted.
    """
    last_try = time.monotonic() + _LAST_WRITES
    while unfinished := self._unfinished():
      try:
        for folder in unfinished:
          folder.rmtree()
      except OSError as error:
        changing = error.errno in (errno.ENOENT, errno.ENOTEMPTY)
        if not changing or time.monotonic() > last_try:
          raise
      time.sleep(DELETION_SECONDS)

  def _fail(self, error: Exception) -> None:
    """Cleans up after a failed save and raises its error for the user."""
    step, self._saving, self._saved = self._saving, None, None
    manager, self._manager = self._manager, None
    if manager is not None:
      try:
        manager.close()
      except Exception as again:  # usually the same error once more
        _log.debug("closing after a failed save: %r", again)
    if jax.process_index() == 0:
      try:
        self._delete_unfinished()
      except OSError as again:
        # For instance in a directory made read-only. It does not count as a
        # checkpoint, and the next run's first save deletes it.
        _log.debug(
          "%s of step %d is left behind: %s", self.directory, step, again
        )
    if isinstance(error, UserError):
      raise error
    reason = save_errors.reason(error)
    if reason is None:
      raise error
    latest = self.latest()
    last = (
      "there is no complete one"
      if latest is None
      else f"the last complete one is step {latest}"
    )
    raise UserError(
      f"{reason} while saving the checkpoint of step {step} to "
      f"{self.directory}; {last}.\n"
      "Fix that, and the same command continues from there."
    ) from error


def _best(metrics: Mapping[str, float]) -> float:
  return metrics["best"]


def _versions() -> dict[str, str]:
  found = {}
  for package in _PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
      found[package] = "unknown"
  return found


def _reference(leaf: Any) -> Any:
  """A weak reference, so that a saved state does not stay in memory."""
  return weakref.ref(leaf) if isinstance(leaf, jax.Array) else None

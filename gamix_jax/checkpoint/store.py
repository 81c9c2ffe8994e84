"""Checkpoints: save without stopping, restore what is proven whole.

A directory holds one folder a step, made by Orbax under a temporary name and
renamed when finished: `30/state` (the arrays by name), `30/about` (JSON:
format, versions, shapes, metrics), `30/SHA256SUMS`. What was found damaged is
moved to `damaged/30`. Reading changes nothing in the directory: only the first
`save` clears away what interrupted runs left behind.
"""

import logging
import math
import os
import pathlib
import tempfile
import time
import weakref
from collections.abc import Mapping
from importlib import metadata
from types import TracebackType
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from gamix_jax import hosts, save_errors
from gamix_jax.checkpoint import checksums, content, leaves
from gamix_jax.checkpoint.reader import TOLD, Reader, abstract_leaf
from gamix_jax.errors import UserError

_DAMAGED = "damaged"
_PATTERN = "[]*?"
_TEMPORARY = ".orbax-checkpoint-tmp"
_PACKAGES = ("gamix_jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")
_LONG = 1.0  # seconds of waiting worth a line in the log
_log = logging.getLogger(__name__)


class Checkpoints(Reader):
  """The checkpoints of one run, in one directory.

  Use it in a `with`: a process that ends without `close`, by an exception for
  instance, loses the save under way (never one that was complete).

  Every process of a run makes one, on the same (shared) directory, and calls
  the same methods in the same order.
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
    """Looks at nothing and changes nothing yet.

    Args:
      directory: where the steps lie; made by the first `save`.
      keep: how many of the newest steps are kept, 1 or more.
      keep_best: how many of the best steps are kept besides.
      best_metric: the name among the metrics that says which are the best; a
        step saved without it, or with a NaN, is never among them.
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
    super().__init__(directory)
    self._keep, self._keep_best = keep, keep_best
    self._best_metric, self._best_mode = best_metric, best_mode
    self._manager: ocp.CheckpointManager | None = None
    self._alias: tempfile.TemporaryDirectory | None = None
    self._saving: int | None = None  # the step on its way to the disk
    self._saved: tuple[int, list[Any]] | None = None  # the last, and its leaves

  # --- saving --------------------------------------------------------------

  def save(
    self, step: int, state: Any, metrics: Mapping[str, float] | None = None
  ) -> None:
    """Saves a state in the background.

    The arrays are copied before this returns, so the state may be donated to
    the next step. The oldest steps are deleted once the new one is complete.
    A step already there is left as it is, metrics too, if it holds these very
    bits.

    Args:
      step: its number, larger than any complete step's (or that very step).
      state: any pytree of arrays and numbers.
      metrics: noted with the step, and what `keep_best` goes by.

    Raises:
      UserError: this save or the one before failed (full disk, no permission),
        or the directory holds this step with another state, or a later one.
    """
    began = time.monotonic()
    self.wait()
    if (waited := time.monotonic() - began) > _LONG:
      _log.debug("Step %d waited %.1f s for the save before.", step, waited)
    if self._there(step, state):
      return
    arrays = leaves.arrays(state)
    metrics = {k: float(v) for k, v in (metrics or {}).items()}
    about = {
      "format": content.FORMAT,
      "step": step,
      "versions": _versions(),
      "leaves": leaves.shapes(arrays),
      # JSON knows no NaN; as text it stays readable everywhere.
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
          # Orbax refuses arrays without elements; their shapes say it all.
          state=ocp.args.StandardSave(
            {n: x for n, x in arrays.items() if x.size}
          ),
          about=ocp.args.JsonSave(about),
        ),
        metrics={"best": best} if math.isfinite(best) else None,
        force=True,  # whether to save is the loop's decision
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
        checksums.finalize(self._folder(self._saving))
    except Exception as error:
      self._fail(error)
    self._saving = None

  def close(self) -> None:
    """Waits, and gives up the threads; to be called at the end of a run.

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
    """Nothing happens yet."""
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    ended: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    """Closes; a failed save does not hide what ended the run before it."""
    if ended is not None and hosts.peer_failure(ended):
      return  # the save under way would wait for who is gone
    try:
      self.close()
    except UserError as error:
      if ended is None:
        raise
      # A full disk, say, is told once, whoever met it first.
      told = isinstance(ended, UserError) and save_errors.reason(ended)
      if told != save_errors.reason(error):
        _log.error("%s", error)

  def _open(self) -> ocp.CheckpointManager:
    """Orbax's manager; it removes what interrupted saves left behind."""
    if self._manager is None:
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
            post_finalization_callback=self._sum,
            # In a directory that turns out read-only its other threads wait
            # 20 minutes for the folder that the first could not make.
            create_directories_asynchronously=False,
          ),
        ),
      )
    return self._manager

  def _plain_name(self) -> epath.Path:
    """The directory by a name that Orbax's globs do not take for a pattern.

    With `lr [1]` it would find none of the arrays that it has just written.
    """
    if not set(_PATTERN) & set(str(self.directory)):
      return self.directory
    if self._alias is None:
      self._alias = tempfile.TemporaryDirectory(prefix="gamix_jax_")
      self.directory.mkdir(parents=True, exist_ok=True)
      link = pathlib.Path(self._alias.name, "checkpoints")
      link.symlink_to(self.directory)
    return epath.Path(self._alias.name) / "checkpoints"

  def _sum(self) -> None:
    """Called by Orbax in its thread when all files of a step are written.

    Orbax renames the folder after this, deletes old steps after that, and does
    neither if this fails.
    """
    temporary = self._temporary(f"{self._saving}.")
    for folder in temporary or [self._folder(self._saving)]:
      if fault := content.verify(folder):
        raise UserError(
          f"The checkpoint of step {self._saving} in {self.directory} came out "
          f"incomplete ({fault}).\nIf another program deletes files there, "
          "stop it; the same command continues from the checkpoint before."
        )
      checksums.write(folder)

  def _temporary(self, begin: str = "") -> list[epath.Path]:
    """Orbax's unfinished folders whose names begin so."""
    # Not by glob, for which a name such as `lr [1]` is a pattern.
    return [
      path
      for path in self.directory.iterdir()
      if path.name.startswith(begin) and _TEMPORARY in path.name
    ]

  def _fail(self, error: Exception) -> None:
    """Ends a failed save: nothing of it stays, the user learns why."""
    step, self._saving, self._saved = self._saving, None, None
    manager, self._manager = self._manager, None
    if manager is not None:
      try:
        manager.close()
      except Exception as again:  # most often the same error once more
        _log.debug("closing after a failed save: %r", again)
    if jax.process_index() == 0:
      try:
        for folder in self._temporary():
          folder.rmtree()
      except OSError as again:
        # In a directory made read-only, say. It counts as no checkpoint, and
        # the next run's first save removes it.
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

  def _quarantine(self) -> None:
    """Moves damaged steps out of the way of the run that comes past them."""
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
          "need it no longer.",
          step,
          target,
        )
    hosts.barrier("set damaged steps aside")
    self._faults.clear()
    if self._manager is not None:
      self._manager.reload()

  def _there(self, step: int, state: Any) -> bool:
    """Whether this very state is saved already; refuses any other."""
    steps, folders = hosts.broadcast([self.steps(), self._folders()])
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
      if not hosts.any_process(not same):
        return True  # the very arrays that were saved: no need to read back
    if step not in folders or step in self._faults:
      return False
    if self._find_whole(step) is None:
      return False
    arrays = leaves.arrays(state)
    where = str(self._folder(step))
    leaves.check(self._shapes(step), leaves.shapes(arrays), where, part=False)
    saved = self._read(step, {n: abstract_leaf(x) for n, x in arrays.items()})
    differ = [
      n for n in arrays if not leaves.bitwise_equal(saved[n], arrays[n])
    ]
    if hosts.any_process(bool(differ)):
      names = ", ".join(differ[:TOLD]) or "on another host"
      raise UserError(
        f"{where} is there already with another state ({names} differ).\n"
        "Continue from it, or use another workdir."
      )
    return True


def _best(metrics: Mapping[str, float]) -> float:
  return metrics["best"]


def _versions() -> dict[str, str]:
  found = {}
  for package in _PACKAGES:
    try:
      found[package] = metadata.version(package)
    except metadata.PackageNotFoundError:  # run from a source tree
      found[package] = "unknown"
  return found


def _reference(leaf: Any) -> Any:
  """Weak, so that a state is not kept in memory for having been saved."""
  return weakref.ref(leaf) if isinstance(leaf, jax.Array) else None

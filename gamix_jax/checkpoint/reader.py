"""What a directory of checkpoints holds, and a state out of it, proven whole.

Reading changes nothing in the directory.
"""

import logging
import os
import time
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from gamix_jax import hosts
from gamix_jax.checkpoint import checksums, content, leaves
from gamix_jax.errors import UserError

TOLD = 3  # damaged steps named in a message
_FLUX = 0.2  # seconds in which a folder that is being deleted changes
_LOOKS = 20  # at a directory that changes while it is looked at
_TOO_FAST = -1
_log = logging.getLogger(__name__)


class Reader:
  """The steps of one run; `Checkpoints` writes them."""

  def __init__(self, directory: str | os.PathLike[str]) -> None:
    """Looks at nothing yet."""
    self.directory = (
      epath.Path(os.path.abspath(directory))
      if "://" not in os.fspath(directory)
      else epath.Path(directory)
    )
    self._faults: dict[int, str] = {}  # steps found damaged, and how

  def wait(self) -> None:
    """Returns when nothing is being written."""

  # --- what there is -------------------------------------------------------

  def steps(self) -> list[int]:
    """The complete steps, oldest first, without those found damaged."""
    return [
      step
      for step in self._folders()
      if step not in self._faults
      and (self._folder(step) / checksums.NAME).exists()
    ]

  def latest(self) -> int | None:
    """The newest complete step, or None."""
    return max(self.steps(), default=None)

  def saved_bytes(self, step: int | None = None) -> int:
    """The bytes a step takes on disk: the newest one, if none is given."""
    step = self.latest() if step is None else step
    return 0 if step is None else checksums.size(self._folder(step))

  def about(self, step: int) -> dict[str, Any]:
    """What a step says of itself.

    Args:
      step: one of `steps()`.

    Returns:
      `format`, `step`, `versions` {package: version}, `leaves` {name: [shape,
      dtype]} and `metrics`.

    Raises:
      UserError: a newer program wrote it.
    """
    path = self._folder(step) / "about"
    about = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(path)
    if about["format"] > content.FORMAT:
      wrote = about["versions"].get("gamix_jax", "a newer version")
      raise UserError(
        f"{self._folder(step)} has checkpoint format {about['format']}, this "
        f"program knows {content.FORMAT} and older.\n"
        f"Install gamix_jax {wrote}, which wrote it, or later."
      )
    return about

  def _folder(self, step: int) -> epath.Path:
    return self.directory / str(step)

  def _folders(self) -> list[int]:
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

  # --- restoring -----------------------------------------------------------

  def restore(
    self, abstract_state: Any, step: int | None = None
  ) -> tuple[int, Any] | None:
    """Reads the newest state that is whole, checking every file of it.

    Args:
      abstract_state: the state as `jax.eval_shape` gives it, each leaf with
        the sharding it shall have; any devices will do, whatever the state was
        saved on. A leaf without one goes to this process's first device.
      step: that step and no other.

    Returns:
      The step and its state, or None if there is no checkpoint at all. Damaged
      steps on the way are named in warnings of the log; the next `save` moves
      them aside.

    Raises:
      UserError: there are steps but none is whole; or the one to read is of
        another model or of a newer program.
    """
    return self._restore(abstract_state, step, part=False)

  def restore_part(
    self, abstract_part: Any, step: int | None = None
  ) -> tuple[int, Any] | None:
    """Reads a part of a state, for instance the weights without optimisers.

    Args:
      abstract_part: any pytree whose leaves have the names they have in the
        state, such as `{"vae": {"params": ...}, "ema": ...}` or the state
        itself with `None` for what is not wanted; shardings as in `restore`.
      step: that step and no other.

    Returns:
      As `restore`; the other leaves are not read, only their checksums.

    Raises:
      UserError: as `restore`.
    """
    return self._restore(abstract_part, step, part=True)

  def _restore(
    self, abstract: Any, step: int | None, *, part: bool
  ) -> tuple[int, Any] | None:
    self.wait()
    wanted = {n: abstract_leaf(x) for n, x in leaves.flatten(abstract).items()}
    tried: set[int] = set()  # what turned out unreadable after its checks
    while (chosen := self._choose(step, tried)) is not None:
      found = self._attempt(chosen, wanted, part=part)
      if found is not None:
        return chosen, leaves.unflatten(abstract, found)
      tried.add(chosen)
    return None

  def _attempt(
    self, step: int, wanted: dict[str, jax.ShapeDtypeStruct], *, part: bool
  ) -> dict[str, jax.Array] | None:
    """The arrays of a step that was found whole; None: unreadable after all.

    Raises:
      UserError: it is of another model or of a newer program.
    """
    found, fault = None, None
    try:
      where = str(self._folder(step))
      leaves.check(self._shapes(step), leaves.shapes(wanted), where, part=part)
      found = self._read(step, wanted)
    except (UserError, MemoryError, jax.errors.JaxRuntimeError):
      raise  # the devices' or the model's fault, not the files'
    # Orbax and tensorstore meet a bad file with whatever comes first.
    except Exception as error:
      if hosts.peer_failure(error):
        raise
      fault = f"it cannot be read ({content.short(error.__cause__ or error)})"
    if not hosts.any_process(fault is not None):
      return found
    # A run that goes on meanwhile deletes its old steps: that is no damage.
    lasting = self._lasting_fault(step)
    if self._folder(step).exists():
      self._note(step, lasting or fault or "another host cannot read it")
    return None

  def _choose(
    self, step: int | None, tried: Collection[int] = ()
  ) -> int | None:
    """The step to restore, found whole; None if there is none at all."""
    chosen = self._find_whole(step, tried)
    if chosen is not None:
      return chosen
    if step is not None and step not in self._faults:
      have = ", ".join(map(str, hosts.broadcast(self.steps()))) or "none"
      raise UserError(
        f"{self.directory} holds no checkpoint of step {step}; "
        f"complete are: {have}."
      )
    if self._faults:
      told = sorted(self._faults.items(), reverse=True)
      shown = "; ".join(f"step {s}: {f}" for s, f in told[:TOLD])
      more = len(told) - TOLD
      raise UserError(
        f"No checkpoint to continue from in {self.directory} is whole "
        f"({shown}{f'; and {more} more' if more > 0 else ''}).\n"
        "Put a good copy there, or start anew in another workdir."
      )
    return None

  def _find_whole(
    self, step: int | None = None, tried: Collection[int] = ()
  ) -> int | None:
    """The newest step with no fault; process 0 looks, for all.

    Args:
      step: that step and no other.
      tried: steps that are not to be looked at again.

    Raises:
      UserError: a run that goes on meanwhile deletes them too fast.
    """
    told = None
    if jax.process_index() == 0:
      told = [self._newest_whole(step, tried), sorted(self._faults.items())]
    chosen, faults = hosts.broadcast(told)
    self._faults = dict(faults)
    if chosen == _TOO_FAST:
      raise UserError(
        f"The checkpoints in {self.directory} came and went faster than they "
        "could be read.\nTry again, or raise the run's checkpoint.keep or "
        "checkpoint.every."
      )
    return chosen

  def _newest_whole(
    self, step: int | None, tried: Collection[int]
  ) -> int | None:
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
          self._note(one, fault)
      if self._folders() == folders:
        return None
    return _TOO_FAST

  def _lasting_fault(self, step: int) -> str | None:
    """A step's fault; None of one that is whole, or is being deleted."""
    folder = self._folder(step)
    while (
      fault := checksums.verify(folder) or content.verify(folder)
    ) is not None:
      before = checksums.listing(folder)
      time.sleep(_FLUX)
      if checksums.listing(folder) == before:
        return fault if folder.exists() else None
    return None

  def _note(self, step: int, fault: str) -> None:
    """Remembers a damaged step, and names it once."""
    if self._faults.get(step) != fault:
      _log.warning(
        "The checkpoint of step %d in %s is damaged: %s.",
        *(step, self.directory, fault),
      )
    self._faults[step] = fault

  def _shapes(self, step: int) -> dict[str, tuple[tuple[int, ...], str]]:
    saved = self.about(step)["leaves"]
    return {n: (tuple(shape), dtype) for n, (shape, dtype) in saved.items()}

  def _read(
    self, step: int, wanted: dict[str, jax.ShapeDtypeStruct]
  ) -> dict[str, jax.Array]:
    full = {n: x for n, x in wanted.items() if x.size}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      found = reader.restore(
        self._folder(step) / "state",
        args=ocp.args.PyTreeRestore(
          item=full,
          restore_args=ocp.checkpoint_utils.construct_restore_args(full),
          partial_restore=True,
        ),
      )
    return found | {
      n: jnp.empty(x.shape, x.dtype, device=x.sharding)
      for n, x in wanted.items()
      if not x.size
    }


def abstract_leaf(leaf: Any) -> jax.ShapeDtypeStruct:
  """Its shape and type, where it lies or shall lie."""
  sharding = getattr(leaf, "sharding", None)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

"""SIGTERM: the machine is wanted back; save and go."""

import logging
import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Self

import jax
from jax.experimental import multihost_utils

TWICE = 1.0  # seconds
_log = logging.getLogger(__name__)


class Preemption:
  """Remembers that the run was asked to stop, for the loop to act upon.

      with Preemption() as preemption:
        for step in ...:
          state, metrics = train_step(recipe, state, batch)
          if preemption.reached(step):
            checkpoints.save(step, state); break

  The first SIGTERM (a scheduler) or SIGINT (Ctrl-C) is only noted. One that
  comes later acts at once, as for who had the signal before: a run that hangs
  can still be ended. Within `TWICE` seconds it is the same wish, sent twice:
  coreutils' timeout signals the process and then its group.

  Several hosts must save at one and the same step. There `reached` asks JAX's
  preemption service, in which the SIGTERM of any one host counts for all, and
  no handler is set: one set after `jax.distributed.initialize` would keep the
  service from ever hearing of it. So enter this after `initialize`, not before.
  """

  def __init__(
    self, signals: Sequence[int] = (signal.SIGTERM, signal.SIGINT)
  ) -> None:
    """Prepares; nothing is installed before `with`.

    Args:
      signals: the signals to note.
    """
    self._signals = tuple(signals)
    self._previous: dict[int, Any] = {}
    self.received: int | None = None  # the signal, once there was one
    self._at = 0.0  # when
    self._several = False

  def __enter__(self) -> Self:
    """Installs the handlers; only the main thread can."""
    self._several = jax.process_count() > 1
    if self._several:
      return self
    if threading.current_thread() is not threading.main_thread():
      _log.warning("Not in the main thread: signals will not save the run.")
      return self
    for number in self._signals:
      self._previous[number] = signal.signal(number, self._note)
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    """Gives the signals back."""
    self._give_back()

  @property
  def requested(self) -> bool:
    """Whether this process has noted a signal; see `reached`."""
    return self.received is not None

  def reached(self, step: int) -> bool:
    """Whether to save and stop now.

    Args:
      step: the step just done; every host asks with the same one.

    Returns:
      On one host `requested`; on several the same answer everywhere.
    """
    if self._several:
      return multihost_utils.reached_preemption_sync_point(step)
    return self.requested

  def _note(self, number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if self.received is None:
      self.received, self._at = number, now
    elif now - self._at > TWICE:
      self._give_back()
      signal.raise_signal(number)

  def _give_back(self) -> None:
    for number, handler in self._previous.items():
      # None: the handler was not set from Python, and cannot be set again.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
    self._previous = {}

"""Stops a run with a last checkpoint on SIGTERM or SIGINT."""

import logging
import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Self

import jax
from jax.experimental import multihost_utils

REPEAT_SECONDS = 1.0  # a second signal within this time is ignored
_log = logging.getLogger(__name__)


class Preemption:
  """Notes a request to stop, for the training loop to act upon.

      with Preemption() as preemption:
        for step in ...:
          state, metrics = train_step(spec, state, batch)
          if preemption.reached(step):
            checkpoints.save(step, state); break

  The first SIGTERM (from a scheduler) or SIGINT (Ctrl-C) is only noted. A later
  one acts at once, through the handler that was set before, so that a hanging
  run can still be stopped. Within `REPEAT_SECONDS` it counts as the same signal
  sent twice: coreutils' timeout signals the process and then its group.

  Several hosts must save at the same step. There `reached` asks JAX's
  preemption service, in which a SIGTERM of any host counts for all, and no
  handler is set: one that is set after `jax.distributed.initialize` would hide
  the signal from the service. So enter this after `initialize`, not before.

  Attributes:
    received: the number of the signal, or None before there was one.
  """

  def __init__(
    self, signals: Sequence[int] = (signal.SIGTERM, signal.SIGINT)
  ) -> None:
    """Installs no handler; `with` does.

    Args:
      signals: the signals to note.
    """
    self._signals = tuple(signals)
    self._previous: dict[int, Any] = {}
    self.received: int | None = None
    self._received_at = 0.0
    self._is_multiprocess = False

  def __enter__(self) -> Self:
    """Installs the handlers; Python allows it in the main thread only."""
    self._is_multiprocess = jax.process_count() > 1
    if self._is_multiprocess:
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
    """Restores the handlers that were set before."""
    self._restore_handlers()

  @property
  def requested(self) -> bool:
    """Whether this process has noted a signal; see `reached`."""
    return self.received is not None

  def reached(self, step: int) -> bool:
    """Whether to save and stop now.

    Args:
      step: the step just done, the same on every host.

    Returns:
      On one host `requested`; on several the same answer everywhere.
    """
    if self._is_multiprocess:
      return multihost_utils.reached_preemption_sync_point(step)
    return self.requested

  def _note(self, number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if self.received is None:
      self.received, self._received_at = number, now
    elif now - self._received_at > REPEAT_SECONDS:
      self._restore_handlers()
      signal.raise_signal(number)

  def _restore_handlers(self) -> None:
    for number, handler in self._previous.items():
      # None: it was not set from Python, so it cannot be set again.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
    self._previous = {}

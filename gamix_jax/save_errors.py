"""Reports a failed save once, with the operating system's reason."""

import errno
import logging
import os
import sys
import warnings

UNFINISHED = ".orbax-checkpoint-tmp"  # in the names of Orbax's folders

_REASONS = {
  number: os.strerror(number)
  for number in (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EFBIG,
    errno.EIO,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ESTALE,
  )
}


def reason(error: BaseException) -> str | None:
  """Returns the operating system's message for a failure the user can fix.

  Args:
    error: as raised by a save; its causes are searched, too.

  Returns:
    For instance "No space left on device"; None for any other error.
  """
  cause: BaseException | None = error
  while cause is not None:
    if isinstance(cause, OSError) and cause.errno in _REASONS:
      return _REASONS[cause.errno]
    # tensorstore, which writes the arrays, passes on only the message.
    for message in _REASONS.values():
      if message in str(cause):
        return message
    cause = cause.__cause__ or cause.__context__
  return None


def silence_orbax() -> None:
  """Stops Orbax from printing errors of failed saves and reads.

  `Checkpoints` raises one error with the reason. Without this function its two
  lines would be preceded by dozens of tracebacks, from Orbax's log and from
  other writes that were cancelled.

  It changes the whole process (log filters, `sys.unraisablehook`, a warnings
  filter), so it is called by commands at their start, never by the library. A
  second call does nothing.
  """
  logging.getLogger("absl").addFilter(_not_from_orbax)
  logging.getLogger("asyncio").addFilter(_not_failed_write)
  if not isinstance(sys.unraisablehook, _UnraisableHook):
    sys.unraisablehook = _UnraisableHook(sys.unraisablehook)
  warnings.filterwarnings(
    "ignore", "coroutine '.*' was never awaited", RuntimeWarning
  )


def _not_from_orbax(record: logging.LogRecord) -> bool:
  return f"{os.sep}orbax{os.sep}" not in record.pathname


def _not_failed_write(record: logging.LogRecord) -> bool:
  """Returns False for the error of a cancelled write.

  It has the reason of the failed save, or it found that its folder had been
  deleted after that.
  """
  error = record.exc_info[1] if record.exc_info else None
  if error is None:
    return True
  return reason(error) is None and UNFINISHED not in str(error)


class _UnraisableHook:
  """Drops errors of cancelled reads and writes; passes on all others."""

  def __init__(self, previous) -> None:
    self._previous = previous

  def __call__(self, unraisable) -> None:
    kind, error = unraisable.exc_type, unraisable.exc_value
    # A write finished after Orbax closed the event loop that waited for it.
    closed = kind is RuntimeError and str(error) == "Event loop is closed"
    # A read was cancelled because another one failed.
    cancelled = isinstance(getattr(error, "__cause__", None), GeneratorExit)
    if not (closed or cancelled):
      self._previous(unraisable)

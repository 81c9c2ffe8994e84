"""Why a save failed, said once: in the operating system's words."""

import errno
import logging
import os
import sys
import warnings

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
  """The operating system's words for a failure that the user can fix.

  Args:
    error: as raised by a save; its causes are searched too.

  Returns:
    For instance "No space left on device"; None for any other error.
  """
  seen: BaseException | None = error
  while seen is not None:
    if isinstance(seen, OSError) and seen.errno in _REASONS:
      return _REASONS[seen.errno]
    # tensorstore, which writes the arrays, passes on the text alone.
    for words in _REASONS.values():
      if words in str(seen):
        return words
    seen = seen.__cause__ or seen.__context__
  return None


def silence_orbax() -> None:
  """Stops Orbax from reporting failed saves and reads by itself.

  `Checkpoints` raises one error with the reason. Without this, a user with a
  full disk would find its two lines below dozens of tracebacks: of Orbax's log,
  and of writes in progress that were abandoned with the save.

  It changes the process (log filters, `sys.unraisablehook`, a warnings filter),
  so commands call it when they start, and the library never does. A second call
  changes nothing.
  """
  logging.getLogger("absl").addFilter(_not_from_orbax)
  logging.getLogger("asyncio").addFilter(_not_a_failed_write)
  if not isinstance(sys.unraisablehook, _UnraisableHook):
    sys.unraisablehook = _UnraisableHook(sys.unraisablehook)
  warnings.filterwarnings(
    "ignore", "coroutine '.*' was never awaited", RuntimeWarning
  )


def _not_from_orbax(record: logging.LogRecord) -> bool:
  return f"{os.sep}orbax{os.sep}" not in record.pathname


def _not_a_failed_write(record: logging.LogRecord) -> bool:
  """False for an abandoned write whose error nobody waited for."""
  error = record.exc_info[1] if record.exc_info else None
  return error is None or reason(error) is None


class _UnraisableHook:
  """Drops the errors of abandoned reads and writes; passes on all others."""

  def __init__(self, previous) -> None:
    self._previous = previous

  def __call__(self, unraisable) -> None:
    kind, error = unraisable.exc_type, unraisable.exc_value
    # A write ends after Orbax has closed the event loop that waited for it.
    closed = kind is RuntimeError and str(error) == "Event loop is closed"
    # A read is given up because another one failed.
    given_up = isinstance(getattr(error, "__cause__", None), GeneratorExit)
    if not (closed or given_up):
      self._previous(unraisable)

"""Why a save failed, in the operating system's words, and no others besides."""

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

  The array writer (tensorstore) hands them on as text only.
  """
  seen: BaseException | None = error
  while seen is not None:
    if isinstance(seen, OSError) and seen.errno in _REASONS:
      return _REASONS[seen.errno]
    for words in _REASONS.values():
      if words in str(seen):
        return words
    seen = seen.__cause__ or seen.__context__
  return None


# Normal here: not every step has been evaluated, `save` waits by itself, the
# loop says that it was asked to stop, and a kill may have left an older step
# half deleted, which goes with the next.
_NORMAL = (
  "did not provide metrics",
  "Waiting for previous save",
  "Reached preemption sync point",
  "Metadata file does not exist",
)


class _Quiet(logging.Filter):
  """Drops what Orbax logs of a failed save: `Checkpoints` raises it.

  A user who is told in two lines that the disk is full is not to find them
  under three tracebacks.
  """

  def filter(self, record: logging.LogRecord) -> bool:
    if f"{os.sep}orbax{os.sep}" not in record.pathname:
      return True
    text = str(record.msg)
    return not (record.exc_info or any(words in text for words in _NORMAL))


# Of a save that failed, the writes still under way: each reports by itself,
# to an event loop that Orbax has left or at its own end.
_LEFT = "Event loop is closed"
_LOST = "exception was never retrieved"
_NEVER_BEGUN = "coroutine '.*' was never awaited"


def _told_otherwise(record: logging.LogRecord) -> bool:
  error = record.exc_info[1] if record.exc_info else None
  lost = _LOST in str(record.msg)
  return not (lost and error is not None and reason(error))


class _Unraisable:
  """Hands on all but what the array files cannot tell the loop they left.

  Of a save that failed, that the loop is closed; of a read that failed, that
  the other reads were given up.
  """

  def __init__(self, others):
    self._others = others

  def __call__(self, what) -> None:
    kind, error = what.exc_type, what.exc_value
    left = kind is RuntimeError and str(error) == _LEFT
    given_up = isinstance(getattr(error, "__cause__", None), GeneratorExit)
    if not (left or given_up):
      self._others(what)


def silence_orbax() -> None:
  """Drops what Orbax reports by itself of a save or a read that failed.

  It changes the process (log filters, `sys.unraisablehook`, a warnings filter),
  so commands call it at their start, and the library never does. A second call
  changes nothing.
  """
  log = logging.getLogger("absl")
  if not any(isinstance(f, _Quiet) for f in log.filters):
    log.addFilter(_Quiet())
  logging.getLogger("asyncio").addFilter(_told_otherwise)
  if not isinstance(sys.unraisablehook, _Unraisable):
    sys.unraisablehook = _Unraisable(sys.unraisablehook)
  warnings.filterwarnings("ignore", _NEVER_BEGUN, RuntimeWarning)

"""Messages for errors caused by the user's environment rather than by a bug."""

import errno
import sys

# OSErrors that indicate a wrong call, so a bug. All others are about files,
# disks, limits or names.
_BUG_ERRNOS = {
  *(errno.EBADF, errno.EFAULT, errno.ENOTTY, errno.ESPIPE, errno.ENOSYS),
  *(errno.EDOM, errno.ERANGE, errno.ENOTSOCK),
}


def told(error: BaseException) -> str | None:
  """Returns a message of one or two lines; None if the error is a bug."""
  if isinstance(error, OSError):
    if error.errno is None or error.errno in _BUG_ERRNOS:
      return None
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}. Output completed before is kept."
  if isinstance(error, UnicodeEncodeError):
    return _encoding_message(error)
  return _memory_message(error) or _platform_message()


def _encoding_message(error: UnicodeEncodeError) -> str | None:
  """Describes a file name that is not UTF-8; None for other errors."""
  bad = error.object[error.start : error.end]
  if not any("\ud800" <= c <= "\udfff" for c in bad):
    return None
  return (
    f"{error.object!a} has a character that is not UTF-8, which the "
    "libraries used here cannot write; rename the file or folder."
  )


def _memory_message(error: BaseException) -> str | None:
  """Describes a lack of memory or threads; None for other errors."""
  text = str(error)
  if isinstance(error, MemoryError):
    memory = "this machine's memory"
  elif isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in text:
    memory = "the device's memory"  # raised by JAX
  elif isinstance(error, RuntimeError) and "can't start new thread" in text:
    return (
      "The process cannot start more threads on this machine (ulimit -u); end "
      "other processes, or raise that limit."
    )
  else:
    return None
  detail = f" ({text.strip().splitlines()[0][:200]})" if text.strip() else ""
  return (
    f"There is not enough of {memory}{detail}.\nUse smaller batches, images or "
    "networks (--config.data.batch_size, data.image_size, model.*; for "
    "evaluate --config.eval.images). Output completed before is kept."
  )


def _platform_message() -> str | None:
  """Describes a requested platform that JAX does not find; None otherwise.

  This asks JAX for its devices again, since the original error can be of any
  type, even an assertion without a message.
  """
  jax = sys.modules.get("jax")
  requested = jax and jax.config.jax_platforms
  if not requested or requested == "cpu":
    return None
  try:
    jax.devices()
  except Exception as e:
    reason = str(e).strip().splitlines()
  else:
    return None
  jax.config.update("jax_platforms", None)
  available = ", ".join(sorted({d.platform for d in jax.devices()}))
  detail = f" ({reason[0][:200]})" if reason else ""
  return (
    f"JAX_PLATFORMS={requested}, but JAX does not find that platform "
    f"here{detail}.\nAvailable: {available}. Set it to that, or unset it."
  )

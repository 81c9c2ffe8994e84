"""What an error means that a user's situation brings, not a defect of ours."""

import errno
import sys

# OSErrors of a call that was wrong in itself. All others are of files, disks,
# limits and names: what is wrong is in the error.
_OURS = {
  *(errno.EBADF, errno.EFAULT, errno.ENOTTY, errno.ESPIPE, errno.ENOSYS),
  *(errno.EDOM, errno.ERANGE, errno.ENOTSOCK),
}


def told(error: BaseException) -> str | None:
  """What is wrong and what helps, in a line or two; None: it is a defect."""
  if isinstance(error, OSError):
    if error.errno is None or error.errno in _OURS:
      return None
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}. What was complete before is kept."
  if isinstance(error, UnicodeEncodeError):
    return _name(error)
  return _memory(error) or _devices()


def _name(error: UnicodeEncodeError) -> str | None:
  """A file's name that is not UTF-8 reached what takes UTF-8 alone."""
  bad = error.object[error.start : error.end]
  if not any("\ud800" <= c <= "\udfff" for c in bad):
    return None
  return (
    f"{error.object!a} has a letter that is not UTF-8, which the "
    "libraries used here cannot write; rename the file or folder."
  )


def _memory(error: BaseException) -> str | None:
  text = str(error)
  if isinstance(error, MemoryError):
    of = "this machine's memory"
  elif isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in text:
    of = "the device's memory"  # JAX's own
  elif isinstance(error, RuntimeError) and "can't start new thread" in text:
    return (
      "This machine lets the process start no more threads (ulimit -u); end "
      "others, or raise that limit."
    )
  else:
    return None
  first = f" ({text.strip().splitlines()[0][:200]})" if text.strip() else ""
  return (
    f"There is not enough of {of}{first}.\nSmaller batches, images or "
    "networks need less (--config.data.batch_size, data.image_size, model.*; "
    "of evaluate --config.eval.images). What was complete before is kept."
  )


def _devices() -> str | None:
  """If JAX finds no device of the platform that it was told to use.

  Asked once more rather than told from the error: it may be any, even an
  assertion without a word.
  """
  jax = sys.modules.get("jax")
  asked = jax and jax.config.jax_platforms
  if not asked or asked == "cpu":
    return None
  try:
    jax.devices()
  except Exception as e:
    reason = str(e).strip().splitlines()
  else:
    return None
  jax.config.update("jax_platforms", None)
  there = ", ".join(sorted({d.platform for d in jax.devices()}))
  why = f" ({reason[0][:200]})" if reason else ""
  return (
    f"JAX_PLATFORMS={asked} asks for what JAX does not find here{why}.\n"
    f"There is: {there}. Set it to that, or unset it."
  )

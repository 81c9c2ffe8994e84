"""Memory that a step frees is kept for the next one, on a CPU.

XLA asks the C library for a step's arrays anew at every step. glibc gets blocks
of over 32 MB from the kernel and gives them back at once, so that at every step
the kernel clears them page by page: on two cores a sixth of a step of the
celeba networks (benchmarks/LOG.md).
"""

import ctypes
import sys

# Of glibc's <malloc.h>: never trimmed, grown by 256 MB, no blocks apart from
# the heap, one heap for all threads (another's blocks end at 64 MB).
_OPTIONS = {-1: 2**31 - 1, -2: 2**28, -4: 0, -8: 1}


def keep_freed() -> bool:
  """Has glibc keep what is freed; whether that was done.

  Elsewhere than on Linux with glibc nothing is. The process's memory then
  stays at its peak until it ends.
  """
  if sys.platform != "linux":
    return False
  libc = ctypes.CDLL(None)
  if not hasattr(libc, "gnu_get_libc_version"):
    return False
  return all(libc.mallopt(k, v) for k, v in _OPTIONS.items())

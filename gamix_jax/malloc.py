"""Memory that a step frees is kept for the next one, on a CPU.

XLA asks the C library for a step's arrays anew at every step. glibc gets blocks
of over 32 MB from the kernel and gives them back at once, so that at every step
the kernel clears them page by page: on two cores a sixth of a step of the
celeba networks (benchmarks/LOG.md).

It has to be said before JAX starts its threads: each of them takes a heap of
its own with its first block, none of them kept, and keeps to it.
"""

import ctypes
import os
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec

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


def keep_freed_on_cpu() -> bool:
  """`keep_freed` if JAX will run on a CPU; to be called before it starts.

  Where JAX is told no platform and could find another than the CPU it is not
  known yet what it will run on, and nothing is done.
  """
  return _will_be_cpu() and keep_freed()


def _will_be_cpu() -> bool:
  jax = sys.modules.get("jax")
  named = (jax and jax.config.jax_platforms) or os.environ.get("JAX_PLATFORMS")
  if named:
    return named.split(",")[0] == "cpu"
  # As JAX looks for others: plugins by name, plugins by entry, TPU's library.
  places = ("jax_plugins", "libtpu")
  return not entry_points(group="jax_plugins") and not any(
    map(find_spec, places)
  )

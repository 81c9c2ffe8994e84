"""Memory that a step frees is kept for the next one, on a CPU.

XLA asks the C library for a step's arrays anew at every step. glibc gets blocks
of over 32 MB from the kernel and gives them back at once, so that at every step
the kernel clears them page by page: on two cores a sixth of a step of the
celeba networks (benchmarks/LOG.md).

Threads have heaps of their own, none of over 64 MB and given back as soon as
they are empty, so one heap for all is needed too; which must be said before
JAX starts its threads. It makes them wait for each other at every block, and of
small arrays that costs more than it saves.
"""

import ctypes
import os
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec

# Of glibc's <malloc.h>: never trimmed, grown by 256 MB, no blocks apart from
# the heap.
_KEEP = {-1: 2**31 - 1, -2: 2**28, -4: 0}
_ONE_HEAP = {-8: 1}
# A step with one heap for all, over one without (two cores): arrays of 0.5 MB
# 1.6, of 3 MB 0.92, of 4 MB 0.75, of 8 MB 0.75.
LARGE = 2 << 20


def keep_freed(layer: int) -> bool:
  """Has glibc keep what is freed; whether that was done.

  Elsewhere than on Linux with glibc nothing is. The process's memory then
  stays at its peak until it ends.

  Args:
    layer: bytes of a step's larger arrays: the batch at the first layer.
  """
  if sys.platform != "linux":
    return False
  libc = ctypes.CDLL(None)
  if not hasattr(libc, "gnu_get_libc_version"):
    return False
  options = _KEEP | (_ONE_HEAP if layer >= LARGE else {})
  return all(libc.mallopt(k, v) for k, v in options.items())


def keep_freed_on_cpu(layer: int) -> bool:
  """`keep_freed` if JAX will run on a CPU; to be called before it starts.

  Where JAX is told no platform and could find another than the CPU it is not
  known yet what it will run on, and nothing is done.
  """
  return _will_be_cpu() and keep_freed(layer)


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

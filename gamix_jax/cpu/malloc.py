"""Keeps memory that a training step frees for the next step, on a CPU.

XLA allocates a step's arrays with malloc at every step. By default glibc
returns blocks of over 32 MB to the kernel as soon as they are freed, and the
kernel clears their pages at the next step: with the celeba networks on two
cores that takes a sixth of the time (benchmarks/LOG.md).

glibc also gives threads heaps of their own, of at most 64 MB, and returns them
when they are empty. So all threads must share one heap, which must be set
before JAX starts them. Threads then wait for each other at every allocation,
which for small arrays costs more than it saves.
"""

import ctypes
import os
import sys

from gamix_jax import hardware

# {parameter of mallopt: value}; the numbers are those of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_KEEP_FREED = {
  _M_TRIM_THRESHOLD: 2**31 - 1,  # never return memory at the heap's end
  _M_TOP_PAD: 2**28,  # grow the heap by 256 MB
  _M_MMAP_MAX: 0,  # allocate everything in the heap
}
_ONE_HEAP = {_M_ARENA_MAX: 1}
# Bytes of an array from which one shared heap is used. Time of a step with one
# heap relative to several (two cores): 1.6 for arrays of 0.5 MB, 0.92 for 3 MB,
# 0.75 for 4 MB and 8 MB.
MIN_SHARED_HEAP_BYTES = 2 << 20


def disable_malloc_trim(layer: int) -> bool:
  """Makes glibc keep freed memory; returns whether it did.

  Does nothing without glibc. The process's memory then stays at its peak until
  it exits.

  Args:
    layer: bytes of the larger arrays of a step: the batch at the first layer.
  """
  if sys.platform != "linux":
    return False
  libc = ctypes.CDLL(None)
  if not hasattr(libc, "gnu_get_libc_version"):
    return False
  options = _KEEP_FREED | (_ONE_HEAP if layer >= MIN_SHARED_HEAP_BYTES else {})
  return all(libc.mallopt(k, v) for k, v in options.items())


def keep_freed_on_cpu(layer: int) -> bool:
  """Calls `disable_malloc_trim` if JAX will run on a CPU.

  Call it before JAX starts. If no platform is set and JAX has a plugin for
  another one, the platform is not known yet and this does nothing.
  """
  return _will_be_cpu() and disable_malloc_trim(layer)


def _will_be_cpu() -> bool:
  jax = sys.modules.get("jax")
  platforms = (jax and jax.config.jax_platforms) or os.environ.get(
    "JAX_PLATFORMS"
  )
  if platforms:
    return platforms.split(",")[0] == "cpu"
  return hardware.only_cpu()

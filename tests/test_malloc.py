"""Freed memory is kept: seen by the pages that the kernel has to clear."""

import subprocess
import sys

import pytest
from program import ROOT

from gamix_jax import malloc

COUNT = """
import ctypes, resource, sys
from gamix_jax import malloc
if "keep" in sys.argv:
  assert malloc.keep_freed()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.memset.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
size = 1 << 26
for _ in range(10):
  block = libc.malloc(size)
  libc.memset(block, 1, size)
  libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def faults(*words):
  ran = subprocess.run(
    [sys.executable, "-c", COUNT, *words],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  return int(ran.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own")
def test_a_block_is_cleared_once():
  assert faults("keep") < faults() / 2


def test_elsewhere_nothing_is_done(monkeypatch):
  monkeypatch.setattr(sys, "platform", "darwin")
  assert not malloc.keep_freed()

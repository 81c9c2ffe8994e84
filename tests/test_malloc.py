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


def test_only_where_jax_will_run_on_a_cpu(monkeypatch):
  """As it was told, or if there is nothing else that it could find."""
  monkeypatch.setattr(malloc, "keep_freed", lambda: True)
  monkeypatch.setattr(malloc, "find_spec", lambda name: None)
  monkeypatch.setattr(malloc, "entry_points", lambda group: ())
  monkeypatch.delitem(sys.modules, "jax")
  told = "JAX_PLATFORMS"

  monkeypatch.delenv(told, raising=False)
  assert malloc.keep_freed_on_cpu()
  monkeypatch.setattr(malloc, "entry_points", lambda group: ("cuda",))
  assert not malloc.keep_freed_on_cpu()
  monkeypatch.setenv(told, "cpu")
  assert malloc.keep_freed_on_cpu()
  monkeypatch.setattr(malloc, "entry_points", lambda group: ())
  monkeypatch.setenv(told, "cuda,cpu")
  assert not malloc.keep_freed_on_cpu()
  monkeypatch.delenv(told)
  monkeypatch.setattr(malloc, "find_spec", lambda name: name == "libtpu")
  assert not malloc.keep_freed_on_cpu()


BEFORE_JAX = """
import sys
from gamix_jax import cli, malloc
done = []
malloc.keep_freed_on_cpu = lambda: done.append("jax" in sys.modules)
sys.exit(cli.run(lambda: print(done), ["command"]))
"""


def test_a_command_begins_with_it():
  ran = subprocess.run(
    [sys.executable, "-c", BEFORE_JAX],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert ran.stdout.strip() == "[False]"


def test_elsewhere_nothing_is_done(monkeypatch):
  monkeypatch.setattr(sys, "platform", "darwin")
  assert not malloc.keep_freed()

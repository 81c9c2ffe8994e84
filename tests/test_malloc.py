"""Freed memory is kept, judged by the pages that the kernel has to clear."""

import os
import subprocess
import sys

import pytest
from program import ROOT

from gamix_jax import cli, hardware
from gamix_jax.config import base, to_json
from gamix_jax.cpu import malloc


def ran(code, *words, check=True):
  return subprocess.run(
    [sys.executable, "-c", code, *words],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=check,
  )


COUNT = """
import ctypes, resource, sys
from gamix_jax.cpu import malloc
if "keep" in sys.argv:
  assert malloc.disable_malloc_trim(1 << 20)
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


HEAPS = """
import ctypes, sys, threading
from gamix_jax.cpu import malloc
assert malloc.disable_malloc_trim(int(sys.argv[1]))
libc = ctypes.CDLL(None)
threads = [threading.Thread(target=bytearray, args=(100_000,)) for _ in "1234"]
for t in threads: t.start()
for t in threads: t.join()
libc.malloc_stats()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own")
def test_one_heap_only_for_large_arrays():
  def heaps(layer):
    return ran(HEAPS, str(layer)).stderr.count("Arena")

  assert (
    heaps(malloc.MIN_SHARED_HEAP_BYTES)
    == 1
    < heaps(malloc.MIN_SHARED_HEAP_BYTES - 1)
  )


def faults(*words):
  return int(ran(COUNT, *words).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own")
def test_a_block_is_cleared_once():
  assert faults("keep") < faults() / 2


@pytest.fixture
def machine(monkeypatch):
  """Sets what JAX would find; returns a function that does."""
  monkeypatch.delitem(sys.modules, "jax")
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)

  def has(*, plugins=(), libtpu=False, chips=()):
    spec = {"libtpu": libtpu or None}.get
    monkeypatch.setattr(hardware, "entry_points", lambda group: plugins)
    monkeypatch.setattr(hardware, "find_spec", spec)
    monkeypatch.setattr(cli, "find_spec", spec)
    glob = {"/dev/accel[0-9]*": list(chips)}.get
    monkeypatch.setattr(hardware.glob, "glob", lambda path: glob(path, []))

  has()
  return has


def test_only_where_jax_will_run_on_a_cpu(monkeypatch, machine):
  """If the platform is set to CPU, or if JAX could find nothing else."""
  monkeypatch.setattr(malloc, "disable_malloc_trim", lambda layer: True)
  variable = "JAX_PLATFORMS"
  assert malloc.keep_freed_on_cpu(1)
  machine(plugins=("cuda",))
  assert not malloc.keep_freed_on_cpu(1)
  monkeypatch.setenv(variable, "cpu")
  assert malloc.keep_freed_on_cpu(1)
  machine()
  monkeypatch.setenv(variable, "cuda,cpu")
  assert not malloc.keep_freed_on_cpu(1)
  monkeypatch.delenv(variable)
  machine(libtpu=True, chips=("/dev/accel0",))
  assert not malloc.keep_freed_on_cpu(1)
  # libtpu is installed without a TPU to compile programs for one.
  machine(libtpu=True)
  assert malloc.keep_freed_on_cpu(1)


@pytest.mark.parametrize(
  ("there", "before", "after"),
  [
    (dict(libtpu=True), None, "cpu"),
    (dict(libtpu=True, chips=("/dev/accel0",)), None, None),
    (dict(libtpu=True, plugins=("cuda",)), None, None),
    (dict(libtpu=True), "tpu", "tpu"),
    (dict(), None, None),
  ],
)
def test_commands_do_not_start_libtpu_in_vain(
  monkeypatch, machine, there, before, after
):
  machine(**there)
  # Undone at the end, also if the command sets it.
  monkeypatch.setitem(os.environ, "JAX_PLATFORMS", before or "")
  cli.leave_libtpu_alone()
  assert os.environ["JAX_PLATFORMS"] == (after or "")


COMMAND = """
import runpy, sys
from jax._src import xla_bridge
from gamix_jax.cpu import malloc
malloc.keep_freed_on_cpu = lambda n: sys.exit(
  f"{n} {xla_bridge.backends_are_initialized()}"
)
module = sys.argv.pop(1)
runpy.run_module(module, run_name="__main__")
"""
BATCH = 2**20 // 64**2  # images of 64x64 per chunk of a trained model
TRAINING = (
  *("--workdir={run}/new", "--config.data.image_size=64"),
  *("--config.data.batch_size=4", "--config.model.encoder=resnet"),
  *("--config.model.patch=1", "--config.model.encoder_features=(24,24,24)"),
)


@pytest.mark.parametrize(
  ("command", "flags", "images"),
  [
    ("evaluate", ("--workdir={run}",), BATCH),
    ("generate", ("--workdir={run}", "--what=map", "--out=map.png"), BATCH),
    ("main", TRAINING, 4),
    ("compare", (*TRAINING, "--families=gaussian/elbo"), 4),
  ],
)
def test_commands_start_with_it(tmp_path, command, flags, images):
  """The layer's size is that of a trained model's images, or of a batch.

  It has to happen before JAX starts threads: afterwards a quarter of the gain
  was left.
  """
  c = base()
  c.data.image_size, c.model.encoder_features = 64, (24, 24)
  (tmp_path / "config.json").write_text(to_json(c))
  words = (word.format(run=tmp_path) for word in flags)
  completed = ran(COMMAND, f"gamix_jax.{command}", *words, check=False)
  assert completed.stderr.strip() == f"{4 * images * 64 * 64 * 24} False"


def test_elsewhere_nothing_is_done(monkeypatch):
  monkeypatch.setattr(sys, "platform", "darwin")
  assert not malloc.disable_malloc_trim(1 << 20)

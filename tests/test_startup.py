"""The compilation cache that a start leaves; its use is in test_house."""

import os
import subprocess
import sys
import warnings

import jax
import pytest

from gamix_jax import cli

VARIABLES = (
  "JAX_COMPILATION_CACHE_DIR",
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
)
KEYS = (
  "jax_compilation_cache_dir",
  "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture
def settings(monkeypatch, tmp_path):
  """JAX's settings after `use_compilation_cache`, with these variables."""
  before = [getattr(jax.config, k) for k in KEYS]

  def of(**variables):
    for key, value in zip(KEYS, before, strict=True):
      jax.config.update(key, value)
    for name in VARIABLES:
      monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in variables.items():
      monkeypatch.setenv(name, value)
    cli.use_compilation_cache()
    return tuple(getattr(jax.config, k) for k in KEYS)

  show = warnings.showwarning
  yield of
  warnings.showwarning = show
  for key, value in zip(KEYS, before, strict=True):
    jax.config.update(key, value)


def test_compiled_steps_are_kept(settings, tmp_path):
  assert settings() == (str(tmp_path / "gamix_jax" / "compiled"), 0)


def test_unless_jax_is_told_where(settings, tmp_path):
  before = jax.config.jax_compilation_cache_dir
  chosen = str(tmp_path / "mine")
  # JAX read the variable when it was imported: nothing is to be set.
  assert settings(JAX_COMPILATION_CACHE_DIR=chosen) == (before, 0)
  least = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "3"}
  default = jax.config.jax_persistent_cache_min_compile_time_secs
  assert settings(**least)[1] != 0 or default == 0


def test_the_oldest_go(tmp_path):
  for i in range(6):
    path = tmp_path / f"jit_step-{i}-cache"
    path.write_bytes(bytes(100))
    os.utime(path, (i, i))
  other = tmp_path / "notes.txt"
  other.write_bytes(bytes(1000))
  cli.trim(tmp_path, 350)
  left = sorted(p.name for p in tmp_path.iterdir())
  assert left == [*(f"jit_step-{i}-cache" for i in (3, 4, 5)), "notes.txt"]
  cli.trim(tmp_path / "nowhere", 350)


SCRIPT = """
from gamix_jax import cli
cli.use_compilation_cache()
import jax
print(jax.jit(lambda x: x + 1)(1))
"""


def test_a_torn_entry_is_replaced(tmp_path):
  """Without a message, and permanently."""
  env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
  sizes = []
  for _ in range(2):
    ran = subprocess.run(
      [sys.executable, "-c", SCRIPT],
      env=env | {"JAX_PLATFORMS": "cpu"},
      check=False,
      capture_output=True,
      text=True,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "2\n", "")
    (entry,) = tmp_path.glob("*-cache")
    sizes.append(entry.stat().st_size)
    entry.write_bytes(entry.read_bytes()[:40])
  assert min(sizes) > 40

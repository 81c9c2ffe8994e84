"""Measures the time from the start of Python to the first step.

Measured without and with a compilation cache. `python -m benchmarks.first_step
CONFIG.json` is one such process.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]


def measure(config) -> dict[str, dict[str, float]]:
  """Starts two processes that share a new compilation cache.

  Returns:
    {"cold" and "cached": seconds from the start of the process until it has
    "imported", "built", "initialised" and finished its first "step", each
    since the previous one, and the "total"}.
  """
  with tempfile.TemporaryDirectory() as folder:
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": folder}
    return {name: start(config, env) for name in ("cold", "cached")}


def start(config, env: Mapping[str, str]) -> dict[str, float]:
  """Runs a process up to its first step; returns the times of `measure`."""
  from gamix_jax import config as configs  # noqa: PLC0415

  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "config.json"
    path.write_text(configs.to_json(config))
    begun = time.time()
    completed = subprocess.run(
      [sys.executable, "-m", "benchmarks.first_step", str(path)],
      cwd=ROOT,
      env=env,
      capture_output=True,
      text=True,
      check=False,
    )
  if completed.returncode:
    raise RuntimeError(f"measuring the first step failed:\n{completed.stderr}")
  marks = json.loads(completed.stdout.splitlines()[-1])
  out, before = {}, begun
  for name, mark in marks.items():
    out[name], before = mark - before, mark
  return out | {"total": before - begun}


def main() -> None:
  """Prints the time at which each stage was done, as one line of JSON."""
  from gamix_jax import cli, config  # noqa: PLC0415

  c = config.from_json(Path(sys.argv[1]).read_text())
  cli.use_compilation_cache()
  import gamix_jax.training.loop  # noqa: F401, PLC0415 (a run imports all of it)
  from benchmarks import jax_step  # noqa: PLC0415

  marks = {"imported": time.time()}
  ours = jax_step.JaxStep(c)
  marks["built"] = time.time()
  ours.begin()
  marks["initialised"] = time.time()
  ours.run(1)
  marks["step"] = time.time()
  print(json.dumps(marks))


if __name__ == "__main__":
  main()

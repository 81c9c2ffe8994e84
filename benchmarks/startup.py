"""Measures the time to the first step of digits, without and with a cache.

  python -m benchmarks.startup [--rounds=3]

Each measurement starts a new process: imports alone, then the README's command
until it prints its first step, with no compilation cache, with the cache just
written, and with that cache and another workdir. An untimed process runs first,
so Python's files and the libraries are in the page cache.
"""

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

ROOT = Path(__file__).parents[1]
IMPORTS = ("gamix_jax", "gamix_jax.training.loop")
FIRST_STEP_LINE = re.compile(r" *1/\d+ ")


def imports(module: str) -> float:
  """Returns the seconds of a process that imports a module."""
  start = time.perf_counter()
  subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
  return time.perf_counter() - start


def first_step(workdir: Path, cache: Path) -> float:
  """Returns the seconds until digits prints its first step; then ends the run.

  Raises:
    RuntimeError: if the run ends before that.
  """
  argv = [
    *(sys.executable, "-m", "gamix_jax.main", "--config=configs/digits.py"),
    *(f"--workdir={workdir}", "--config.log_every=1"),
  ]
  env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
  start = time.perf_counter()
  with subprocess.Popen(
    argv, env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE
  ) as process:
    for line in process.stdout:
      if FIRST_STEP_LINE.match(line):
        seconds = time.perf_counter() - start
        process.kill()
        return seconds
  raise RuntimeError(f"{' '.join(argv)} ended with {process.returncode}")


def measure(rounds: int) -> dict[str, list[float]]:
  """Returns {name: seconds of each round}."""
  seconds: dict[str, list[float]] = {f"`import {m}`": [] for m in IMPORTS}
  for module in IMPORTS:
    imports(module)
    for _ in range(rounds):
      seconds[f"`import {module}`"].append(imports(module))
  names = ("first step, no cache", "again", "again, another workdir")
  seconds |= {name: [] for name in names}
  for _ in range(rounds):
    with tempfile.TemporaryDirectory() as folder:
      place = Path(folder)
      for i, name in enumerate(names):
        workdir = place / f"run{0 if i < 2 else 1}"
        if i == 1:  # a new run in the same workdir
          workdir.rename(place / "before")
        seconds[name].append(first_step(workdir, place / "compiled"))
  return seconds


def table(seconds: dict[str, list[float]]) -> str:
  """Returns the Markdown table."""
  lines = ["| | median s | all |", "|---|---|---|"]
  for name, values in seconds.items():
    each = ", ".join(f"{v:.2f}" for v in values)
    lines.append(f"| {name} | {statistics.median(values):.2f} | {each} |")
  return "\n".join(lines)


def main() -> None:
  """Runs the measurements and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rounds", type=int, default=3)
  rounds = parser.parse_args().rounds
  print(
    f"Python {platform.python_version()}, jax {jax.__version__}, "
    f"{os.cpu_count()} cores, {rounds} rounds"
  )
  print(table(measure(rounds)))


if __name__ == "__main__":
  main()

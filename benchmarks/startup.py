"""How long the first step of digits takes, cold and with compiled steps kept.

  python -m benchmarks.startup [--rounds=3]

Every line is of fresh processes: imports alone, then the command of the README
until its first step's numbers are printed, with no compilation cache, with the
one just written, and with that one for another workdir. Python's own files and
the libraries are in the system's memory, since a first process reads them
untimed.
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
FIRST = re.compile(r" *1/\d+ ")


def imports(module: str) -> float:
  """Seconds of a process that imports a module."""
  start = time.perf_counter()
  subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
  return time.perf_counter() - start


def first_step(workdir: Path, cache: Path) -> float:
  """Seconds until digits tell of their first step; the run is ended then.

  Raises:
    RuntimeError: they never did.
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
      if FIRST.match(line):
        found = time.perf_counter() - start
        process.kill()
        return found
  raise RuntimeError(f"{' '.join(argv)} ended with {process.returncode}")


def measure(rounds: int) -> dict[str, list[float]]:
  """{what: seconds of each round}."""
  found: dict[str, list[float]] = {f"`import {m}`": [] for m in IMPORTS}
  for module in IMPORTS:
    imports(module)
    for _ in range(rounds):
      found[f"`import {module}`"].append(imports(module))
  names = ("first step, no cache", "again", "again, another workdir")
  found |= {name: [] for name in names}
  for _ in range(rounds):
    with tempfile.TemporaryDirectory() as folder:
      place = Path(folder)
      for i, name in enumerate(names):
        workdir = place / f"run{0 if i < 2 else 1}"
        if i == 1:  # the same workdir, begun anew
          workdir.rename(place / "before")
        found[name].append(first_step(workdir, place / "compiled"))
  return found


def table(found: dict[str, list[float]]) -> str:
  """Markdown."""
  lines = ["| | median s | all |", "|---|---|---|"]
  for name, values in found.items():
    each = ", ".join(f"{v:.2f}" for v in values)
    lines.append(f"| {name} | {statistics.median(values):.2f} | {each} |")
  return "\n".join(lines)


def main() -> None:
  """Measures as the flags say and prints the table."""
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

"""Time to a first step, from the start of Python: cold, and from the cache.

python -m benchmarks.first_step CONFIG.json is one process of it.
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
  """Two processes that share a compilation cache which is new to the first.

  Returns:
    {"cold" and "cached": seconds from the start of the process until it
    "imported", "built", "initialised" and ended its first "step", each from
    the one before, and the "total"}.
  """
  with tempfile.TemporaryDirectory() as folder:
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": folder}
    return {name: start(config, env) for name in ("cold", "cached")}


def start(config, env: Mapping[str, str]) -> dict[str, float]:
  """A process up to its first step; the times as `measure` gives them."""
  from gamix_jax import config as configs  # noqa: PLC0415

  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "config.json"
    path.write_text(configs.to_json(config))
    begun = time.time()
    ran = subprocess.run(
      [sys.executable, "-m", "benchmarks.first_step", str(path)],
      cwd=ROOT,
      env=env,
      capture_output=True,
      text=True,
      check=False,
    )
  if ran.returncode:
    raise RuntimeError(f"the process of a first step failed:\n{ran.stderr}")
  marks = json.loads(ran.stdout.splitlines()[-1])
  out, before = {}, begun
  for name, mark in marks.items():
    out[name], before = mark - before, mark
  return out | {"total": before - begun}


def main() -> None:
  """The times at which each part was done, as one line of JSON."""
  from gamix_jax import cli, config  # noqa: PLC0415

  c = config.from_json(Path(sys.argv[1]).read_text())
  cli.use_compilation_cache()
  import gamix_jax.training.loop  # noqa: F401, PLC0415 (a run imports all of it)
  from benchmarks import jax_step  # noqa: PLC0415

  marks = {"imported": time.time()}
  ours = jax_step.Ours(c)
  marks["built"] = time.time()
  ours.begin()
  marks["initialised"] = time.time()
  ours.run(1)
  marks["step"] = time.time()
  print(json.dumps(marks))


if __name__ == "__main__":
  main()

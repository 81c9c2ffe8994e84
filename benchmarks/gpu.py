"""Runs all GPU benchmarks with one command.

  pip install -e '.[cuda,bench]' && python -m benchmarks.gpu --out=gpu.md

Run it from a checkout's root on an otherwise idle GPU; it takes about an hour.
Prints a Markdown table of results and goals. Each row is a process of
benchmarks.step; a row that fails (for lack of memory, say) shows the reason,
and the next one runs. On a CPU, --tiny tries every kind of row with small
networks.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from absl import flags

from gamix_jax import cli

ROOT = Path(__file__).parents[1]
OUT = flags.DEFINE_string("out", None, "Also write the table to this file.")
TINY = flags.DEFINE_bool("tiny", False, "Small networks, to try the command.")
STEPS = flags.DEFINE_integer(
  "steps", 50, "Steps to time per row.", lower_bound=1
)

GOAL = "1.25 times"
PUBLISHED, CELEBA = "celeba_hq", "celeba"
# XLA options to try, one at a time, on top of the defaults.
VARIANTS = {
  "latency hiding": "--xla_gpu_enable_latency_hiding_scheduler=true",
  "no command buffers": "--xla_gpu_enable_command_buffer=",
  "no autotuning": "--xla_gpu_autotune_level=0",
  "no triton products": "--xla_gpu_enable_triton_gemm=false",
}


class Row(NamedTuple):
  """One row of the table; `goal` is in images/s or times PyTorch's speed."""

  what: str
  config: str
  batch: int
  flags: tuple[str, ...] = ()
  xla: str = ""
  goal: str = ""


def rows(tiny: bool) -> list[Row]:
  """Returns the rows for an H100 in bfloat16; with `tiny`, one of each kind."""
  out = []
  for name, batches, goal in (
    (PUBLISHED, (20, 32, 64, 128), "800 images/s"),
    (CELEBA, (128, 256, 512, 1024), "12,000 images/s"),
  ):
    if tiny:
      batches = (4,)  # noqa: PLW2901
    alone, beside = ("--nofirst",), ("--against=torch", "--nofirst")
    middle = batches[len(batches) // 2]
    out += [Row("ours", name, b, alone, goal=goal) for b in batches]
    out += [
      Row(what, name, middle, alone, flag) for what, flag in VARIANTS.items()
    ]
    out += [
      Row("PyTorch, compiled", name, b, (*beside, "--torch_compile"), "", GOAL)
      for b in batches[1:3] or batches
    ]
    out.append(Row("PyTorch, eager", name, middle, beside))
    out.append(Row("first step", name, middle))
  return out


def run(row: Row, folder: Path) -> dict | str:
  """Returns the results of a row, or a string that says why it failed."""
  variant = ":tiny" if TINY.value else ""
  path = folder / "results.json"
  path.unlink(missing_ok=True)
  env = dict(os.environ)
  if row.xla:
    env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} {row.xla}"
  completed = subprocess.run(
    [
      *(sys.executable, "-m", "benchmarks.step"),
      f"--config=configs/{row.config}.py{variant}",
      "--config.dtype=bfloat16",
      f"--batch={row.batch}",
      f"--steps={STEPS.value}",
      f"--json={path}",
      *row.flags,
    ],
    cwd=ROOT,
    env=env,
    capture_output=True,
    text=True,
    check=False,
  )
  if completed.returncode == 0:
    return json.loads(path.read_text())
  words = [x for x in completed.stderr.splitlines() if x.strip()]
  memory = [x for x in words if "RESOURCE_EXHAUSTED" in x or "OutOfMemory" in x]
  return "out of memory" if memory else (words or ["failed"])[-1][:70]


HEAD = (
  "| config | batch | what | images/s | ms/step | TFLOP/s | vs. matmul || "
  "MiB | PyTorch, images/s | times PyTorch | goal |"
)


def line(row: Row, results: dict | str) -> str:
  """Returns a row of the table."""
  start = f"| {row.config} | {row.batch} | {row.what} |"
  if isinstance(results, str):
    return f"{start} {results} | | | | | | | {row.goal} |"
  ours = results["rows"]["gamix_jax"]
  memory = results["memory"]
  peak = memory.get("device_peak", memory["program"]) / 2**20
  cells = [
    f"{ours['images_per_second']:,.0f}",
    f"{1e3 * ours['median']:.4g}",
    f"{ours['flop_per_second'] / 1e12:.3g}",
    f"{ours['flop_per_second'] / results['ceilings']['product']:.0%}",
    f"{peak:,.0f}",
  ]
  theirs = results["rows"].get("PyTorch")
  if theirs is None:
    cells += ["", ""]
  else:
    cells.append(
      f"{theirs['images_per_second']:,.0f} ({results['torch']['compile']})"
    )
    cells.append(f"{theirs['median'] / ours['median']:.2f}")
  first = results.get("first_step")
  what = row.goal
  if first:
    seconds = (f"{v['total']:.1f} s {k}" for k, v in first.items())
    what = "first step: " + ", ".join(seconds)
  return f"{start} {' | '.join(cells)} | {what} |"


def main() -> None:
  """Runs every row and prints each result as it comes."""
  lines = [HEAD, "|" + " --- |" * (HEAD.count("|") - 1)]
  print("\n".join(lines), flush=True)
  machine = None
  with tempfile.TemporaryDirectory() as folder:
    for row in rows(TINY.value):
      results = run(row, Path(folder))
      if not isinstance(results, str):
        machine = results["machine"]
      lines.append(line(row, results))
      print(lines[-1], flush=True)
  words = ", ".join(f"{k} {v}" for k, v in (machine or {}).items())
  lines.append(
    f"\nMachine: {words}" + ("; tiny networks" if TINY.value else "")
  )
  print(lines[-1])
  if OUT.value:
    Path(OUT.value).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
  if "--help" in sys.argv:
    print(__doc__)
    sys.exit(0)
  sys.exit(cli.run(main))

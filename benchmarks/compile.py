"""Compiles the training step for TPUs and GPUs that are not there.

  python -m benchmarks.compile --topology=v5e:16x16 \
      --config=configs/celeba_hq.py --config.dtype=bfloat16 --per_chip=8

--topology=v5e:16x16   v5e, v5p or v6e, for which libtpu has to be installed
                       (pip install -e '.[tpu]'), or h100:1 to h100:8 (.[cuda])
--per_chip=8           images per chip; default: data.batch_size of the config
--fsdp=8               replaces mesh.fsdp
--level=O0             compiles in a quarter of the time; default: as in a run
--json=FILE            also writes the results to this file
--text=FILE            also writes the compiled program's text to this file

Nothing is run, so there is no time in the results. They are what the compiled
program says of itself: FLOPs, bytes, memory, collectives. The rate is a bound:
what the published peaks of the chip allow for the program's FLOPs and bytes. A
real step is slower.

XLA counts the bytes of a program at O0 as one expects. At the default level it
also counts copies between a TPU's memories that overlap with computation, so
there the bytes are too many for a bound. For a GPU it counts none; those are
added up from the program's text (`traffic`).
"""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from benchmarks import (
  collectives,
  communication,
  flops,
  products,
  targets,
  traffic,
)
from gamix_jax import cli, config, presets
from gamix_jax.config import ConfigDict

LEVELS = ("O0", "default")
SAY_EVERY = 15  # seconds


def say(line: str) -> None:
  """Prints the current stage and the time, to stderr."""
  print(f"{time.strftime('%T')} {line}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(stage: str) -> Iterator[None]:
  """Prints a stage to stderr, and from time to time how long it has taken."""
  done = threading.Event()
  start = time.monotonic()

  def repeat():
    while not done.wait(SAY_EVERY):
      say(f"{stage}, {time.monotonic() - start:.0f} s")

  say(stage)
  thread = threading.Thread(target=repeat, daemon=True)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join()


def measure(
  c: ConfigDict, target: targets.Target, level: str, text: str | None = None
) -> dict[str, Any]:
  """Compiles a config's training step for a target.

  Args:
    c: a checked config.
    target: the chips.
    level: one of LEVELS.
    text: a file for the program's text.

  Returns:
    What the program says of itself; all of it is per chip and step.

  Raises:
    UserError: if the batch or `mesh.fsdp` does not fit the number of chips.
  """
  import jax  # noqa: PLC0415

  from gamix_jax.parallel import mesh  # noqa: PLC0415
  from gamix_jax.training.compiled_steps import (  # noqa: PLC0415
    program_memory,
  )

  jax.config.update("jax_platforms", "cpu")
  # A program that is loaded from the cache has no text.
  jax.config.update("jax_enable_compilation_cache", False)
  if level != "default":
    jax.config.update("jax_optimization_level", level)
  devices = targets.devices(target)
  grid = mesh.create_mesh(
    c.data.batch_size, c.mesh.fsdp, c.optim.accumulate, devices
  )
  with progress("tracing the step"):
    lowered, law = communication.lower(c, grid)
  start = time.process_time()
  with progress(f"compiling for {target.name} (this takes minutes)"):
    compiled = lowered.compile()
  seconds = time.process_time() - start
  hlo = compiled.as_text()
  if text:
    Path(text).write_text(hlo)
  cost = compiled.cost_analysis() or {}
  found = collectives.read(hlo, target.chips)
  moved = cost.get("bytes accessed")
  return {
    "topology": target.name,
    "chips": target.chips,
    "level": level,
    "jax": jax.__version__,
    "image": list(config.image_shape(c)),
    "dtype": c.dtype,
    "batch": c.data.batch_size,
    "per_chip": c.data.batch_size // target.chips,
    "fsdp": c.mesh.fsdp,
    "compile_cpu_seconds": seconds,
    "flops": cost.get("flops"),
    # As XLA does, without products with padding.
    "flops_by_hand": flops.per_image(c, edges=True)["total"]
    * (c.data.batch_size // target.chips),
    "bytes": traffic.read(hlo) if moved is None else moved,
    "bytes_by": "kernels" if moved is None else "compiler",
    "memory": program_memory(compiled)
    | {"peak": compiled.memory_analysis().peak_memory_in_bytes},
    "products": [
      kind._asdict() | {"count": n} for kind, n in products.read(hlo).items()
    ],
    "collectives": [row._asdict() for row in communication.rows(found)],
    "law": law._asdict(),
  }


def bound(results: dict[str, Any], chip: targets.Chip) -> dict[str, float]:
  """Returns the least seconds of a step at the chip's published peaks, by part.

  Memory is left out if the compiler's count of bytes is not that of O0.
  """
  used = results["flops"] or results["flops_by_hand"]
  parts = {"compute": used / chip.flops}
  if results["bytes_by"] == "kernels" or results["level"] == "O0":
    parts["memory"] = results["bytes"] / chip.bandwidth
  sent = sum(row["sent"] for row in results["collectives"])
  if sent:
    parts["exchange"] = sent / chip.link
  return parts


def report(results: dict[str, Any], chip: targets.Chip) -> str:
  """Returns the results as text."""
  h, w, channels = results["image"]
  lines = [
    f"{h}x{w}x{channels}, {results['dtype']}, {results['per_chip']} images a "
    f"chip, {results['batch']:,} in all, mesh.fsdp={results['fsdp']}; for "
    f"{results['topology']}; level "
    f"{results['level']}, JAX {results['jax']}, compiled in "
    f"{results['compile_cpu_seconds']:.0f} CPU-seconds",
    "",
    "Of a step, per chip:",
    "",
  ]
  by_hand = results["flops_by_hand"]
  if results["flops"]:
    off = results["flops"] / by_hand - 1
    lines.append(
      f"compute       {results['flops'] / 1e9:,.4g} GFLOP; counted by hand "
      f"{by_hand / 1e9:,.4g} ({off:+.1%})"
    )
  else:
    lines.append(
      f"compute       {by_hand / 1e9:,.4g} GFLOP, counted by hand; the "
      "compiler gives no count"
    )
  note = ""
  if results["bytes_by"] == "kernels":
    note = ", the operands and outputs of its kernels"
  elif results["level"] != "O0":
    note = ", copies that overlap included"
  lines.append(f"traffic       {results['bytes'] / 1e9:,.4g} GB{note}")
  memory = results["memory"]
  lines.append(
    f"memory        {memory['peak'] / 1e6:,.0f} MB at its peak, of "
    f"{chip.memory / 1e6:,.0f}; allocated: state and batch "
    f"{memory['arguments'] / 1e6:,.0f}, temporary "
    f"{memory['temporary'] / 1e6:,.0f}"
  )
  for row in results["products"]:
    lines.append(
      f"{row['what'] + 's':<14}{row['count']} of {row['operands']} to "
      f"{row['output']}"
    )
  lines += ["", *_collectives(results), *_bound(results, chip)]
  return "\n".join(lines)


def _collectives(results: dict[str, Any]) -> list[str]:
  rows = results["collectives"]
  if not rows:
    return ["No collectives.", ""]
  found = [communication.Row(**row) for row in rows]
  law = communication.CommCost(**results["law"])
  return [
    *communication.table(found, "collective"),
    "",
    *communication.summary(found, law),
    "",
  ]


def _bound(results: dict[str, Any], chip: targets.Chip) -> list[str]:
  parts = bound(results, chip)
  largest = max(parts, key=parts.get)
  seconds = parts[largest]
  rate = results["per_chip"] / seconds
  shown = ", ".join(f"{k} {1e3 * v:.3g} ms" for k, v in parts.items())
  if "memory" not in parts:
    shown += "; without its memory traffic, which O0 counts"
  return [
    f"Bound, not a measurement: at the published peaks ({chip.source}) a step "
    f"takes at least {1e3 * seconds:.3g} ms, by its {largest} ({shown}): at "
    f"most {rate:,.4g} images/s a chip, {rate * results['chips']:,.4g} in all."
  ]


def define() -> None:
  """Defines the flags; not at import, since other commands have the same."""
  config_flags.DEFINE_config_file("config", default=None)
  flags.DEFINE_string("topology", "v5e:2x2", "Chips to compile for.")
  flags.DEFINE_integer("per_chip", None, "Images per chip.", lower_bound=1)
  flags.DEFINE_integer("fsdp", None, "Replaces mesh.fsdp.", lower_bound=1)
  flags.DEFINE_enum("level", "default", LEVELS, "Optimisation level.")
  flags.DEFINE_string("json", None, "Also write the results to this file.")
  flags.DEFINE_string("text", None, "Also write the program to this file.")


def main() -> None:
  """Compiles what the flags say, and prints a report."""
  given = flags.FLAGS
  c, target = given.config, targets.parse(given.topology)
  targets.setup(target)
  if given.per_chip:
    c.data.batch_size = given.per_chip * target.chips
  if given.fsdp:
    c.mesh.fsdp = given.fsdp
  presets.complete(c)
  flops.check(c)
  results = measure(c, target, given.level, given.text)
  results["config"] = config_flags.get_config_filename(flags.FLAGS["config"])
  print(report(results, target.chip))
  if given.json:
    Path(given.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
  define()
  sys.exit(cli.start(main, __doc__))

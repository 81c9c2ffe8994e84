"""What came of it: a table, what it means, and every number as JSON."""

import json
import platform
import textwrap
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality import child, judge, ours, peer
from benchmarks.quality.rows import JUDGED
from gamix_jax import files

HEAD = (
  *("row", "side", "CPU-s used", "images seen", "parameters", "MAE"),
  *("features", "fd rec", "fd prior"),
  *("precision / recall / density / coverage", "seeds"),
)
PRDC = ("precision", "recall", "density", "coverage")

PROTOCOL = f"""\
Budgets are CPU-seconds, user and system, on {{cores}} core(s) for both sides;
never two trainings at a time. Ours: `python -m gamix_jax.main` with the config
named above; all that the process does counts, imports, reading, compiling (no
cache), the last evaluation and the checkpoint too. The number of steps is set
before, from short runs that are not counted, so as to stay within the budget;
a run that took over {ours.OVER - 1:.0%} more is made again, shorter. Peer:
pythae's default fully connected VAE, Adam {peer.LEARNING_RATE:g}, as many
threads as cores, which sleep while they wait; only its training loop counts.
One training of the longest budget is seen at the shorter ones on its way: its
learning rate is constant. Both get the same uint8 images and as many latents;
ours mirrors them where its config says so (`data.flip`), the peer does not.

Judged are images as 8 bits. MAE: of reconstructions (the posterior's mean
decoded), pixels in [-1, 1], of the held-out images, {JUDGED:,} at most. fd:
squared Frechet distance to the held-out images, as many against as many, of the
reconstructions and of decoded draws from the prior; the four shares are of
those draws. Features: `classifier`, of a small network that learned the labels
of up to {judge.CLASSIFIED:,} training images; `random`, of a fixed random one.
Neither is an FID: compare numbers of the same row and features only. Ours has
its averaged weights. Parameters are the encoder's and the decoder's. Numbers
are means, ± the sample standard deviation where there are several seeds."""


def machine() -> dict[str, Any]:
  """What the numbers were made on and with."""
  names = ("gamix_jax", "jax", "flax", "numpy", "scikit-learn")
  found = {"cpu": _cpu(), "cores": child.cores()}
  found |= {"python": platform.python_version()}
  found |= {name: _version(name) for name in names}
  return found if peer.missing() else found | peer.versions()


def _version(name: str) -> str:
  if name == "gamix_jax":  # a checkout need not be installed
    import gamix_jax  # noqa: PLC0415

    return gamix_jax.__version__
  return version(name)


def _cpu() -> str:
  file = Path("/proc/cpuinfo")
  text = file.read_text() if file.is_file() else ""
  for line in text.splitlines():
    if line.startswith("model name"):
      return line.partition(":")[2].strip()
  return platform.processor() or platform.machine()


def shown(values: Sequence[float], digits: int) -> str:
  """`0.068 ± 0.001`: a mean, of several its sample standard deviation."""
  text = f"{np.mean(values):,.{digits}f}"
  if len(values) > 1:
    text += f" ± {np.std(values, ddof=1):,.{digits}f}"
  return text


def table(rows: dict[str, Any]) -> str:
  """Markdown of {row: {side: {seed: facts and numbers of a run}}}."""
  lines = [HEAD, ("---",) * len(HEAD)]
  for row, sides in rows.items():
    for side, seeds in sides.items():
      runs = list(seeds.values())
      first = [shown([r["cpu_seconds"] for r in runs], 0)]
      first += [shown([r["images"] for r in runs], 0)]
      first += [f"{runs[0]['parameters']:,}"]
      first += [shown([r["mae"] for r in runs], 4)]
      for name in runs[0]["features"]:
        found = [r["features"][name] for r in runs]
        of = {k: [f[k] for f in found] for k in found[0]}
        rest = [name, *(shown(of[k], 3) for k in list(of)[:2])]
        rest += [" / ".join(shown(of[k], 2) for k in PRDC)]
        rest += [", ".join(map(str, seeds))]
        lines.append((row, side, *first, *rest))
  return "\n".join("| " + " | ".join(words) + " |" for words in lines)


def write(out: Path, found: dict[str, Any]) -> str:
  """Writes quality.md and quality.json; the Markdown.

  Args:
    out: the folder.
    found: {"machine", "rows": see `table`, "tasks": {task: {"source",
      "train", "judged", "accuracy", "config", "overrides"}}, "skipped":
      {side: reason}}.

  Raises:
    UserError: they cannot be written.
  """
  about = ", ".join(f"{k} {v}" for k, v in found["machine"].items())
  parts = [table(found["rows"]), f"Machine: {about}."]
  for name, task in found["tasks"].items():
    line = (
      f"{name}: {task['train']:,} images to train on, {task['judged']:,} "
      f"judged on; configs/{task['config']}"
    )
    if task["overrides"]:
      line += " with " + ", ".join(f"`{v}`" for v in task["overrides"])
    if task["accuracy"] is not None:
      line += f"; the classifier tells {task['accuracy']:.1%} of those rightly"
    parts.append(line + ".")
  parts += [f"No {k}: {why}." for k, why in found["skipped"].items()]
  cores = found["machine"]["cores"]
  protocol = PROTOCOL.format(cores=cores)
  parts += [textwrap.fill(p, 80) for p in protocol.split("\n\n")]
  text = "\n\n".join(parts) + "\n"
  files.write_text(out / "quality.md", text)
  files.write_text(out / "quality.json", json.dumps(found, indent=1) + "\n")
  return text

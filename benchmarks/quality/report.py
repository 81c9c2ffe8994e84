"""Writes the report: a table, its explanation, and all values as JSON."""

import json
import platform
import textwrap
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality import child, judge, ours, peer
from benchmarks.quality.rows import MAX_JUDGED
from gamix_jax import files

HEAD = (
  *("row", "side", "CPU-s used", "images seen", "parameters", "MAE"),
  *("features", "fd rec", "fd prior"),
  *("precision / recall / density / coverage", "seeds"),
)
PRDC = ("precision", "recall", "density", "coverage")

PROTOCOL = f"""\
Budgets are CPU-seconds, user and system, on {{cores}} core(s) for both sides,
one training at a time. Ours: `python -m gamix_jax.main` with the config named
above. The whole process counts, including imports, reading, compiling (no
cache), the final evaluation and the checkpoint. The number of steps is set in
advance, from short runs that are not counted, so as to stay within the budget;
a run that exceeds it by more than {ours.MAX_OVERRUN - 1:.0%} is repeated with
fewer steps. Peer: pythae's default fully connected VAE, Adam
{peer.LEARNING_RATE:g}, as many threads as cores, which sleep while they wait;
only its training loop counts. One training for the longest budget is also
evaluated at the shorter ones: its learning rate is constant. Both sides get the
same uint8 images and the same latent size; ours mirrors images if its config
says so (`data.flip`), the peer does not.

Images are evaluated in 8 bits. MAE: of reconstructions (the decoded posterior
mean), pixels in [-1, 1], on the held-out images, at most {MAX_JUDGED:,}. fd:
squared Frechet distance to the held-out images, with equal numbers of images,
of the reconstructions and of decoded samples from the prior; precision, recall,
density and coverage are of those samples. Features: `classifier`, a small
network trained on the labels of up to {judge.MAX_CLASSIFIED:,} training images;
`random`, a fixed random network. Neither gives an FID: compare values of the
same row and features only. Ours uses its EMA weights. Parameters are those of
the encoder and the decoder. Values are means, ± the sample standard deviation
if there are several seeds."""


def machine() -> dict[str, Any]:
  """Returns the hardware and the versions."""
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
  """Formats `0.068 ± 0.001`: a mean and, of several, the standard deviation."""
  text = f"{np.mean(values):,.{digits}f}"
  if len(values) > 1:
    text += f" ± {np.std(values, ddof=1):,.{digits}f}"
  return text


def table(rows: dict[str, Any]) -> str:
  """Returns Markdown of {row: {side: {seed: facts and metrics of a run}}}."""
  lines = [HEAD, ("---",) * len(HEAD)]
  for row, sides in rows.items():
    for side, seeds in sides.items():
      runs = list(seeds.values())
      first = [shown([r["cpu_seconds"] for r in runs], 0)]
      first += [shown([r["images"] for r in runs], 0)]
      first += [f"{runs[0]['parameters']:,}"]
      first += [shown([r["mae"] for r in runs], 4)]
      for name in runs[0]["features"]:
        features = [r["features"][name] for r in runs]
        columns = {k: [f[k] for f in features] for k in features[0]}
        rest = [name, *(shown(columns[k], 3) for k in list(columns)[:2])]
        rest += [" / ".join(shown(columns[k], 2) for k in PRDC)]
        rest += [", ".join(map(str, seeds))]
        lines.append((row, side, *first, *rest))
  return "\n".join("| " + " | ".join(words) + " |" for words in lines)


def write(out: Path, found: dict[str, Any]) -> str:
  """Writes quality.md and quality.json; returns the Markdown.

  Args:
    out: the folder.
    found: {"machine", "rows": see `table`, "tasks": {task: {"source",
      "train", "judged", "accuracy", "config", "overrides"}}, "skipped":
      {side: reason}}.

  Raises:
    UserError: if they cannot be written.
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
      line += f"; the classifier's accuracy on those is {task['accuracy']:.1%}"
    parts.append(line + ".")
  parts += [f"No {k}: {why}." for k, why in found["skipped"].items()]
  cores = found["machine"]["cores"]
  protocol = PROTOCOL.format(cores=cores)
  parts += [textwrap.fill(p, 80) for p in protocol.split("\n\n")]
  text = "\n\n".join(parts) + "\n"
  files.write_text(out / "quality.md", text)
  files.write_text(out / "quality.json", json.dumps(found, indent=1) + "\n")
  return text

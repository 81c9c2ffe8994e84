"""Quality at equal time: python -m benchmarks.quality, from a checkout's root.

--mnist=PATH --fashion=PATH --faces=PATH     the data: a folder of idx files or
                                an .npz; for faces, a folder with train/ and
                                test/; or any data.source, such as npz:PATH
--rows=mnist_120,faces_600      <task>_<CPU-seconds>; default: those of
                                mnist_120, mnist_600, fashion_mnist_600,
                                faces_600 and faces_1800 whose data are given
--seeds=0,1,2                   seeds to run on both sides
--sides=ours                    run only one side (ours, peer)
--ours=optim.vae.learning_rate=1e-3     an override for ours; may be repeated
--out=runs/quality              output folder; the same command resumes
--tiny                          digits and tiny networks, about a minute: to try
                                the command, not for results

Trains ours and pythae's default VAE (pip install -e '.[bench]') for the same
CPU-seconds on the same images with the same latent size, evaluates both in the
same way, and writes quality.md, quality.json and a PNG per row. The text below
the table explains the metrics. A finished run is not repeated. Run it on an
otherwise idle machine; `taskset -c 0` before the command gives both sides one
core.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np
from absl import flags

from gamix_jax import cli
from gamix_jax.errors import UserError

SIDES = ("ours", "peer")


def define() -> None:
  """Defines the flags."""
  text, names = flags.DEFINE_string, flags.DEFINE_list
  text("mnist", None, "")
  text("fashion", None, "")
  text("faces", None, "")
  names("rows", None, "")
  names("seeds", ["0"], "")
  names("sides", list(SIDES), "")
  flags.DEFINE_multi_string("ours", [], "")
  text("out", "runs/quality", "")
  flags.DEFINE_bool("tiny", False, "")


def main() -> None:
  """Trains, evaluates and reports as the flags say."""
  os.environ["JAX_PLATFORMS"] = "cpu"  # CPU-seconds are measured
  # Treat it as an interrupt, so that the training process ends with this one.
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  from benchmarks.quality import peer, report, rows  # noqa: PLC0415

  given = flags.FLAGS
  if not all(seed.isdecimal() for seed in given.seeds):
    raise UserError(f"--seeds={','.join(given.seeds)} must be whole numbers.")
  if not given.sides or set(given.sides) - set(SIDES):
    raise UserError(
      f"--sides={','.join(given.sides)} must be of {', '.join(SIDES)}."
    )
  paths = {
    "mnist": given.mnist,
    "fashion_mnist": given.fashion,
    "faces": given.faces,
  }
  budgets_by_task = rows.parse(given.rows, paths, given.tiny)
  peer_skipped = (
    peer.missing() if "peer" in given.sides else "not among --sides"
  )
  results = {
    "machine": report.machine(),
    "rows": {},
    "tasks": {},
    "skipped": {},
  }
  if peer_skipped:
    results["skipped"]["peer"] = peer_skipped
  out = Path(given.out)
  for name, budgets in budgets_by_task.items():
    task = (rows.TINY_TASKS if given.tiny else rows.TASKS)[name]
    bench = Bench(name, task, rows.source(task, paths.get(name)), out, results)
    for seed in map(int, given.seeds):
      if not peer_skipped:
        bench.peer(budgets, seed)
      if "ours" in given.sides:
        bench.ours(budgets, seed)
  print((out / "quality.md").read_text(), flush=True)


class Bench:
  """Trains and evaluates the rows of one task; writes the report each time."""

  def __init__(self, name: str, task, source: str, out: Path, results: dict):
    """Reads the images and creates the judge; `found` holds the results.

    Raises:
      UserError: if the data or an override of ours is invalid.
    """
    from benchmarks.quality import child, judge, rows  # noqa: PLC0415
    from benchmarks.quality.ours import Ours  # noqa: PLC0415

    overrides = flags.FLAGS.ours
    self._name, self._task, self._out, self._results = name, task, out, results
    self._ours = Ours(task, source, overrides)
    child.say(f"{name}: reading {source}")
    self._images = rows.read(self._ours.config)
    self._judge = judge.Judge(self._images, task.features, out)
    results["tasks"][name] = {
      "source": source,
      "train": len(self._images.train),
      "judged": len(self._images.test),
      "images": self._images.sha256,
      "accuracy": self._judge.accuracy,
      "config": task.config,
      "overrides": [*task.more, *overrides],
      "batch": {"ours": self._ours.config.data.batch_size, "peer": task.batch},
    }

  def ours(self, budgets: list[int], seed: int) -> None:
    """Runs ours with a seed."""
    for seconds in budgets:
      folder = self._folder(seconds)
      facts = self._ours.run(folder, seed, seconds, self._images)
      self._keep("ours", seconds, seed, facts)

  def peer(self, budgets: list[int], seed: int) -> None:
    """Runs the peer with a seed."""
    from benchmarks.quality import peer  # noqa: PLC0415

    folders = {seconds: self._folder(seconds) for seconds in budgets}
    facts = peer.run(folders, self._task, seed, self._images)
    for seconds in budgets:
      self._keep("peer", seconds, seed, facts[seconds])

  def _folder(self, seconds: int) -> Path:
    folder = self._out / f"{self._name}_{seconds}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder

  def _keep(self, side: str, seconds: int, seed: int, facts: dict) -> None:
    """Evaluates a finished run and updates the report."""
    from benchmarks.quality import judge, report  # noqa: PLC0415

    folder = self._folder(seconds)
    with np.load(folder / f"{side}_s{seed}.npz") as images:
      metrics = self._judge(images["reconstructions"], images["samples"])
    sides = self._results["rows"].setdefault(folder.name, {})
    sides.setdefault(side, {})[seed] = facts | metrics
    # Ours first, whichever finished first.
    self._results["rows"][folder.name] = dict(sorted(sides.items()))
    kinds = {"held out": self._images.test}
    for what in ("reconstructions", "samples"):
      for name, seeds in sorted(sides.items()):
        with np.load(folder / f"{name}_s{next(iter(seeds))}.npz") as images:
          kinds[f"{name}:\n{what}"] = images[what]
    judge.picture(self._out / f"{folder.name}.png", kinds)
    report.write(self._out, self._results)


if __name__ == "__main__":
  if "--help" in sys.argv:
    print(__doc__)
    sys.exit(0)
  sys.exit(cli.run(main, define=define))

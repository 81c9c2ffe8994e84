"""Quality at equal time: python -m benchmarks.quality, from a checkout's root.

--mnist=PATH --fashion=PATH --faces=PATH     the data: a folder of idx files, an
                                .npz, for faces a folder with train/ and test/;
                                or any data.source, such as npz:PATH
--rows=mnist_120,faces_600      <task>_<CPU-seconds>; else mnist_120, mnist_600,
                                fashion_mnist_600, faces_600, faces_1800, those
                                whose data are given
--seeds=0,1,2                   each of them on both sides
--sides=ours                    one alone (ours, peer)
--ours=optim.vae.learning_rate=1e-3     an override for ours; may be repeated
--out=runs/quality              where all is kept; the same command goes on
--tiny                          digits and tiny networks, a minute in all: that
                                it runs, no numbers to be quoted

Trains ours and pythae's default VAE (pip install -e '.[bench]') for the same
CPU-seconds on the same images with as many latents, judges both alike, and
writes quality.md, quality.json and a PNG for each row. What the numbers are is
said beneath the table. A finished run is not repeated. Have the machine for
yourself; `taskset -c 0` before the command gives both sides one core.
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
  """The flags."""
  text, many = flags.DEFINE_string, flags.DEFINE_list
  text("mnist", None, "")
  text("fashion", None, "")
  text("faces", None, "")
  many("rows", None, "")
  many("seeds", ["0"], "")
  many("sides", list(SIDES), "")
  flags.DEFINE_multi_string("ours", [], "")
  text("out", "runs/quality", "")
  flags.DEFINE_bool("tiny", False, "")


def main() -> None:
  """Trains, judges and reports as the flags say."""
  os.environ["JAX_PLATFORMS"] = "cpu"  # of CPU-seconds
  # As an interrupt, so that the process that trains ends with this one.
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  from benchmarks.quality import peer, report, rows  # noqa: PLC0415

  given = flags.FLAGS
  if not all(seed.isdecimal() for seed in given.seeds):
    raise UserError(f"--seeds={','.join(given.seeds)}: whole numbers, please.")
  if not given.sides or set(given.sides) - set(SIDES):
    raise UserError(f"--sides={','.join(given.sides)}: of {', '.join(SIDES)}.")
  paths = {
    "mnist": given.mnist,
    "fashion_mnist": given.fashion,
    "faces": given.faces,
  }
  wanted = rows.parse(given.rows, paths, given.tiny)
  why = peer.missing() if "peer" in given.sides else "not among --sides"
  found = {"machine": report.machine(), "rows": {}, "tasks": {}, "skipped": {}}
  if why:
    found["skipped"]["peer"] = why
  out = Path(given.out)
  for name, budgets in wanted.items():
    task = (rows.TINY_TASKS if given.tiny else rows.TASKS)[name]
    bench = Bench(name, task, rows.source(task, paths.get(name)), out, found)
    for seed in map(int, given.seeds):
      if not why:
        bench.peer(budgets, seed)
      if "ours" in given.sides:
        bench.ours(budgets, seed)
  print((out / "quality.md").read_text(), flush=True)


class Bench:
  """One task: its rows are trained and judged, and reported each time."""

  def __init__(self, name: str, task, source: str, out: Path, found: dict):
    """Reads the images and makes the judge; `found` is what is reported.

    Raises:
      UserError: the data, or an override of ours, are at fault.
    """
    from benchmarks.quality import child, judge, rows  # noqa: PLC0415
    from benchmarks.quality.ours import Ours  # noqa: PLC0415

    more = flags.FLAGS.ours
    self._name, self._task, self._out, self._found = name, task, out, found
    self._ours = Ours(task, source, more)
    child.say(f"{name}: reading {source}")
    self._images = rows.read(self._ours.config)
    self._judge = judge.Judge(self._images, task.features, out)
    found["tasks"][name] = {
      "source": source,
      "train": len(self._images.train),
      "judged": len(self._images.test),
      "images": self._images.sha256,
      "accuracy": self._judge.accuracy,
      "config": task.config,
      "overrides": [*task.more, *more],
      "batch": {"ours": self._ours.config.data.batch_size, "peer": task.batch},
    }

  def ours(self, budgets: list[int], seed: int) -> None:
    """Our runs of a seed."""
    for seconds in budgets:
      folder = self._folder(seconds)
      facts = self._ours.run(folder, seed, seconds, self._images)
      self._keep("ours", seconds, seed, facts)

  def peer(self, budgets: list[int], seed: int) -> None:
    """The peer's run of a seed."""
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
    """Judges a finished run; writes the report as far as it is."""
    from benchmarks.quality import judge, report  # noqa: PLC0415

    folder = self._folder(seconds)
    with np.load(folder / f"{side}_s{seed}.npz") as made:
      numbers = self._judge(made["reconstructions"], made["samples"])
    sides = self._found["rows"].setdefault(folder.name, {})
    sides.setdefault(side, {})[seed] = facts | numbers
    # Ours first, whichever came first.
    self._found["rows"][folder.name] = dict(sorted(sides.items()))
    kinds = {"held out": self._images.test}
    for what in ("reconstructions", "samples"):
      for name, seeds in sorted(sides.items()):
        with np.load(folder / f"{name}_s{next(iter(seeds))}.npz") as made:
          kinds[f"{name}:\n{what}"] = made[what]
    judge.picture(self._out / f"{folder.name}.png", kinds)
    report.write(self._out, self._found)


if __name__ == "__main__":
  if "--help" in sys.argv:
    print(__doc__)
    sys.exit(0)
  sys.exit(cli.run(main, define=define))

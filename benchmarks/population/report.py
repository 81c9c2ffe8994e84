"""Writes the tables and the figures from the folders of the runs."""

import csv
import io
import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.population import plan
from benchmarks.population.methods import METHODS
from gamix_jax import files, metrics, plots
from gamix_jax.errors import UserError
from gamix_jax.evaluate.report import markdown_table

TABLE, CSV = "table.md", "runs.csv"
BATCHES, FRONT = "batches.png", "front.png"
# Columns of the first table: number, title, digits. Lower is better in the
# first ones.
DISTANCES = {
  "mae": ("MAE", 4),
  "fd_reconstructions": ("fd, reconstructions", 3),
  "fd_prior": ("fd, prior", 3),
  "fd_gmm": ("fd, `gmm`", 3),
  "fd_two_stage": ("fd, `two_stage`", 3),
}
FIDS = {
  f"fid_{k}": (f"FID, {k}", 2)
  for k in ("reconstructions", "prior", "gmm", "two_stage")
}
CODES = {
  "population_kl": ("population KL, nats", 3),
  "population_kl_gaussian": ("of its moments", 3),
  "mutual_information": ("mutual information", 2),
  "active_units": ("active", 1),
  "linear_probe": ("linear probe", 3),
  "knn": ("k-NN", 3),
  "sec_per_step": ("s a step", 5),
}
SHARES = ("precision", "recall", "density", "coverage")
FIGURE_PANELS = ("fd_reconstructions", "fd_prior")

Results = Sequence[dict[str, Any]]


def tied(values: dict[str, Sequence[float]]) -> set[str]:
  """Returns the names of the lowest mean, and of those tied with it.

  Tied is a difference of at most two standard errors of the difference.
  """
  found = {k: metrics.mean_and_error(v) for k, v in values.items() if v}
  if not found:
    return set()
  best, error = min(found.values(), key=operator.itemgetter(0))
  return {
    k
    for k, (mean, own) in found.items()
    if mean == best
    or (None not in (own, error) and mean - best <= 2 * math.hypot(own, error))
  }


def _cell(values: Sequence[float], digits: int, bold: bool = False) -> str:
  if not values:
    return "-"
  mean, error = metrics.mean_and_error(values)
  text = f"{mean:.{digits}f}"
  text = f"**{text}**" if bold else text
  return text if error is None else f"{text} ± {error:.{digits}f}"


def _values(runs: Results, method: str, name: str) -> list[float]:
  return [
    r["numbers"][name]
    for r in runs
    if r["method"] == method and name in r["numbers"]
  ]


def _methods(runs: Results) -> list[str]:
  """The methods that have runs, in the order of `METHODS`."""
  there = {r["method"] for r in runs}
  return [m for m in METHODS if m in there]


def _main_table(finals: Results) -> str:
  """Distances and codes, a row per method."""
  there = _methods(finals)
  columns = {
    k: v
    for k, v in (DISTANCES | FIDS | CODES).items()
    if any(k in r["numbers"] for r in finals)
  }
  best = {
    name: tied({m: _values(finals, m, name) for m in there})
    for name in DISTANCES
  }
  rows = []
  for m in there:
    runs = [r for r in finals if r["method"] == m]
    weight, tried = runs[0]["weight"], METHODS[m].weights
    edge = len(tried) > 1 and weight in (min(tried), max(tried))
    cells = [f"`{m}`", f"{weight:g}{' (at the end)' if edge else ''}"]
    cells += [
      _cell(_values(finals, m, name), digits, m in best.get(name, ()))
      for name, (_, digits) in columns.items()
    ]
    rows.append([*cells, str(len(runs))])
  head = ["method", "weight", *(t for t, _ in columns.values()), "seeds"]
  return markdown_table(head, ["---"] * len(head), rows)


def _shares_table(finals: Results) -> str:
  """Precision, recall, density and coverage of samples."""
  there = _methods(finals)
  sources = [
    s
    for s in ("prior", "gmm", "two_stage")
    if any(f"precision_{s}" in r["numbers"] for r in finals)
  ]
  rows = [
    [f"`{m}`"]
    + [
      " / ".join(
        _cell(_values(finals, m, f"{k}_{s}"), 2).partition(" ")[0]
        for k in SHARES
      )
      for s in sources
    ]
    for m in there
  ]
  head = ["precision / recall / density / coverage", *sources]
  return markdown_table(head, ["---"] * len(head), rows)


def _sweep_table(sweeps: Results) -> str:
  """The sums that weights are chosen by, on validation images."""
  rows = []
  for m in METHODS:
    fds = "fd_reconstructions", f"fd_{METHODS[m].sampler}"
    cells = []
    for w in sorted({r["weight"] for r in sweeps if r["method"] == m}):
      runs = [r for r in sweeps if r["weight"] == w]
      sums = (_cell(_values(runs, m, fd), 3) for fd in fds)
      cells.append(f"{w:g}: {' + '.join(sums)}")
    if cells:
      rows.append([f"`{m}`", METHODS[m].sampler, ", ".join(cells)])
  head = [
    "method",
    "samples from",
    "weight: fd of reconstructions + fd of samples",
  ]
  return markdown_table(head, ["---"] * len(head), rows)


def _batch_table(batches: Results) -> str:
  sizes = sorted({r["batch"] for r in batches})
  rows = []
  for m in METHODS:
    for name in FIGURE_PANELS:
      cells = [
        _cell(_values([r for r in batches if r["batch"] == b], m, name), 3)
        for b in sizes
      ]
      if set(cells) != {"-"}:
        rows.append([f"`{m}`", DISTANCES[name][0], *cells])
  head = ["method", "", *(f"B = {b}" for b in sizes)]
  return markdown_table(head, ["---"] * len(head), rows)


def _figure(batches: Results, path: Path) -> None:
  """Distances against the batch size, with standard errors."""
  with plots.literal():
    fig = Figure(figsize=(9, 4.4), layout="constrained")
    FigureCanvasAgg(fig)
    axes = fig.subplots(1, len(FIGURE_PANELS))
    markers = itertools.cycle("os^DvP")
    for m, marker in zip(METHODS, markers, strict=False):
      runs = [r for r in batches if r["method"] == m]
      sizes = sorted({r["batch"] for r in runs})
      if not sizes:
        continue
      for ax, name in zip(axes, FIGURE_PANELS, strict=True):
        found = [
          metrics.mean_and_error(
            _values([r for r in runs if r["batch"] == b], m, name)
          )
          for b in sizes
        ]
        mean, error = zip(*found, strict=True)
        error = [e or 0 for e in error]
        ax.errorbar(sizes, mean, error, marker=marker, capsize=3, label=m)
    for ax, name in zip(axes, FIGURE_PANELS, strict=True):
      ax.set_xscale("log", base=2)
      ax.set_yscale("log")
      ticks = sorted({r["batch"] for r in batches})
      ax.set_xticks(ticks, list(map(str, ticks)))
      ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
      ax.yaxis.set_major_formatter("{x:g}")
      ax.yaxis.set_minor_formatter(NullFormatter())
      ax.set_xlabel("batch size")
      ax.set_ylabel(DISTANCES[name][0])
      ax.grid(alpha=0.3, which="both")
    lines = axes[0].get_legend_handles_labels()
    fig.legend(*lines, fontsize="small", loc="outside upper center", ncols=3)
    plots.save(fig, path)


def _front(sweeps: Results) -> list[plots.Point]:
  """The tried weights of the methods that sample from N(0, I)."""
  return [
    plots.Point(m, f"{r['weight']:g}", [n["mae"]], [n["fd_prior"]])
    for m in _methods(sweeps)
    for r in sweeps
    if r["method"] == m and "fd_prior" in (n := r["numbers"])
  ]


def _protocol(settings: dict[str, Any], runs: Results) -> Iterator[str]:
  """Sentences about what all runs share."""
  first = runs[0]
  latents = settings["latent"] or "the network's number of"
  yield (
    f"Data: {settings['source']}, {first['train_images']} training images; "
    f"network {settings['network']}, {latents} latents; batch "
    f"{settings['batch']}; sweeps of {settings['sweep_epochs']} epochs, final "
    f"runs of {settings['epochs']}; likelihood {settings['reconstruction']}; "
    f"discriminator: {settings['adversarial']}."
  )
  yield (
    f"Judged on {settings['judged']} images, as many samples; averaged "
    f"weights; features {first['features']}, weights "
    f"{', '.join(sorted({r['features_sha256'][:8] for r in runs}))}. "
    "± is the standard error over seeds. In bold: the lowest mean, and those "
    "within two standard errors of the difference."
  )
  devices = sorted({f"{r['device']}, jax {r['jax']}" for r in runs})
  yield f"Devices: {'; '.join(devices)}."


def _csv(runs: Results) -> str:
  keys = ["method", "phase", "weight", "seed", "batch", "epochs", "steps"]
  names = sorted({name for r in runs for name in r["numbers"]})
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow([*keys, *names])
  for r in runs:
    numbers = [r["numbers"].get(name, "") for name in names]
    writer.writerow([*(r[k] for k in keys), *numbers])
  return out.getvalue()


def write(out: Path) -> str:
  """Writes table.md, runs.csv and figures; returns the Markdown.

  Args:
    out: the output folder of the bench.

  Raises:
    UserError: if there are no finished runs, or a file cannot be written.
  """
  settings, runs = plan.read_settings(out), list(plan.results(out))
  if not runs or settings is None:
    raise UserError(f"--out={out} has no finished runs.")
  phases = {p: [r for r in runs if r["phase"] == p] for p in plan.PHASES}
  parts = list(_protocol(settings, runs))
  if phases["final"]:
    parts += [_main_table(phases["final"]), _shares_table(phases["final"])]
  if phases["batch"]:
    parts.append(_batch_table(phases["batch"]))
    with files.writing(out / BATCHES):
      _figure(phases["batch"], out / BATCHES)
  if phases["sweep"]:
    parts.append(_sweep_table(phases["sweep"]))
    points = _front(phases["sweep"])
    if points:
      with files.writing(out / FRONT):
        plots.front(out / FRONT, points, "fd of N(0, I) samples, validation")
  text = "\n\n".join(p.strip("\n") for p in parts) + "\n"
  files.write_text(out / TABLE, text)
  files.write_text(out / CSV, _csv(runs))
  return text

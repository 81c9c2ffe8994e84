"""The pictures of a comparison.

save    a panel a quantity, images of each family
front   reconstruction against samples, a point a family
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from gamix_jax import figures
from gamix_jax.compare.evaluate_run import ORIGINALS, STRIP
from gamix_jax.figures import literal

COLUMNS = 4  # of panels
WIDTH = 13.0  # inches
DPI = 110
LOG_FROM = 8  # largest over smallest distance from which their axis is one
AROUND = ((1, 1), (1, -1), (-1, -1), (-1, 1), (1, 0), (-1, 0), (0, 1), (0, -1))
LABELS = 0.17  # share of the width that families' names have


@literal()
def save(
  path: Path,
  panels: Mapping[str, Mapping[str, Sequence[float]]],
  folders: Mapping[str, Path | None],
  lines_at: Mapping[str, float | None],
) -> None:
  """Writes the PNG, whole or not at all.

  Args:
    path: the file.
    panels: {quantity: {family: values, one a seed}}; a point for each value,
      a larger one for the mean, a line for the sample standard deviation.
    folders: {family: of the run whose images are shown}; None: none yet.
    lines_at: {quantity: where its panel has a dashed line}.

  Raises:
    OSError: it cannot be written.
  """
  families = list(folders)
  rows = -(-len(panels) // COLUMNS)
  two_lines = any("@" in spec for spec in families)
  tall = 0.75 + (0.36 if two_lines else 0.27) * len(families)
  strip = 0.52
  pictures = 0.9 + strip * (1 + len(families))
  height = rows * (tall + 0.45) + pictures
  fig = Figure(figsize=(WIDTH, height), dpi=DPI)
  parts = fig.subfigures(2, 1, height_ratios=[height - pictures, pictures])
  _panels(parts[0], panels, families, rows, lines_at, height - pictures)
  _pictures(parts[1], folders)
  figures.save(fig, path)


def _panels(fig, panels, families, rows, lines_at, height) -> None:
  axes = fig.subplots(rows, COLUMNS, sharey=True, squeeze=False)
  margin = 0.35 / height
  fig.subplots_adjust(
    left=LABELS,
    right=0.985,
    top=1 - margin,
    bottom=margin,
    hspace=0.55,
    wspace=0.12,
  )
  places = np.arange(len(families))
  for i, ax in enumerate(axes.flat):
    if i >= len(panels):
      ax.set_visible(False)
      continue
    title, values = list(panels.items())[i]
    ax.set_title(title, fontsize=8.5)
    ax.tick_params(labelsize=8)
    ax.locator_params(axis="x", nbins=4)
    ax.grid(axis="x", alpha=0.3)
    ax.margins(x=0.12)
    if lines_at.get(title) is not None:
      ax.axvline(lines_at[title], color="black", ls="--", lw=1)
      ax.set_title(f"{title} (-- held out)", fontsize=8.5)
    for place, spec in zip(places, families, strict=True):
      each = values[spec]
      color = f"C{place % 10}"
      if not each:
        ax.text(
          *(0.02, place, "none"),
          transform=ax.get_yaxis_transform(),
          fontsize=8,
          color="grey",
          va="center",
        )
        continue
      sd = np.std(each, ddof=1) if len(each) > 1 else 0.0
      ax.errorbar(
        np.mean(each), place, xerr=sd, fmt="o", ms=6, color=color, capsize=3
      )
      ax.plot(each, [place] * len(each), ".", ms=4, color="black", alpha=0.6)
    ax.set_yticks(places, map(_label, families))
    ax.set_ylim(len(families) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0, labelleft=i % COLUMNS == 0)


def _pictures(fig, folders) -> None:
  """Held-out images; below, of each family, reconstructions and samples."""
  shown = {k: v for k, v in folders.items() if v is not None}
  first = next(iter(shown.values()))
  files = {"held out": first / ORIGINALS}
  files |= {k: v / STRIP for k, v in shown.items()}
  axes = fig.subplots(len(files), 1, squeeze=False)[:, 0]
  fig.subplots_adjust(
    left=LABELS, right=0.985, top=0.93, bottom=0.02, hspace=0.08
  )
  images = {k: imread(v) for k, v in files.items()}
  across = max(image.shape[1] for image in images.values())
  for ax, (name, image) in zip(axes, images.items(), strict=True):
    grey = {"cmap": "gray", "vmin": 0, "vmax": 1} if image.ndim == 2 else {}
    ax.imshow(image, **grey, interpolation="nearest")
    ax.set_xlim(0, across)
    ax.set_anchor("W")
    ax.set_axis_off()
    ax.text(
      *(-0.01, 0.5, _label(name)),
      transform=ax.transAxes,
      ha="right",
      va="center",
      fontsize=8,
    )
  axes[0].set_title(
    "held-out images; below, their reconstructions (left) and samples from "
    "the prior (right)",
    fontsize=9,
    loc="left",
  )


def _label(spec: str) -> str:
  """A family's name, its weights on a line of their own."""
  return spec.replace("@", "\n@", 1)


# ---------------------------------------------------------- the front


class Point(NamedTuple):
  """A family on the front.

  Attributes:
    line: that it is a point of.
    label: beside it.
    x: absolute error of reconstructions, one a seed.
    y: distance of samples, one a seed.
  """

  line: str
  label: str
  x: Sequence[float]
  y: Sequence[float]


@literal()
def front(path: Path, points: Sequence[Point], distance: str) -> None:
  """Writes the PNG, whole or not at all.

  A colour and a line for each `Point.line`, joined in the order of x; points
  are means over seeds, bars the sample standard deviation.

  Args:
    path: the file.
    points: the families, one or more.
    distance: what y is.

  Raises:
    OSError: it cannot be written.
  """
  fig = Figure(figsize=(8.5, 6.2), dpi=DPI, layout="constrained")
  FigureCanvasAgg(fig)
  ax = fig.subplots()
  labels = []
  names = list(dict.fromkeys(p.line for p in points))
  for i, name in enumerate(names):
    color = f"C{i % 10}"
    own = [p for p in points if p.line == name]
    own.sort(key=lambda p: np.mean(p.x))
    x, y = ([np.mean(p[k]) for p in own] for k in (2, 3))
    bars = [
      [np.std(p[k], ddof=1) if len(p[k]) > 1 else 0.0 for p in own]
      for k in (2, 3)
    ]
    ax.errorbar(
      *(x, y, bars[1], bars[0]),
      fmt="o-",
      ms=6,
      lw=1.5,
      elinewidth=1,
      capsize=2,
      color=color,
      label=name,
    )
    labels += [(p.label, at, color) for p, *at in zip(own, x, y, strict=True)]
  heights = [at[1] for _, at, _ in labels]
  if min(heights) > 0 and max(heights) > LOG_FROM * min(heights):
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())
  ax.margins(0.12)
  ax.grid(alpha=0.3, which="both")
  ax.set_xlabel("absolute error of reconstructions (less is better)")
  ax.set_ylabel(f"{distance} (less is better)")
  fig.legend(fontsize=8.5, loc="outside upper left", ncols=1)
  _write_labels(fig, ax, labels)
  figures.save(fig, path)


def _write_labels(fig, ax, labels) -> None:
  """Beside their points, where they hide neither points nor one another."""
  fig.draw_without_rendering()
  size = 5 * DPI / 72  # half a marker and its rim, pixels
  taken = [
    Bbox.from_extents(x - size, y - size, x + size, y + size)
    for x, y in ax.transData.transform([at for _, at, _ in labels])
  ]
  sides = {-1: ("right", "top"), 0: ("center",) * 2, 1: ("left", "bottom")}
  rim = withStroke(linewidth=2.5, foreground="white")  # over lines
  for text, at, color in labels:
    for far, (i, j) in itertools.product((6, 14, 24), AROUND):
      written = ax.annotate(
        text,
        at,
        xytext=(far * i, far * j),
        textcoords="offset points",
        ha=sides[i][0],
        va=sides[j][1],
        fontsize=8.5,
        color=color,
        path_effects=[rim],
      )
      box = written.get_window_extent()
      if not any(box.overlaps(other) for other in taken):
        break
      if (far, i, j) != (24, *AROUND[-1]):  # the last stays in any case
        written.remove()
    taken.append(box)

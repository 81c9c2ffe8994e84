"""The picture of a comparison: a panel a quantity, images of each family."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from gamix_jax.compare.judge import ORIGINALS, STRIP

COLUMNS = 4  # of panels
WIDTH = 13.0  # inches
DPI = 110
LABELS = 0.17  # share of the width that families' names have


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
  tall = 0.75 + 0.27 * len(families)
  strip = 0.52
  pictures = 0.9 + strip * (1 + len(families))
  height = rows * (tall + 0.45) + pictures
  fig = Figure(figsize=(WIDTH, height), dpi=DPI)
  FigureCanvasAgg(fig)
  parts = fig.subfigures(2, 1, height_ratios=[height - pictures, pictures])
  _panels(parts[0], panels, families, rows, lines_at, height - pictures)
  _pictures(parts[1], folders)
  temporary = path.with_name(f".{path.name}.part")
  try:
    fig.savefig(temporary, format="png")
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


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
    ax.set_yticks(places, families)
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
      *(-0.01, 0.5, name),
      transform=ax.transAxes,
      ha="right",
      va="center",
      fontsize=9,
    )
  axes[0].set_title(
    "held-out images; below, their reconstructions (left) and samples from "
    "the prior (right)",
    fontsize=9,
    loc="left",
  )

"""Images in labelled grids, and maps, as PNG with a title and axes."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from gamix_jax import figures, pictures
from gamix_jax.figures import literal, named

DPI = 100
LARGEST = 24.0  # inches; a larger grid is shown smaller
MARGIN = 0.15  # inches, as all below
TITLE = 0.62
TICKS = 0.27
LABEL = 0.3
LETTER = 0.085  # the width of one
POINTS = 8  # size of letters
COLOURS = 20  # labels that have one of their own


@dataclasses.dataclass(frozen=True)
class ImageGrid:
  """Rows of images with what is written beside them.

  Attributes:
    images: [rows, columns, h, w, c] in [-1, 1].
    columns: a word under each, or none.
    rows: a word left of each, or none.
  """

  images: np.ndarray
  columns: Sequence[str] = ()
  rows: Sequence[str] = ()


def padded(images: np.ndarray, columns: int) -> np.ndarray:
  """[n, h, w, c] as [rows, columns, h, w, c], filled up with white."""
  missing = -len(images) % columns
  white = np.ones((missing, *images.shape[1:]), images.dtype)
  whole = np.concatenate([images, white])
  return whole.reshape(-1, columns, *images.shape[1:])


@literal()
def save(
  path: Path,
  strips: Sequence[ImageGrid],
  title: str,
  xlabel: str = "",
  ylabel: str = "",
) -> None:
  """Writes a PNG of strips under one another, whole or not at all.

  Raises:
    OSError: it cannot be written.
  """
  grids = [
    pictures.grid(s.images.reshape(-1, *s.images.shape[2:]), s.images.shape[1])
    for s in strips
  ]
  width = max(g.shape[1] for g in grids) / DPI
  height = sum(g.shape[0] for g in grids) / DPI
  scale = min(1.0, LARGEST / max(width, height))
  longest = max([len(r) for s in strips for r in s.rows], default=0)
  left = MARGIN + longest * LETTER + (LABEL if ylabel else 0)
  under = [TICKS if s.columns else MARGIN for s in strips]
  across = left + scale * width + MARGIN
  # A narrow picture is made wider for its title, set at its left.
  across = max(across, MARGIN + LETTER * max(map(len, title.splitlines())))
  tall = TITLE + scale * height + sum(under) + (LABEL if xlabel else 0)
  fig = Figure(figsize=(across, tall), dpi=DPI)
  fig.text(
    *(MARGIN / across, 1 - MARGIN / tall, title),
    va="top",
    fontsize=POINTS + 1,
    linespacing=1.4,
  )
  top = tall - TITLE
  for i, (strip, grid, below) in enumerate(
    zip(strips, grids, under, strict=True)
  ):
    h, w = (scale * n / DPI for n in grid.shape[:2])
    place = [left / across, (top - h) / tall, w / across, h / tall]
    ax = fig.add_axes(place)
    _draw(ax, strip, grid)
    ax.set_ylabel(ylabel, fontsize=POINTS)
    if i == len(strips) - 1:
      ax.set_xlabel(xlabel, fontsize=POINTS)
    top -= h + below
  figures.save(fig, path)


def _draw(ax, strip: ImageGrid, grid: np.ndarray) -> None:
  grey = grid.shape[-1] == 1
  kind = {"cmap": "gray", "vmin": 0, "vmax": 255} if grey else {}
  ax.imshow(
    grid[..., 0] if grey else grid,
    aspect="auto",
    interpolation="nearest",
    **kind,
  )
  rows, columns = strip.images.shape[:2]
  high, wide = (
    (n - pictures.LINE) / k
    for n, k in zip(grid.shape[:2], (rows, columns), strict=True)
  )
  # The middles of the images, from the grid's first line on.
  at_x = wide * (np.arange(columns) + 0.5) + pictures.LINE / 2 - 0.5
  at_y = high * (np.arange(rows) + 0.5) + pictures.LINE / 2 - 0.5
  ax.set_xticks(at_x if strip.columns else [], strip.columns)
  ax.set_yticks(at_y if strip.rows else [], strip.rows)
  ax.tick_params(labelsize=POINTS, length=0, pad=3)
  ax.spines[:].set_visible(False)


@literal()
def save_map(
  path: Path,
  places: np.ndarray,
  labels: np.ndarray,
  names: Sequence[str],
  title: str,
  method: str,
) -> None:
  """Writes a PNG of points [n, 2], coloured by their labels [n] (-1: none).

  Raises:
    OSError: it cannot be written.
  """
  fig = Figure(figsize=(7.5, 6.5), dpi=DPI, layout="constrained")
  ax = fig.subplots()
  kinds = np.unique(labels)
  for i, kind in enumerate(kinds):
    ax.scatter(
      *places[labels == kind].T,
      s=12,
      color=f"C{i}" if len(kinds) <= 10 else _colour(i, len(kinds)),
      label=str(i),
      alpha=0.8,
      linewidths=0,
    )
  if 1 < len(kinds) <= COLOURS:
    legend = fig.legend(
      loc="outside right upper", fontsize=POINTS, markerscale=1.6
    )
    # Not as labels, of which those that begin with _ are left out.
    for text, kind in zip(legend.get_texts(), kinds, strict=True):
      name = names[kind] if 0 <= kind < len(names) else str(kind)
      text.set_text("none" if kind < 0 else named(name, 24))
  unit = " (latent units)" if method == "pca" else ""
  axis = {"pca": "principal component", "tsne": "t-SNE", "umap": "UMAP"}[method]
  ax.set_xlabel(f"{axis} 1{unit}", fontsize=POINTS)
  ax.set_ylabel(f"{axis} 2{unit}", fontsize=POINTS)
  ax.tick_params(labelsize=POINTS)
  ax.set_aspect("equal", "datalim")
  ax.set_title(title, fontsize=POINTS + 1, loc="left")
  figures.save(fig, path)


def _colour(i: int, of: int):
  from matplotlib import colormaps  # noqa: PLC0415

  return colormaps["tab20" if of <= COLOURS else "viridis"](
    i if of <= COLOURS else i / (of - 1)
  )

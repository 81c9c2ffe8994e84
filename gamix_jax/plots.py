"""All figures of the commands, drawn with Matplotlib.

literal, named, save   text as it is; short names; files that are whole
image_grids            images in labelled grids                    (generate)
latent_map             codes in a plane                            (generate)
latents, anomalies     variances of the codes; scores              (evaluate)
comparison,
front, fronts          a panel for each metric; two metrics        (compare)
progress               curves and images of a run                  (notebook)
"""

import contextlib
import dataclasses
import io
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from gamix_jax import files, marks, pictures

LONGEST_NAME = 48  # letters of a name that are shown


@contextlib.contextmanager
def literal() -> Iterator[None]:
  """Text is drawn as it is; a context manager, or a decorator.

  Figures are made and written inside of it. A class called `$x_1$` is drawn
  like that, and not as a formula. A letter that the font lacks is drawn as a
  box, without a warning.
  """
  with (
    rc_context({"text.parse_math": False, "text.usetex": False}),
    warnings.catch_warnings(),
  ):
    warnings.filterwarnings("ignore", r"Glyph .* missing from")
    yield


def named(name: str, longest: int = LONGEST_NAME) -> str:
  r"""A name that a user gave, in one line and at most `longest` letters long.

  Characters that cannot be printed (a newline, a byte that is not UTF-8) are
  escaped as in Python: `\n`, `\udce9`.
  """
  shown = "".join(
    c if c.isprintable() else c.encode("unicode_escape").decode() for c in name
  )
  return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def save(fig: Figure, path: Path) -> None:
  """Writes a figure as PNG, whole or not at all.

  Raises:
    OSError: it cannot be written.
  """
  FigureCanvasAgg(fig)
  with files.atomic(path) as temporary:
    # Without the library's version in it, the file is a function of the data.
    fig.savefig(temporary, format="png", metadata=marks.METADATA)


def show_image(ax: Axes, image: np.ndarray, **kwargs) -> None:
  """Draws [h, w] or [h, w, 1 or 3], of uint8 or of floats in [0, 1]."""
  if image.ndim == 3 and image.shape[-1] == 1:
    image = image[..., 0]
  if image.ndim == 2:
    white = 255 if image.dtype == np.uint8 else 1
    kwargs |= {"cmap": "gray", "vmin": 0, "vmax": white}
  ax.imshow(image, **kwargs)


def deviation(values: Sequence[float]) -> float:
  """The sample standard deviation; 0 of a single value."""
  return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


# ---------------------------------------------------------- image grids

GRID_DPI = 100
LARGEST_GRID = 24.0  # inches; a larger grid is shown smaller
MARGIN = 0.15  # inches, as the next four
TITLE_HEIGHT = 0.62
TICKS_HEIGHT = 0.27
LABEL_SIZE = 0.3
LETTER_WIDTH = 0.085
FONT_SIZE = 8  # points
DISTINCT_COLORS = 20  # labels that have a color of their own


@dataclasses.dataclass(frozen=True)
class ImageGrid:
  """Rows of images and their labels.

  Attributes:
    images: [rows, columns, h, w, c] in [-1, 1].
    columns: a word under each, or none.
    rows: a word left of each, or none.
    words: text on an image, by (row, column).
  """

  images: np.ndarray
  columns: Sequence[str] = ()
  rows: Sequence[str] = ()
  words: Mapping[tuple[int, int], str] = dataclasses.field(default_factory=dict)


def padded(images: np.ndarray, columns: int) -> np.ndarray:
  """[n, h, w, c] as [rows, columns, h, w, c], filled up with white."""
  missing = -len(images) % columns
  white = np.ones((missing, *images.shape[1:]), images.dtype)
  whole = np.concatenate([images, white])
  return whole.reshape(-1, columns, *images.shape[1:])


@literal()
def image_grids(
  path: Path,
  grids: Sequence[ImageGrid],
  title: str,
  xlabel: str = "",
  ylabel: str = "",
) -> None:
  """Writes a PNG of grids, one below the other, whole or not at all.

  Raises:
    OSError: it cannot be written.
  """
  drawn = [
    pictures.grid(g.images.reshape(-1, *g.images.shape[2:]), g.images.shape[1])
    for g in grids
  ]
  width = max(g.shape[1] for g in drawn) / GRID_DPI
  height = sum(g.shape[0] for g in drawn) / GRID_DPI
  scale = min(1.0, LARGEST_GRID / max(width, height))
  longest = max([len(r) for g in grids for r in g.rows], default=0)
  left = MARGIN + longest * LETTER_WIDTH + (LABEL_SIZE if ylabel else 0)
  under = [TICKS_HEIGHT if g.columns else MARGIN for g in grids]
  across = left + scale * width + MARGIN
  # A narrow picture is made wider for its title, set at its left.
  across = max(
    across, MARGIN + LETTER_WIDTH * max(map(len, title.splitlines()))
  )
  tall = (
    TITLE_HEIGHT + scale * height + sum(under) + (LABEL_SIZE if xlabel else 0)
  )
  fig = Figure(figsize=(across, tall), dpi=GRID_DPI)
  fig.text(
    *(MARGIN / across, 1 - MARGIN / tall, title),
    va="top",
    fontsize=FONT_SIZE + 1,
    linespacing=1.4,
  )
  top = tall - TITLE_HEIGHT
  for i, (grid, image, below) in enumerate(
    zip(grids, drawn, under, strict=True)
  ):
    h, w = (scale * n / GRID_DPI for n in image.shape[:2])
    place = [left / across, (top - h) / tall, w / across, h / tall]
    ax = fig.add_axes(place)
    _draw_grid(ax, grid, image)
    ax.set_ylabel(ylabel, fontsize=FONT_SIZE)
    if i == len(grids) - 1:
      ax.set_xlabel(xlabel, fontsize=FONT_SIZE)
    top -= h + below
  save(fig, path)


def _draw_grid(ax: Axes, grid: ImageGrid, image: np.ndarray) -> None:
  show_image(ax, image, aspect="auto", interpolation="nearest")
  rows, columns = grid.images.shape[:2]
  high, wide = (
    (n - pictures.LINE) / k
    for n, k in zip(image.shape[:2], (rows, columns), strict=True)
  )
  # The middles of the images, from the grid's first line on.
  at_x = wide * (np.arange(columns) + 0.5) + pictures.LINE / 2 - 0.5
  at_y = high * (np.arange(rows) + 0.5) + pictures.LINE / 2 - 0.5
  ax.set_xticks(at_x if grid.columns else [], grid.columns)
  ax.set_yticks(at_y if grid.rows else [], grid.rows)
  ax.tick_params(labelsize=FONT_SIZE, length=0, pad=3)
  ax.spines[:].set_visible(False)
  for (row, column), word in grid.words.items():
    where = at_x[column], at_y[row]
    ax.text(*where, word, ha="center", va="center", fontsize=FONT_SIZE)


@literal()
def latent_map(
  path: Path,
  places: np.ndarray,
  labels: np.ndarray,
  names: Sequence[str],
  title: str,
  method: str,
) -> None:
  """Writes a PNG of points [n, 2], colored by their labels [n] (-1: none).

  Raises:
    OSError: it cannot be written.
  """
  fig = Figure(figsize=(7.5, 6.5), dpi=GRID_DPI, layout="constrained")
  ax = fig.subplots()
  kinds = np.unique(labels)
  for i, kind in enumerate(kinds):
    ax.scatter(
      *places[labels == kind].T,
      s=12,
      color=f"C{i}" if len(kinds) <= 10 else _color(i, len(kinds)),
      label=str(i),
      alpha=0.8,
      linewidths=0,
    )
  if 1 < len(kinds) <= DISTINCT_COLORS:
    legend = fig.legend(
      loc="outside right upper", fontsize=FONT_SIZE, markerscale=1.6
    )
    # Not as labels, of which those that begin with _ are left out.
    for text, kind in zip(legend.get_texts(), kinds, strict=True):
      name = names[kind] if 0 <= kind < len(names) else str(kind)
      text.set_text("none" if kind < 0 else named(name, 24))
  unit = " (latent units)" if method == "pca" else ""
  axis = {"pca": "principal component", "tsne": "t-SNE", "umap": "UMAP"}[method]
  ax.set_xlabel(f"{axis} 1{unit}", fontsize=FONT_SIZE)
  ax.set_ylabel(f"{axis} 2{unit}", fontsize=FONT_SIZE)
  ax.tick_params(labelsize=FONT_SIZE)
  ax.set_aspect("equal", "datalim")
  ax.set_title(title, fontsize=FONT_SIZE + 1, loc="left")
  save(fig, path)


def _color(i: int, of: int):
  return colormaps["tab20" if of <= DISTINCT_COLORS else "viridis"](
    i if of <= DISTINCT_COLORS else i / (of - 1)
  )


# ---------------------------------------------------------- evaluations

DPI = 110
BARS = 64  # latents that have a bar of their own


@literal()
def latents(path: Path, mean: np.ndarray, var: np.ndarray, prior: bool) -> None:
  """Each latent's variance over the population, and their correlations.

  Args:
    path: the file.
    mean: of each image's posterior, [n, d].
    var: of each image's posterior, [n, d].
    prior: whether the prior is N(0, I), whose variance gets a line.

  Raises:
    OSError: it cannot be written.
  """
  between, within = mean.var(axis=0), var.mean(axis=0)
  order = np.argsort(-between, kind="stable")
  fig = Figure(figsize=(11, 4), dpi=DPI, layout="constrained")
  left, right = fig.subplots(1, 2, width_ratios=[1.7, 1])
  shown = order[:BARS]
  places = np.arange(len(shown))
  left.bar(places, between[shown], label="of the posterior means")
  left.bar(
    *(places, within[shown]),
    bottom=between[shown],
    label="mean posterior variance",
    alpha=0.6,
  )
  if prior:
    left.axhline(1, color="black", ls="--", lw=1, label="the prior's variance")
  if len(shown) <= 16:
    left.set_xticks(places, shown)
  left.set_xlabel(
    "latent, by the variance of its means"
    + (f" (the first {BARS} of {len(order)})" if len(order) > BARS else "")
  )
  left.set_title("variance of the population of codes", fontsize=10)
  left.set_ylim(0, 1.3 * max(float((between + within).max()), float(prior)))
  left.legend(fontsize=8, ncols=3, loc="upper center")
  total = np.cov(mean, rowvar=False, bias=True).reshape(len(order), -1)
  total = total + np.diag(within)
  scale = np.sqrt(np.maximum(np.diag(total), 1e-12))
  correlation = (total / np.outer(scale, scale))[np.ix_(order, order)]
  drawn = right.imshow(correlation, cmap="RdBu_r", vmin=-1, vmax=1)
  right.set_title("correlations of the population's latents", fontsize=10)
  right.set_xticks([])
  right.set_yticks([])
  fig.colorbar(drawn, ax=right, shrink=0.85)
  save(fig, path)


@literal()
def anomalies(
  path: Path, scores: Mapping[str, tuple[np.ndarray, np.ndarray]], unseen: str
) -> None:
  """Histograms of anomaly scores.

  Args:
    path: the file.
    scores: {name: (of images of classes trained on, of the others)}.
    unseen: what to call the others.

  Raises:
    OSError: it cannot be written.
  """
  fig = Figure(figsize=(11, 2.8), dpi=DPI, layout="constrained")
  panels = fig.subplots(1, len(scores), squeeze=False)[0]
  for ax, (name, (known, other)) in zip(panels, scores.items(), strict=True):
    both = np.concatenate([known, other])
    bins = np.linspace(*np.quantile(both, [0.001, 0.999]), 40)
    for values, label in ((known, "classes trained on"), (other, unseen)):
      ax.hist(values, bins, density=True, alpha=0.55, label=label)
    ax.set_title(f"score by {name}; larger is more anomalous", fontsize=9)
    ax.set_yticks([])
  panels[0].legend(fontsize=8)
  save(fig, path)


# ---------------------------------------------------------- comparisons

PANEL_COLUMNS = 4
WIDTH = 13.0  # inches
NAMES_WIDTH = 0.17  # share of the width that families' names have
LOG_FROM = 8  # largest over smallest distance from which their axis is one
# Places for a label around its point, in order of preference.
AROUND = ((1, 1), (1, -1), (-1, -1), (-1, 1), (1, 0), (-1, 0), (0, 1), (0, -1))


@literal()
def comparison(
  path: Path,
  families: Sequence[str],
  panels: Mapping[str, Mapping[str, Sequence[float]]],
  images: Mapping[str, Path],
  lines_at: Mapping[str, float],
  caption: str = "",
) -> None:
  """Writes a PNG with a panel for each metric, whole or not at all.

  Args:
    path: the file.
    families: from top to bottom.
    panels: {metric: {family: values, one a seed}}; a point for each value,
      a larger one for the mean, a line for the sample standard deviation.
    images: {name: PNG} to show below the panels: held-out images, then, of
      each family that has some, reconstructions and samples.
    lines_at: {metric: where its panel has a dashed line}.
    caption: of the images.

  Raises:
    OSError: it cannot be written.
  """
  rows = -(-len(panels) // PANEL_COLUMNS)
  two_lines = any("@" in spec for spec in families)
  panel = 1.2 + (0.36 if two_lines else 0.27) * len(families)
  below = 1.42 + 0.52 * len(families) if images else 0.0
  height = rows * panel + below
  fig = Figure(figsize=(WIDTH, height), dpi=DPI)
  above = fig
  if images:
    above, under = fig.subfigures(2, 1, height_ratios=[height - below, below])
    _strips(under, images, caption)
  _panels(above, families, panels, rows, lines_at, height - below)
  save(fig, path)


def _panels(fig, families, panels, rows, lines_at, height) -> None:
  axes = fig.subplots(rows, PANEL_COLUMNS, sharey=True, squeeze=False)
  margin = 0.35 / height
  fig.subplots_adjust(
    left=NAMES_WIDTH,
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
    if title in lines_at:
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
      ax.errorbar(
        *(np.mean(each), place),
        xerr=deviation(each),
        fmt="o",
        ms=6,
        color=color,
        capsize=3,
      )
      ax.plot(each, [place] * len(each), ".", ms=4, color="black", alpha=0.6)
    ax.set_yticks(places, map(_label, families))
    ax.set_ylim(len(families) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0, labelleft=i % PANEL_COLUMNS == 0)


def _strips(fig, files, caption) -> None:
  """A row of images for each file, with its name."""
  axes = fig.subplots(len(files), 1, squeeze=False)[:, 0]
  fig.subplots_adjust(
    left=NAMES_WIDTH, right=0.985, top=0.93, bottom=0.02, hspace=0.08
  )
  images = {k: imread(v) for k, v in files.items()}
  across = max(image.shape[1] for image in images.values())
  for ax, (name, image) in zip(axes, images.items(), strict=True):
    show_image(ax, image, interpolation="nearest")
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
  axes[0].set_title(caption, fontsize=9, loc="left")


def _label(spec: str) -> str:
  """A family's name, each of its weights on a line of its own."""
  return spec.replace("@", "\n@")


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
  labels = _lines(ax, points)
  heights = [at[1] for _, at, _ in labels]
  if min(heights) > 0 and max(heights) > LOG_FROM * min(heights):
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())
  ax.set_xlabel("absolute error of reconstructions (less is better)")
  ax.set_ylabel(f"{distance} (less is better)")
  fig.legend(fontsize=8.5, loc="outside upper left", ncols=1)
  _write_labels(fig, ax, labels)
  save(fig, path)


FRONT_COLUMNS = 2
MARKERS = "osD^v"  # of the first ten lines, of the next ten, ...


@literal()
def fronts(
  path: Path, panels: Mapping[str, Sequence[Point]], xlabel: str
) -> None:
  """Writes a PNG with a front for each metric, whole or not at all.

  Points are drawn as in `front`.

  Args:
    path: the file.
    panels: {what y is: the families, one or more}; all have the same lines.
    xlabel: what x is, in all of them.

  Raises:
    OSError: it cannot be written.
  """
  columns = min(FRONT_COLUMNS, len(panels))
  rows = -(-len(panels) // columns)
  names = list(dict.fromkeys(p.line for own in panels.values() for p in own))
  size = (6.2 * columns + 3, 4.6 * rows)
  fig = Figure(figsize=size, dpi=DPI, layout="constrained")
  FigureCanvasAgg(fig)
  axes = fig.subplots(rows, columns, squeeze=False).flat
  written = []
  for ax, (title, points) in itertools.zip_longest(
    axes, panels.items(), fillvalue=("", ())
  ):
    if not points:
      ax.set_visible(False)
      continue
    written.append((ax, _lines(ax, points, names)))
    ax.set_xlabel(xlabel, fontsize=9)
    ax.set_title(title, fontsize=10)
    ax.tick_params(labelsize=8)
  handles = {}
  for ax, _ in written:
    found, labels = ax.get_legend_handles_labels()
    handles |= dict(zip(labels, found, strict=True))
  fig.legend(
    [handles[name] for name in names],
    names,
    fontsize=8.5,
    loc="outside right upper",
  )
  for ax, labels in written:
    _write_labels(fig, ax, labels)
  save(fig, path)


def _lines(
  ax: Axes, points: Sequence[Point], names: Sequence[str] = ()
) -> list[tuple[str, tuple[float, float], str]]:
  """Draws the points; returns text, place and colour of their labels.

  Args:
    ax: where.
    points: the families.
    names: all lines, whose order gives their colours; default: those of points.
  """
  labels = []
  names = names or list(dict.fromkeys(p.line for p in points))
  for i, name in enumerate(names):
    color = f"C{i % 10}"
    own = [p for p in points if p.line == name]
    if not own:
      continue
    own.sort(key=lambda p: np.mean(p.x))
    x, y = ([np.mean(p[k]) for p in own] for k in (2, 3))
    bars = [[deviation(p[k]) for p in own] for k in (2, 3)]
    ax.errorbar(
      *(x, y, bars[1], bars[0]),
      fmt=f"{MARKERS[i // 10 % len(MARKERS)]}-",
      ms=6,
      lw=1.5,
      elinewidth=1,
      capsize=2,
      color=color,
      label=name,
    )
    labels += [(p.label, at, color) for p, *at in zip(own, x, y, strict=True)]
  ax.margins(0.12)
  ax.grid(alpha=0.3, which="both")
  return labels


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


# ---------------------------------------------------------- a run's progress

PROGRESS_SIZE = (11.0, 7.6)  # inches
PROGRESS_DPI = 80
Curve = tuple[Sequence[int], Sequence[float]]  # steps, values


@literal()
def progress(
  title: str,
  curves: Mapping[str, Mapping[str, Curve]],
  images: Mapping[str, Path | None],
) -> bytes:
  """A PNG of curves over steps, above images.

  Args:
    title: of the whole picture.
    curves: {title of an axis: {name: curve}}; without curves it is empty.
    images: {title: a PNG}; None leaves the place empty.
  """
  fig = Figure(figsize=PROGRESS_SIZE, dpi=PROGRESS_DPI, layout="constrained")
  FigureCanvasAgg(fig)
  above, below = fig.subfigures(2, 1, height_ratios=(2, 3))
  above.suptitle(title, fontsize="medium")
  axes = above.subplots(1, len(curves))
  for ax, (name, lines) in zip(axes, curves.items(), strict=True):
    ax.set_title(name, fontsize="medium")
    ax.set_xlabel("step")
    ax.grid(alpha=0.3)
    for label, (steps, values) in lines.items():
      marker = "." if len(steps) < 3 else ""  # a line needs two points
      ax.plot(steps, values, label=label, marker=marker)
    if lines:
      ax.legend(fontsize="small")
  axes = below.subplots(1, len(images))
  for ax, (name, file) in zip(axes, images.items(), strict=True):
    ax.axis("off")
    ax.set_title(name, fontsize="medium")
    if file is not None:
      show_image(ax, imread(file))
  out = io.BytesIO()
  fig.savefig(out, format="png")
  return out.getvalue()

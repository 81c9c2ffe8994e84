"""How far a workdir is, as one picture: curves above, images below."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from gamix_jax import writer
from gamix_jax.figures import literal, named
from gamix_jax.progress import HELD_OUT

# Which of `progress.SHOWN` share an axis: what is of one size.
AXES = {
  "reconstruction error": ("vae/recon",),
  "KL and collapse, nats": (
    *("vae/population_kl", "vae/collapse_penalty", "posterior/kl"),
  ),
  "discriminator, nats a patch": ("vae/adversarial", "disc/real", "disc/fake"),
}
PICTURES = ("reconstructions", "samples")
SIZE = (11.0, 7.6)  # inches
DPI = 80


def rows(workdir: Path) -> list[dict[str, Any]]:
  """The lines of metrics.jsonl; none yet, or one half-written, is no fault."""
  path = workdir / "metrics.jsonl"
  return list(writer.rows(path)) if path.is_file() else []


def newest(workdir: Path, name: str) -> Path | None:
  """The latest of a run's pictures of that name."""
  return max((workdir / "images").glob(f"{name}_*.png"), default=None)


@literal()
def draw(workdir: Path) -> bytes:
  """The picture as PNG; of a folder with nothing in it, empty axes."""
  found = rows(workdir)
  fig = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
  FigureCanvasAgg(fig)
  above, below = fig.subfigures(2, 1, height_ratios=(2, 3))
  above.suptitle(_title(workdir, found), fontsize="medium")
  for axis, (title, terms) in zip(
    above.subplots(1, len(AXES)), AXES.items(), strict=True
  ):
    axis.set_title(title, fontsize="medium")
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
    for term, steps, values in _curves(found, terms):
      marker = "." if len(steps) < 3 else ""  # a line wants two points
      axis.plot(steps, values, label=term, marker=marker)
    if axis.lines:
      axis.legend(fontsize="small")
  for axis, name in zip(
    below.subplots(1, len(PICTURES)), PICTURES, strict=True
  ):
    axis.axis("off")
    path = newest(workdir, name)
    if path is None:
      axis.set_title(f"{name}: none yet", fontsize="medium")
      continue
    axis.set_title(f"{name}, step {_step(path)}", fontsize="medium")
    axis.imshow(imread(path), cmap="gray", vmin=0, vmax=1)
  out = io.BytesIO()
  fig.savefig(out, format="png")
  return out.getvalue()


def _curves(found, terms) -> Iterator[tuple[str, list[int], list[float]]]:
  for term in terms:
    line = [(r["step"], r[term]) for r in found if r.get(term) is not None]
    if line:
      yield term.split("/")[1], *map(list, zip(*line, strict=True))


def _step(path: Path) -> int:
  return int(path.stem.rpartition("_")[2])


def _title(workdir: Path, found: list[dict[str, Any]]) -> str:
  if not found:
    return f"{named(workdir.name)}: no numbers yet"
  title = f"{named(workdir.name)}, step {found[-1]['step']}"
  held_out = next((r for r in found[::-1] if "eval/mae" in r), None)
  if held_out is None:
    return title
  numbers = "  ".join(
    f"{k} {held_out[f'eval/{k}']:.4g}"
    for k in HELD_OUT
    if held_out.get(f"eval/{k}") is not None
  )
  return f"{title}; held out at {held_out['step']}: {numbers}"

"""A run's progress as one picture: curves above, images below."""

from pathlib import Path
from typing import Any

from gamix_jax import plots, writer
from gamix_jax.plots import named
from gamix_jax.progress import HELD_OUT

# Terms of `progress.SHOWN` that share an axis, since their sizes are similar.
AXES = {
  "reconstruction error": ("vae/recon",),
  "KL and collapse, nats": (
    *("vae/population_kl", "vae/collapse_penalty", "posterior/kl"),
  ),
  "discriminator, nats a patch": ("vae/adversarial", "disc/real", "disc/fake"),
}
PICTURES = ("reconstructions", "samples")


def rows(workdir: Path) -> list[dict[str, Any]]:
  """The whole lines of metrics.jsonl; none if it is not there yet."""
  path = workdir / "metrics.jsonl"
  return list(writer.rows(path)) if path.is_file() else []


def newest(workdir: Path, name: str) -> Path | None:
  """The latest of a run's pictures of that name."""
  return max((workdir / "images").glob(f"{name}_*.png"), default=None)


def draw(workdir: Path) -> bytes:
  """The picture as PNG; of an empty folder, empty axes."""
  found = rows(workdir)
  curves = {
    title: {term.split("/")[1]: _curve(found, term) for term in terms}
    for title, terms in AXES.items()
  }
  curves = {
    title: {name: curve for name, curve in lines.items() if curve[0]}
    for title, lines in curves.items()
  }
  images = {name: newest(workdir, name) for name in PICTURES}
  return plots.progress(
    _title(workdir, found),
    curves,
    {
      f"{name}, step {_step(path)}" if path else f"{name}: none yet": path
      for name, path in images.items()
    },
  )


def _curve(found: list[dict[str, Any]], term: str) -> plots.Curve:
  """Steps and values of the rows that have the term."""
  own = [row for row in found if row.get(term) is not None]
  return [row["step"] for row in own], [row[term] for row in own]


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

"""A run's progress as one picture: curves above, images below."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gamix_jax import plots
from gamix_jax.plots import named
from gamix_jax.training import writer
from gamix_jax.training.progress import HELD_OUT

# Terms that share an axis, since their values are of similar size.
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
  curves = {title: _curves(found, terms) for title, terms in AXES.items()}
  images = {name: newest(workdir, name) for name in PICTURES}
  return plots.progress(
    _title(workdir, found),
    curves,
    {
      f"{name}, step {_step(path)}" if path else f"{name}: none yet": path
      for name, path in images.items()
    },
  )


def _curves(
  found: list[dict[str, Any]], terms: Sequence[str]
) -> dict[str, plots.Curve]:
  """Steps and values of each term that has any."""
  curves = {}
  for term in terms:
    own = [row for row in found if row.get(term) is not None]
    if own:
      values = [row[term] for row in own]
      curves[term.split("/")[1]] = [row["step"] for row in own], values
  return curves


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

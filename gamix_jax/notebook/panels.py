"""Draws a run's progress as one picture: curves above, images below."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gamix_jax import plots
from gamix_jax.config import PEER_TERMS
from gamix_jax.plots import named
from gamix_jax.training import writer
from gamix_jax.training.progress import HELD_OUT

# Terms that share an axis, since their values are of similar size.
AXES = {
  "reconstruction error": ("vae/recon",),
  "KL, collapse and other terms of codes": (
    *("vae/population_kl", "vae/collapse_penalty", "posterior/kl"),
    *(f"vae/{term}" for term in PEER_TERMS if term != "code_adversarial"),
  ),
  "discriminator, nats per patch or code": (
    *("vae/adversarial", "vae/code_adversarial", "disc/real", "disc/fake"),
  ),
}
PICTURES = ("reconstructions", "samples")


def rows(workdir: Path) -> list[dict[str, Any]]:
  """Returns the complete lines of metrics.jsonl, or [] if it does not exist."""
  path = workdir / "metrics.jsonl"
  return list(writer.rows(path)) if path.is_file() else []


def newest(workdir: Path, name: str) -> Path | None:
  """Returns the latest of a run's pictures of that name, or None."""
  return max((workdir / "images").glob(f"{name}_*.png"), default=None)


def draw(workdir: Path) -> bytes:
  """Draws the picture as PNG; the axes are empty for an empty folder."""
  metrics = rows(workdir)
  curves = {title: _curves(metrics, terms) for title, terms in AXES.items()}
  images = {name: newest(workdir, name) for name in PICTURES}
  return plots.progress(
    _title(workdir, metrics),
    curves,
    {
      f"{name}, step {_step(path)}" if path else f"{name}: none yet": path
      for name, path in images.items()
    },
  )


def _curves(
  metrics: list[dict[str, Any]], terms: Sequence[str]
) -> dict[str, plots.Curve]:
  """Returns steps and values of each term that was logged."""
  curves = {}
  for term in terms:
    logged = [row for row in metrics if row.get(term) is not None]
    if logged:
      values = [row[term] for row in logged]
      curves[term.split("/")[1]] = [row["step"] for row in logged], values
  return curves


def _step(path: Path) -> int:
  return int(path.stem.rpartition("_")[2])


def _title(workdir: Path, metrics: list[dict[str, Any]]) -> str:
  if not metrics:
    return f"{named(workdir.name)}: no metrics yet"
  title = f"{named(workdir.name)}, step {metrics[-1]['step']}"
  held_out = next((r for r in metrics[::-1] if "eval/mae" in r), None)
  if held_out is None:
    return title
  values = "  ".join(
    f"{k} {held_out[f'eval/{k}']:.4g}"
    for k in HELD_OUT
    if held_out.get(f"eval/{k}") is not None
  )
  return f"{title}; held out at {held_out['step']}: {values}"

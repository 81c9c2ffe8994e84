"""The pictures of the report on a model of several modalities."""

from collections.abc import Iterator
from pathlib import Path

from gamix_jax import files
from gamix_jax import pictures as png
from gamix_jax.evaluate.multimodal import MultimodalRun

CAPTIONS = {
  "reconstructions": (
    "Reconstructions",
    "for each modality of images a row of observations over one of their "
    "reconstructions",
  ),
  "translations": (
    "Translations",
    "for each modality a row of observations, if it is images, over what was "
    "generated from it for each of the other modalities",
  ),
  "samples": (
    "Translations",
    "a row for each modality; images in a column belong to one sample",
  ),
}


def pictures(
  folder: Path, run: MultimodalRun
) -> Iterator[tuple[str, tuple[str, str]]]:
  """Writes the pictures of a run.

  Yields:
    Their names; the sections of the report that they belong to, and captions.
  """
  for kind, rows in run.shown.items():
    name = f"{kind}.png"
    with files.writing(folder / name):
      png.save_png(folder / name, png.rows(rows))
    yield name, CAPTIONS[kind]

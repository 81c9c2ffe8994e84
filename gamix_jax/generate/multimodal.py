"""Renders pictures of models of several modalities.

Images are drawn, and classes are written as text: the most probable one and its
probability. Other arrays cannot be drawn; --format=folder writes them.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gamix_jax import data, pictures
from gamix_jax.errors import UserError
from gamix_jax.generate import folder
from gamix_jax.generate.options import number, sampler
from gamix_jax.generate.output import Out
from gamix_jax.inference.fitting import FITTED, read_observations
from gamix_jax.inference.multimodal import MultimodalModel
from gamix_jax.modality import MASK, Modalities, Modality, to_float
from gamix_jax.plots import ImageGrid, named

# Default numbers of observations; of translations, rows of them.
SAMPLES, RECONSTRUCTIONS, TRANSLATIONS = 16, 16, 2
COLUMNS = 16
WIDEST = 20  # columns of translations, with gaps
LETTERS = 7  # of a name under an image


class Cell(NamedTuple):
  """One place of a grid: an image [h, w, c] in [-1, 1], and text on it."""

  image: np.ndarray
  word: str = ""


class Canvas:
  """Draws values of the modalities as cells of one size."""

  def __init__(self, modalities: Modalities) -> None:
    """Raises UserError if there is no image among the modalities."""
    images = [m.shape for m in modalities.values() if m.is_image]
    if not images:
      raise UserError(
        f"None of {', '.join(modalities)} is an image, so there is nothing to "
        "draw; use --format=folder for their arrays, or translate, sample and "
        "reconstruct of gamix_jax.load(workdir) in Python."
      )
    self._modalities = modalities
    self._size = tuple(max(s[i] for s in images) for i in range(3))
    self.names = tuple(k for k, m in modalities.items() if drawable(m))
    self.blank = Cell(np.ones(self._size, np.float32))

  def cells(
    self, name: str, values: np.ndarray, seen: np.ndarray | None = None
  ) -> list[Cell]:
    """A cell for each of the values [n, ...] of a modality.

    Args:
      name: of the modality.
      values: its means, or observations.
      seen: [n], whether there is an observation; None: there is.
    """
    modality = self._modalities[name]
    if modality.is_image:
      values = np.asarray(to_float(values))
      cells = [Cell(x) for x in pictures.fitted(values, self._size)]
    elif drawable(modality):
      words = [f"{np.argmax(p)}\n{np.max(p):.2f}" for p in values]
      cells = [self.blank._replace(word=w) for w in words]
    else:
      cells = [self.blank._replace(word="array")] * len(values)
    if seen is None:
      return cells
    return [c if s else self.blank for c, s in zip(cells, seen, strict=True)]


def drawable(modality: Modality) -> bool:
  """Whether it is an image, or the classes of one variable."""
  return modality.is_image or (
    modality.likelihood.categorical and len(modality.shape) == 1
  )


def grid(
  rows: Sequence[Sequence[Cell]],
  columns: Sequence[str] = (),
  names: Sequence[str] = (),
) -> ImageGrid:
  """Lays rows of cells out, with words under the columns and left of rows."""
  return ImageGrid(
    np.stack([np.stack([cell.image for cell in row]) for row in rows]),
    columns,
    names,
    {
      (i, j): cell.word
      for i, row in enumerate(rows)
      for j, cell in enumerate(row)
      if cell.word
    },
  )


def samples(
  model: MultimodalModel, out: Out, *, n: int | None, **new: Any
) -> None:
  """Renders new observations: a row for each modality."""
  n = number("n", n, SAMPLES)
  canvas = None if out.raw else Canvas(model.spec.modalities)
  draw, description = sampler(model, **new)
  z = draw(n)
  fitted = model.fitted if new["source"] in FITTED else None
  out.protocol |= {"n": n, "fitted": fitted}
  if canvas is None:
    folder.save_modalities(out.target, z, out.protocol, model.decode)
    return
  shown = _shown(canvas, model)
  decoded = model.decode(z)
  rows = [canvas.cells(k, decoded[k]) for k in shown]
  title = f"{n} samples from {description}; those in a column belong together"
  out.write(_bands(canvas, rows, [named(k) for k in shown]), title)


def reconstructions(
  model: MultimodalModel,
  out: Out,
  *,
  n: int | None,
  images: Sequence[str] | None,
) -> None:
  """Renders held-out observations above their reconstructions."""
  x, numbers = _held_out(model, n, images, RECONSTRUCTIONS)
  decoded = model.reconstruct(x)
  if out.raw:
    _save(out, decoded)
    return
  canvas = Canvas(model.spec.modalities)
  rows, names = [], []
  for k in _shown(canvas, model):
    seen = x[MASK][:, model.names.index(k)] > 0
    rows += [canvas.cells(k, x[k], seen), canvas.cells(k, decoded[k])]
    names += [named(k), "decoded"]
  title = "Held-out observations and their reconstructions from all modalities"
  out.write(_bands(canvas, rows, names, numbers), title + _white(x))


def translations(
  model: MultimodalModel,
  out: Out,
  *,
  n: int | None,
  images: Sequence[str] | None,
) -> None:
  """Renders all modalities, generated from each single one.

  An observation has a row for each modality: that one, and what was generated
  from it.
  """
  drawn = sum(map(drawable, model.spec.modalities.values()))
  per_row = max(1, WIDEST // (drawn + 2))  # observations
  x, numbers = _held_out(model, n, images, TRANSLATIONS * per_row)
  seen = dict(zip(model.names, x[MASK].T > 0, strict=True))
  generated = {k: _from(model, x, k, seen[k]) for k in model.names}
  if out.raw:
    pairs = itertools.product(model.names, repeat=2)
    _save(out, {f"{a}_to_{b}": generated[a][b] for a, b in pairs})
    return
  canvas = Canvas(model.spec.modalities)
  shown = _shown(canvas, model)
  blocks = []  # of an observation: a row for each modality
  cells = {
    a: [
      canvas.cells(a, x[a], seen[a]),
      *(canvas.cells(b, generated[a][b], seen[a]) for b in shown),
    ]
    for a in model.names
  }
  for i in range(len(numbers)):
    blocks.append([[of[i] for of in cells[a]] for a in model.names])
  short = [named(k, LETTERS) for k in shown]
  grids = []
  for start in range(0, len(blocks), per_row):
    band = blocks[start : start + per_row]
    rows, columns = [[] for _ in model.names], []
    for i, block in enumerate(band, start):
      if i > start:  # a gap between observations
        rows = [[*row, canvas.blank] for row in rows]
        columns.append("")
      rows = [a + b for a, b in zip(rows, block, strict=True)]
      columns += [f"no. {numbers[i]}", *short]
    names = [f"given {named(k, 24)}" for k in model.names]
    grids.append(grid(rows, columns, names))
  title = "One modality of a held-out observation, and all generated from it"
  out.write(grids, title + _white(x))


def _from(
  model: MultimodalModel, x: dict[str, np.ndarray], name: str, seen: np.ndarray
) -> dict[str, np.ndarray]:
  """All modalities given one of them; zeros where that one is missing."""
  n = len(seen)
  if not seen.any():
    return {
      k: np.zeros((n, *m.shape), np.float32)
      for k, m in model.spec.modalities.items()
    }
  # Rows without it are given another one, so that there are as many.
  first = np.flatnonzero(seen)[0]
  rows = np.where(seen, np.arange(n), first)
  found = model.translate({name: x[name][rows]}, name, model.names)
  for v in found.values():
    v[~seen] = 0
  return found


def _held_out(
  model: MultimodalModel,
  n: int | None,
  images: Sequence[str] | None,
  default: int,
) -> tuple[dict[str, np.ndarray], list[int]]:
  """Held-out observations by --images or --n, and their indices."""
  if images and n is not None:
    raise UserError("Use either --n or --images, not both.")
  for word in images or ():
    if not word.isdecimal():
      raise UserError(
        f"--images={word} must be an index of the test split: files are for "
        "runs of images only."
      )
  n = number("n", n, default)
  dataset = data.open_dataset(model.config.data, "test", model.config.seed)
  last = len(dataset) - 1
  chosen = [int(w) for w in images] if images else list(range(min(n, last + 1)))
  for i in chosen:
    if i > last:
      raise UserError(f"--images={i}: the test split has rows 0 to {last}.")
  return read_observations(dataset, np.array(chosen)), chosen


def _shown(canvas: Canvas, model: MultimodalModel) -> tuple[str, ...]:
  """The modalities that are drawn; says which are not."""
  left_out = [k for k in model.names if k not in canvas.names]
  if left_out:
    print(
      f"Not drawn: {', '.join(left_out)} (arrays); --format=folder writes them."
    )
  return canvas.names


def _bands(
  canvas: Canvas,
  rows: Sequence[Sequence[Cell]],
  names: Sequence[str],
  columns: Sequence[int] = (),
) -> list[ImageGrid]:
  """Breaks long rows into grids of COLUMNS columns."""
  grids = []
  for start in range(0, len(rows[0]), COLUMNS):
    part = [list(row[start : start + COLUMNS]) for row in rows]
    under = list(map(str, columns[start : start + COLUMNS]))
    if grids:  # the last band is filled up, so that all have one scale
      missing = COLUMNS - len(part[0])
      part = [row + [canvas.blank] * missing for row in part]
      under += [""] * (missing if under else 0)
    grids.append(grid(part, under, names))
  return grids


def _white(x: dict[str, np.ndarray]) -> str:
  """Explains blank places, if there are any."""
  return "" if x[MASK].all() else "; white: missing"


def _save(out: Out, values: dict[str, np.ndarray]) -> None:
  """Writes arrays to the folder of --format=folder."""
  n = len(next(iter(values.values())))
  folder.save_modalities(
    out.target,
    np.arange(n),
    out.protocol,
    lambda rows: {k: v[rows] for k, v in values.items()},
  )


RENDERERS = {
  "samples": samples,
  "reconstructions": reconstructions,
  "translations": translations,
}

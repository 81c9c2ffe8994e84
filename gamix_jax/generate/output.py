"""The output of the command: one figure, or a folder of single images."""

from pathlib import Path

import numpy as np

from gamix_jax import plots
from gamix_jax.errors import UserError
from gamix_jax.generate import folder
from gamix_jax.plots import ImageGrid

# Of --out, if not .png.
ENDINGS = {"walk": (".gif", ".mp4")}


def check_out(target: Path, what: str, raw: bool) -> None:
  """Validates --out before any work is done."""
  if raw:
    if what == "map":
      raise UserError("--what=map has no images for --format=folder.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
      raise UserError(f"--out={target} exists and is not an empty folder.")
  elif target.suffix.lower() not in ENDINGS.get(what, (".png",)):
    endings = " or ".join(ENDINGS.get(what, (".png",)))
    raise UserError(
      f"--out={target} must end with {endings} for --what={what}."
    )
  if not target.absolute().parent.is_dir():
    raise UserError(f"--out={target}: there is no folder {target.parent}.")


class Out:
  """The output file or folder of a picture, with its title and protocol."""

  def __init__(self, target: Path, raw: bool, title: str, protocol: dict):
    """With `raw` the target is a folder."""
    self.target, self.raw, self.title = target, raw, title
    self.protocol = protocol

  def write(
    self,
    grids: list[ImageGrid],
    title: str,
    xlabel: str = "",
    ylabel: str = "",
  ) -> None:
    """Writes grids as a figure, or all their images in order to a folder."""
    if self.raw:
      images = [g.images.reshape(-1, *g.images.shape[-3:]) for g in grids]
      folder.save(self.target, np.concatenate(images), self.protocol)
      return
    title = f"{title}\n{self.title}"
    plots.image_grids(self.target, grids, title, xlabel, ylabel)

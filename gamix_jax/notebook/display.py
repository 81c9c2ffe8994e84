"""Images and sliders in a notebook's cell."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike

from gamix_jax import metrics, pictures
from gamix_jax.inference import Model

SLIDERS = 8
STEPS = 7  # pictures of a latent where there are no sliders
WIDTH = 256  # of the picture beside the sliders, in pixels of the page


def _png(images: np.ndarray, columns: int) -> bytes:
  grid = pictures.grid(images, columns)
  if grid.shape[-1] > 1:
    grid = grid[..., ::-1]  # cv2 keeps colours the other way round
  return cv2.imencode(".png", grid)[1].tobytes()


def show(images: ArrayLike, columns: int = 8) -> Any:
  """Images in rows: as a cell's last line, its output.

  Args:
    images: [..., h, w, c], uint8 or floats in [-1, 1].
    columns: images in a row.

  Returns:
    An `IPython.display.Image`.
  """
  from IPython.display import Image  # noqa: PLC0415

  x = np.asarray(images)
  if x.dtype == np.uint8:
    x = pictures.to_float(x)
  x = x.reshape(-1, *x.shape[-3:])
  return Image(data=_png(x, min(columns, len(x))))


def sliders(model: Model, image: ArrayLike, images: ArrayLike) -> Any:
  """An image with a slider for each of the latents that vary most.

  The sliders start at the mean of the image's posterior and reach as far as
  the means of the other images. Latents whose mean varies most come first.

  Args:
    model: a trained one.
    image: one, [h, w, c], to begin with.
    images: others, [b, h, w, c].

  Returns:
    A widget; where ipywidgets is not installed, a row of pictures a latent.

  Raises:
    UserError: as `Model.encode`.
  """
  z = np.array(model.encode(image).mean())[0]
  others = np.asarray(model.encode(images).mean())
  low = np.minimum(others.min(0), z)
  high = np.maximum(others.max(0), z)
  dims = metrics.by_activity(others)[:SLIDERS]
  try:
    import ipywidgets  # noqa: PLC0415
  except ImportError:
    ways = np.tile(z, (len(dims), STEPS, 1))
    for row, d in zip(ways, dims, strict=True):
      row[:, d] = np.linspace(low[d], high[d], STEPS)
    return show(model.decode(ways), STEPS)

  picture = ipywidgets.Image(value=_png(model.decode(z)[None], 1), width=WIDTH)

  def moved(change: dict[str, Any]) -> None:
    z[change["owner"].latent] = change["new"]
    picture.value = _png(model.decode(z)[None], 1)

  rows = []
  for d in dims:
    slider = ipywidgets.FloatSlider(
      value=z[d],
      min=low[d],
      max=high[d],
      step=max(float(high[d] - low[d]) / 50, 1e-6),
      description=f"latent {d}",
      readout_format=".2f",
    )
    slider.latent = d
    slider.observe(moved, "value")
    rows.append(slider)
  return ipywidgets.HBox([picture, ipywidgets.VBox(rows)])

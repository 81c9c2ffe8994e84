"""Shows images and sliders in a notebook cell."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike

from gamix_jax import metrics, pictures
from gamix_jax.inference import Model

SLIDERS = 8
STEPS = 7  # pictures per latent if there are no sliders
WIDTH = 256  # of the picture next to the sliders, in CSS pixels


def _png(images: np.ndarray, columns: int) -> bytes:
  grid = pictures.grid(images, columns)
  if grid.shape[-1] > 1:
    grid = grid[..., ::-1]  # cv2 uses BGR
  return cv2.imencode(".png", grid)[1].tobytes()


def show(images: ArrayLike, columns: int = 8) -> Any:
  """Shows images in a grid; use it as the last line of a cell.

  Args:
    images: [..., h, w, c], uint8 or floats in [-1, 1].
    columns: images per row.

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
  """Shows an image with sliders for the latents that vary most.

  The sliders start at the image's posterior mean and span the range of the
  other images' means. Latents are in descending order of the variance of these.

  Args:
    model: a trained model.
    image: the initial image, [h, w, c].
    images: other images, [b, h, w, c].

  Returns:
    A widget; without ipywidgets, one row of pictures per latent.

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
    rows = np.tile(z, (len(dims), STEPS, 1))
    for row, d in zip(rows, dims, strict=True):
      row[:, d] = np.linspace(low[d], high[d], STEPS)
    return show(model.decode(rows), STEPS)

  picture = ipywidgets.Image(value=_png(model.decode(z)[None], 1), width=WIDTH)

  def on_change(change: dict[str, Any]) -> None:
    z[change["owner"].latent] = change["new"]
    picture.value = _png(model.decode(z)[None], 1)

  widgets = []
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
    slider.observe(on_change, "value")
    widgets.append(slider)
  return ipywidgets.HBox([picture, ipywidgets.VBox(widgets)])

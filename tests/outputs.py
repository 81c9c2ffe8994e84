"""Reads the outputs of executed notebook cells."""

import base64
import io

import numpy as np
from PIL import Image


def text(cell):
  """Returns what a cell has printed and shown as text."""
  return "\n".join(
    o["text"] if o.output_type == "stream" else o.data.get("text/plain", "")
    for o in cell.outputs
  )


def images(cell):
  """Returns the pictures in a cell's output."""
  found = [o.get("data", {}).get("image/png") for o in cell.outputs]
  return [
    np.asarray(Image.open(io.BytesIO(base64.b64decode(x))))
    for x in found
    if x is not None
  ]

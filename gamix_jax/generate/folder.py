"""Writes images as single PNG files, for other tools."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tqdm

from gamix_jax import files, pictures

PROTOCOL = "protocol.json"
CHUNK = 1024  # images held at a time


def save(
  target: Path,
  rows: np.ndarray,
  protocol: Mapping[str, Any],
  decode: Callable[[np.ndarray], np.ndarray] | None = None,
) -> None:
  """Writes 00000.png, 00001.png, ... and protocol.json, atomically.

  Args:
    target: the folder; must be missing or empty.
    rows: images [n, h, w, c] in [-1, 1], written as uint8 of that size; with
      `decode`, its inputs [n, ...].
    protocol: how the images were made; written as JSON.
    decode: converts up to CHUNK rows to images.

  Raises:
    OSError: if the folder cannot be written.
  """
  with files.atomic(target) as temporary:
    temporary.mkdir()
    with tqdm.tqdm(total=len(rows), unit="image", disable=None) as bar:
      for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        images = part if decode is None else decode(part)
        for i, image in enumerate(pictures.to_uint8(images), start):
          pictures.save_png(temporary / f"{i:05d}.png", image)
          bar.update()
    text = json.dumps({**protocol, "images_written": len(rows)}, indent=1)
    (temporary / PROTOCOL).write_text(text + "\n")

"""Writes images as single PNG files, for other tools.

Of several modalities each has its own folder, and arrays that are no images are
written as .npy: what the data source `folder:` reads.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
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
  with _whole(target, protocol, len(rows)) as (temporary, bar):
    for start in range(0, len(rows), CHUNK):
      part = rows[start : start + CHUNK]
      images = part if decode is None else decode(part)
      for i, image in enumerate(pictures.to_uint8(images), start):
        pictures.save_png(temporary / f"{i:05d}.png", image)
        bar.update()


def save_modalities(
  target: Path,
  rows: np.ndarray,
  protocol: Mapping[str, Any],
  decode: Callable[[np.ndarray], Mapping[str, np.ndarray]],
) -> None:
  """Writes <name>/00000.png or .npy, ... and protocol.json, atomically.

  Args:
    target: the folder; must be missing or empty.
    rows: inputs of `decode`, [n, ...].
    protocol: how the arrays were made; written as JSON.
    decode: converts up to CHUNK rows to {name: [n, ...]}; images are
      [n, h, w, 1 or 3] in [-1, 1].

  Raises:
    OSError: if the folder cannot be written.
  """
  with _whole(target, protocol, len(rows)) as (temporary, bar):
    for start in range(0, len(rows), CHUNK):
      decoded = decode(rows[start : start + CHUNK])
      for name, values in decoded.items():
        (temporary / name).mkdir(exist_ok=True)
        for i, value in enumerate(values, start):
          path = temporary / name / f"{i:05d}"
          if value.ndim == 3 and value.shape[-1] in (1, 3):
            image = pictures.to_uint8(value)
            pictures.save_png(path.with_suffix(".png"), image)
          else:
            np.save(path.with_suffix(".npy"), value)
      bar.update(len(next(iter(decoded.values()))))


@contextlib.contextmanager
def _whole(
  target: Path, protocol: Mapping[str, Any], n: int
) -> Iterator[tuple[Path, tqdm.tqdm]]:
  """Yields a folder that becomes `target` with its protocol, and a bar."""
  with files.atomic(target) as temporary:
    temporary.mkdir()
    with tqdm.tqdm(total=n, unit="image", disable=None) as bar:
      yield temporary, bar
    text = json.dumps({**protocol, "images_written": n}, indent=1)
    (temporary / PROTOCOL).write_text(text + "\n")

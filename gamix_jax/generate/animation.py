"""Frames as GIF, by Pillow, or as MP4, by OpenCV."""

import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from gamix_jax import pictures
from gamix_jax.errors import UserError

COLUMNS = 4
FASTEST = 50  # frames a second that a GIF can say
CODEC = "mp4v"  # MPEG-4 part 2, which OpenCV's wheels can write everywhere


def save(path: Path, images: np.ndarray, fps: float) -> None:
  """Writes a film, whole or not at all.

  Args:
    path: ends with .gif or .mp4.
    images: [t, n, h, w, c] in [-1, 1]; n beside one another.
    fps: frames a second, up to FASTEST.

  Raises:
    UserError: there is no codec for MP4.
    OSError: it cannot be written.
  """
  columns = min(COLUMNS, images.shape[1])
  frames = [pictures.grid(now, columns) for now in images]
  temporary = path.with_name(f".part.{path.name}")  # its ending says the form
  write = _gif if path.suffix.lower() == ".gif" else _mp4
  try:
    write(temporary, frames, fps)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def _gif(path: Path, frames: list[np.ndarray], fps: float) -> None:
  first, *rest = [
    Image.fromarray(f[..., 0] if f.shape[-1] == 1 else f) for f in frames
  ]
  first.save(
    path, save_all=True, append_images=rest, duration=1000 / fps, loop=0
  )


def _mp4(path: Path, frames: list[np.ndarray], fps: float) -> None:
  # The codec wants even sides.
  h, w = (n + n % 2 for n in frames[0].shape[:2])
  code = cv2.VideoWriter.fourcc(*CODEC)
  writer = cv2.VideoWriter(str(path), code, fps, (w, h))
  try:
    if not writer.isOpened():
      raise UserError(
        f"OpenCV cannot write {path.name.removeprefix('.part.')} here; give "
        "--out an ending of .gif."
      )
    for frame in frames:
      colour = np.broadcast_to(frame, (*frame.shape[:2], 3))[..., ::-1]
      whole = np.full((h, w, 3), 255, np.uint8)
      whole[: frame.shape[0], : frame.shape[1]] = colour
      writer.write(whole)
  finally:
    writer.release()

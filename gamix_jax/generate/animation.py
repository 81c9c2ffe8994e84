"""Frames as GIF, by Pillow, or as MP4, by OpenCV."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from gamix_jax import files, pictures
from gamix_jax.errors import UserError

COLUMNS = 4
FASTEST = 50  # frames per second that a GIF can express
CODEC = "mp4v"  # MPEG-4 part 2, which OpenCV's wheels can write everywhere


def save(path: Path, images: np.ndarray, fps: float) -> None:
  """Writes an animation, complete or not at all.

  Args:
    path: ends with .gif or .mp4.
    images: [t, n, h, w, c] in [-1, 1]; each frame is a grid of n images.
    fps: frames per second, up to FASTEST.

  Raises:
    UserError: there is no codec for MP4.
    OSError: it cannot be written.
  """
  columns = min(COLUMNS, images.shape[1])
  frames = [pictures.grid(now, columns) for now in images]
  write = _gif if path.suffix.lower() == ".gif" else _mp4
  with files.atomic(path) as temporary:
    write(temporary, frames, fps)


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
        f"OpenCV cannot write {path.suffix} files here; give --out a name "
        "that ends in .gif."
      )
    for frame in frames:
      colour = np.broadcast_to(frame, (*frame.shape[:2], 3))[..., ::-1]
      whole = np.full((h, w, 3), 255, np.uint8)
      whole[: frame.shape[0], : frame.shape[1]] = colour
      writer.write(whole)
  finally:
    writer.release()

"""Writes animations: GIF with Pillow, MP4 with OpenCV."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from gamix_jax import files, pictures
from gamix_jax.errors import UserError

COLUMNS = 4
MAX_FPS = 50  # a limit of the GIF format
CODEC = "mp4v"  # MPEG-4 part 2, available in OpenCV's wheels on all platforms


def save(path: Path, images: np.ndarray, fps: float) -> None:
  """Writes an animation, atomically.

  Args:
    path: ends with .gif or .mp4.
    images: [t, n, h, w, c] in [-1, 1]; each frame is a grid of n images.
    fps: frames per second, at most MAX_FPS.

  Raises:
    UserError: if OpenCV has no codec for MP4.
    OSError: if the file cannot be written.
  """
  columns = min(COLUMNS, images.shape[1])
  frames = [pictures.grid(frame, columns) for frame in images]
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
  # The codec requires even sides.
  h, w = (n + n % 2 for n in frames[0].shape[:2])
  code = cv2.VideoWriter.fourcc(*CODEC)
  writer = cv2.VideoWriter(str(path), code, fps, (w, h))
  try:
    if not writer.isOpened():
      raise UserError(
        f"OpenCV cannot write {path.suffix} files here; use an --out that "
        "ends in .gif."
      )
    for frame in frames:
      colour = np.broadcast_to(frame, (*frame.shape[:2], 3))[..., ::-1]
      padded = np.full((h, w, 3), 255, np.uint8)
      padded[: frame.shape[0], : frame.shape[1]] = colour
      writer.write(padded)
  finally:
    writer.release()

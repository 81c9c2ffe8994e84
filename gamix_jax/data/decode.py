"""One image: bytes or an array in, uint8 [h, w, c] of the wanted size out.

The only decoder, for folders and TFDS alike, is Pillow: unlike OpenCV it
refuses a truncated file (OpenCV returns it half grey), and it knows palettes,
CMYK and alpha. OpenCV resizes. What becomes of the unusual:

  EXIF orientation   respected
  alpha, palette     laid on white, since colours under full transparency are
                     arbitrary
  16-bit             scaled to 8 bit (65535 -> 255), not clipped
  CMYK, YCCK JPEG    converted without ICC profile; Adobe's inversion undone
  animation          the first frame
  large JPEG         decoded at 1/2, 1/4 or 1/8 (exact in the DCT) where
                     resize is "area" and the window that is kept stays at
                     least twice the target's size
"""

import dataclasses
import io

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_EXIF_ORIENTATION = 0x0112
_EXIF_SWAPPED = 5  # orientations from this on swap height and width


class BrokenImage(Exception):
  """These bytes are no image, or not a whole one."""


@dataclasses.dataclass(frozen=True)
class Prepare:
  """Decode, crop, convert, resize; see `Settings` for what the words mean."""

  shape: tuple[int, int, int]  # height, width, channels
  crop: str | int
  resize: str

  def __call__(self, raw: bytes | np.ndarray) -> np.ndarray:
    """Makes one image.

    Args:
      raw: an encoded file, or uint8 [h, w] or [h, w, 1 | 3].

    Returns:
      uint8 `shape`.

    Raises:
      BrokenImage: the bytes cannot be decoded.
    """
    if isinstance(raw, np.ndarray):
      image, scale = raw, 1.0
    else:
      image, scale = self._decode(raw)
    h, w = image.shape[:2]
    ch, cw = self._window(h / scale, w / scale)
    ch = min(h, max(1, round(ch * scale)))
    cw = min(w, max(1, round(cw * scale)))
    top, left = (h - ch) // 2, (w - cw) // 2
    image = image[top : top + ch, left : left + cw]
    return self._resize(_convert(image, self.shape[2]))

  def _window(self, h: float, w: float) -> tuple[float, float]:
    """Height and width of what is kept of an [h, w] image."""
    if self.crop == "none":
      return h, w
    th, tw, _ = self.shape
    high = float("inf") if self.crop == "square" else float(self.crop)
    high = min(high, h, w * th / tw)
    return high, high * tw / th

  def _decode(self, raw: bytes) -> tuple[np.ndarray, float]:
    """The pixels, uint8 [h, w] or [h, w, 3], and the scale they came at."""
    try:
      with Image.open(io.BytesIO(raw), formats=FORMATS) as file:
        width = file.width
        turned = file.getexif().get(_EXIF_ORIENTATION, 1)
        self._draft(file, swapped=turned >= _EXIF_SWAPPED)
        scale = file.width / width
        # exif_transpose copies even where there is nothing to turn.
        image = file if turned == 1 else ImageOps.exif_transpose(file)
        return _eight_bit(image), scale
    except MemoryError:
      raise
    # Pillow's plugins meet garbage with whatever comes first (OSError,
    # SyntaxError, ValueError, struct.error, zlib.error, IndexError, ...).
    except Exception as e:
      raise BrokenImage(f"{type(e).__name__}: {e}") from e

  def _draft(self, image: Image.Image, *, swapped: bool) -> None:
    """Has a JPEG decoded smaller, and grey, where that loses nothing.

    Args:
      image: a file that is open but not decoded.
      swapped: it will be turned by 90 degrees afterwards.
    """
    if image.format != "JPEG":
      return
    h, w = image.height, image.width
    ch, cw = self._window(*((w, h) if swapped else (h, w)))
    room = min(ch / self.shape[0], cw / self.shape[1]) / 2
    fits = [s for s in (8, 4, 2) if s <= room and self.resize == "area"]
    s = fits[0] if fits else 1
    grey = self.shape[2] == 1 and image.mode == "RGB"
    if s > 1 or grey:
      image.draft("L" if grey else None, (max(1, w // s), max(1, h // s)))

  def _resize(self, image: np.ndarray) -> np.ndarray:
    import cv2  # noqa: PLC0415  (0.2 s, and not needed to import the package)

    h, w = image.shape[:2]
    th, tw, c = self.shape
    if self.resize == "area":
      small = (min(w, tw), min(h, th))
      if small != (w, h):
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
      if small != (tw, th):
        image = cv2.resize(image, (tw, th), interpolation=cv2.INTER_LINEAR)
    elif (h, w) != (th, tw):
      how = {
        "linear": cv2.INTER_LINEAR,
        "cubic": cv2.INTER_CUBIC,
        "nearest": cv2.INTER_NEAREST,
      }[self.resize]
      image = cv2.resize(image, (tw, th), interpolation=how)
    return np.ascontiguousarray(image).reshape(th, tw, c)


def _eight_bit(image: Image.Image) -> np.ndarray:
  """uint8 [h, w] or [h, w, 3] of a Pillow image of any mode."""
  if image.mode.startswith("I"):  # 16-bit grey; Pillow's own convert clips
    wide = np.asarray(image).astype(np.int64)
    return ((wide + 128) // 257).clip(0, 255).astype(np.uint8)
  if image.has_transparency_data:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image).convert("RGB")
  elif image.mode != "L":
    image = image.convert("L" if image.mode == "1" else "RGB")
  return np.asarray(image)


def _convert(image: np.ndarray, channels: int) -> np.ndarray:
  """Grey to colour or colour to grey (ITU-R 601 luma)."""
  if image.ndim == 3 and image.shape[2] == 1:
    image = image[:, :, 0]
  if image.ndim == 2 and channels == 3:
    return np.repeat(image[:, :, None], 3, axis=2)
  if image.ndim == 3 and channels == 1:
    import cv2  # noqa: PLC0415

    return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
  return image

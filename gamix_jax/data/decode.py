"""One image: from bytes or an array to uint8 [h, w, c] of the size asked for.

Pillow decodes all files, those of TFDS as well. Unlike OpenCV, it refuses a
truncated file (OpenCV returns it half grey) and supports palettes, CMYK and
alpha. OpenCV resizes. Special cases:

  EXIF orientation   applied
  alpha, palette     drawn on white, since colours under full transparency are
                     arbitrary
  16-bit             scaled to 8 bits (65535 -> 255), not clipped
  32-bit, float      broken: nothing says which number is white
  CMYK, YCCK JPEG    converted without ICC profile; Adobe's inversion undone
  animation, pages   the first one
  text in a PNG      not read, so it may have any length
  large JPEG         decoded at 1/2, 1/4 or 1/8 (exact in the DCT) if `resize`
                     is "area" and the cropped part stays at least twice as
                     large as the image asked for
  many pixels        broken if there are more than `max_pixels`, which replaces
                     Pillow's own, smaller limit
"""

import dataclasses
import io
import re
import threading
import warnings
from typing import Self

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from gamix_jax.data.settings import Settings

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_EXIF_ORIENTATION = 0x0112
_EXIF_SWAPPED = 5  # orientations from this on swap height and width
_PNG = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# Texts that may give the orientation.
_ORIENTATION_TEXTS = (b"Raw profile type", b"XML:com.adobe.xmp")
_MAX_SUMMED = 1 << 23  # pixels that OpenCV can sum in 32 bits
_LONG_TEXT = 1 << 20  # bytes; Pillow may refuse a longer text

# `max_pixels` decides instead. Set here, since every process that decodes
# imports this module.
Image.MAX_IMAGE_PIXELS = None
_warnings_lock = threading.Lock()


class BrokenImage(Exception):
  """The bytes are not an image, or not a complete one; the message says why."""


@dataclasses.dataclass(frozen=True)
class ImageTransform:
  """Decode, crop, convert, resize; see `Settings` for the attributes."""

  shape: tuple[int, int, int]  # height, width, channels
  crop: str | int
  resize: str
  max_pixels: int = 1 << 28

  @classmethod
  def from_settings(cls, settings: Settings) -> Self:
    """The transform of a data set's settings."""
    return cls(
      *(settings.shape, settings.crop, settings.resize, settings.max_pixels)
    )

  def __call__(self, raw: bytes | np.ndarray) -> np.ndarray:
    """Makes one image.

    Args:
      raw: an encoded file, or uint8 [h, w] or [h, w, 1 | 3].

    Returns:
      uint8 `shape`.

    Raises:
      BrokenImage: the bytes cannot be decoded, or have too many pixels.
    """
    if isinstance(raw, np.ndarray):
      image, scale = raw, 1.0
    else:
      image, scale = self._decoded(raw)
    h, w = image.shape[:2]
    ch, cw = self._window(h / scale, w / scale)
    ch = min(h, max(1, round(ch * scale)))
    cw = min(w, max(1, round(cw * scale)))
    top, left = (h - ch) // 2, (w - cw) // 2
    image = image[top : top + ch, left : left + cw]
    return self._resize(_convert(image, self.shape[2]))

  def _window(self, h: float, w: float) -> tuple[float, float]:
    """Height and width of the part of an [h, w] image that is kept."""
    if self.crop == "none":
      return h, w
    th, tw, _ = self.shape
    high = float("inf") if self.crop == "square" else float(self.crop)
    high = min(high, h, w * th / tw)
    return high, high * tw / th

  def _decoded(self, raw: bytes) -> tuple[np.ndarray, float]:
    """As `_decode`; any error of Pillow becomes BrokenImage."""
    try:
      try:
        return self._decode(raw)
      except Warning:
        # Raised for a harmless fault if warnings are errors. The filters are
        # global to the process, so one thread at a time changes them.
        with _warnings_lock, warnings.catch_warnings():
          warnings.simplefilter("ignore")
          return self._decode(raw)
    except (BrokenImage, MemoryError):
      raise
    # Pillow's plugins raise whatever comes first on garbage: OSError,
    # SyntaxError, ValueError, struct.error, zlib.error, IndexError, ...
    except Exception as e:
      raise BrokenImage(_reason(e)) from e

  def _decode(self, raw: bytes) -> tuple[np.ndarray, float]:
    """The pixels, uint8 [h, w] or [h, w, 3], and the scale of decoding."""
    data = io.BytesIO(_without_text(raw))
    with Image.open(data, formats=FORMATS) as file:
      width = file.width
      if width * file.height > self.max_pixels:
        raise BrokenImage(
          f"{width}x{file.height} pixels are more than the limit"
          f" data.max_pixels={self.max_pixels}"
        )
      orientation = file.getexif().get(_EXIF_ORIENTATION, 1)
      self._draft(file, swapped=orientation >= _EXIF_SWAPPED)
      scale = file.width / width
      # exif_transpose copies even if there is nothing to rotate.
      image = file if orientation == 1 else ImageOps.exif_transpose(file)
      return _eight_bit(image, file.format), scale

  def _draft(self, image: Image.Image, *, swapped: bool) -> None:
    """Lets a JPEG be decoded smaller, and in grey, where that loses nothing.

    Args:
      image: a file that is open but not decoded yet.
      swapped: whether it will be rotated by 90 degrees afterwards.
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
      if w * h > _MAX_SUMMED * small[0] * small[1]:
        fewer = (min(w, tw << 10), min(h, th << 10))
        image = cv2.resize(image, fewer, interpolation=cv2.INTER_AREA)
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


def _without_text(raw: bytes) -> bytes:
  """A PNG without its texts, except those that may give the orientation.

  Pillow would unpack all texts, and refuse long ones.
  """
  if not raw.startswith(_PNG):
    return raw
  kept, at = [raw[: len(_PNG)]], len(_PNG)
  while at + 12 <= len(raw):
    size, kind = int.from_bytes(raw[at : at + 4]), raw[at + 4 : at + 8]
    short = size <= _LONG_TEXT and raw.startswith(_ORIENTATION_TEXTS, at + 8)
    if kind not in _TEXTS or short:
      kept.append(raw[at : at + 12 + size])
    at += 12 + size
  return b"".join([*kept, raw[at:]])


def _reason(e: Exception) -> str:
  """An error of Pillow as a reason for users."""
  if isinstance(e, UnidentifiedImageError):
    return f"no whole image of {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
  text = re.sub(r"<[^<>]* at 0x[0-9a-f]+>", "the file", str(e)).strip()
  if isinstance(e, OSError | SyntaxError | ValueError) and text:
    return f"cannot be decoded: {text.splitlines()[0].rstrip('.')}"
  return f"cannot be decoded ({type(e).__name__}{text and f': {text}'})"


def _eight_bit(image: Image.Image, form: str | None) -> np.ndarray:
  """uint8 [h, w] or [h, w, 3] of a Pillow image of any mode and a format."""
  if image.mode == "F" or (image.mode == "I" and form != "PNG"):
    kind = "floating-point" if image.mode == "F" else "32-bit or signed"
    raise BrokenImage(
      f"its pixels are {kind} numbers, which do not say how bright they are;"
      " store it with 8 or 16 bits"
    )
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

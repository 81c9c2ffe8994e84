"""Decoding one image, checked against Pillow, block means and known colours."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from gamix_jax.data.decode import BrokenImage, ImageTransform


def picture(h=48, w=64, seed=0):
  """Returns a smooth colour image, uint8 [h, w, 3]."""
  grid = np.random.default_rng(seed).uniform(0, 255, (4, 4, 3))
  small = Image.fromarray(grid.astype(np.uint8))
  return np.asarray(small.resize((w, h), Image.Resampling.BICUBIC))


def encode(image, form, **how):
  """Encodes an array or a Pillow image in a format."""
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  out = io.BytesIO()
  image.save(out, form, **how)
  return out.getvalue()


def as_is(h, w, c=3):
  return ImageTransform((h, w, c), "none", "area")


def difference(a, b):
  return np.abs(a.astype(int) - b.astype(int)).max()


@pytest.mark.parametrize(
  ("form", "how"),
  [("JPEG", {"quality": 90}), ("PNG", {}), ("WEBP", {"lossless": True})],
)
def test_pixels_are_pillows(form, how):
  raw = encode(picture(), form, **how)
  want = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))
  np.testing.assert_array_equal(as_is(48, 64)(raw), want)
  grey = np.asarray(Image.open(io.BytesIO(raw)).convert("L"))
  assert difference(as_is(48, 64, 1)(raw)[:, :, 0], grey) <= 2


def test_area_is_the_mean_of_blocks():
  image = picture(48, 64)
  got = as_is(12, 16)(image)
  want = image.reshape(12, 4, 16, 4, 3).mean((1, 3))
  assert np.abs(got - want).max() <= 0.51


@pytest.mark.parametrize("resize", ["area", "linear", "cubic", "nearest"])
def test_enlarging_keeps_the_picture(resize):
  image = picture(32, 32)
  got = ImageTransform((64, 64, 3), "none", resize)(image)
  assert got.shape == (64, 64, 3)
  back = got.reshape(32, 2, 32, 2, 3).mean((1, 3))
  assert np.abs(back - image).mean() < 4


def test_the_four_resizes_differ():
  image = picture(40, 40)
  resized = [
    ImageTransform((16, 16, 3), "none", r)(image).tobytes()
    for r in ("area", "linear", "cubic", "nearest")
  ]
  assert len(set(resized)) == 4


def test_crops():
  image = picture(40, 60)
  np.testing.assert_array_equal(
    ImageTransform((40, 40, 3), "square", "area")(image), image[:, 10:50]
  )
  np.testing.assert_array_equal(
    ImageTransform((20, 20, 3), 20, "area")(image), image[10:30, 20:40]
  )
  # Of the target's shape, and no larger than the image.
  np.testing.assert_array_equal(
    ImageTransform((20, 60, 3), "square", "area")(image), image[10:30]
  )
  np.testing.assert_array_equal(
    ImageTransform((40, 40, 3), 1000, "area")(image), image[:, 10:50]
  )


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation(turn):
  exif = Image.Exif()
  exif[0x0112] = turn
  raw = encode(picture(40, 60), "JPEG", quality=95, exif=exif)
  upright = ImageOps.exif_transpose(Image.open(io.BytesIO(raw)))
  want = np.asarray(upright)
  got = as_is(*want.shape[:2])(raw)
  np.testing.assert_array_equal(got, want)


def test_a_large_jpeg_is_decoded_smaller(monkeypatch):
  raw = encode(picture(512, 640), "JPEG", quality=95)
  sizes = []
  load = ImageFile.ImageFile.load

  def spy(file):
    sizes.append(file.size)
    return load(file)

  monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.load", spy)
  got = ImageTransform((32, 32, 3), "square", "area")(raw)
  assert set(sizes) == {(80, 64)}  # an eighth, and twice the target
  whole = np.asarray(Image.open(io.BytesIO(raw)))
  assert (
    difference(got, ImageTransform((32, 32, 3), "square", "area")(whole)) <= 3
  )
  sizes.clear()
  ImageTransform((32, 32, 3), "square", "linear")(raw)  # reads single pixels
  assert set(sizes) == {(640, 512)}


def test_sixteen_bits():
  wide = (np.arange(48 * 64).reshape(48, 64) * 21).astype(np.uint16)
  got = as_is(48, 64, 1)(encode(wide, "PNG"))
  assert np.abs(got[:, :, 0] - wide / 257).max() <= 0.5


def test_sixteen_bits_in_colour():
  rng = np.random.default_rng(0)
  wide = rng.integers(0, 65536, (16, 16, 3), np.uint16)
  raw = cv2.imencode(".png", wide[:, :, ::-1])[1].tobytes()
  assert np.abs(as_is(16, 16)(raw) - wide / 257).max() <= 1


def test_cmyk_is_not_inverted():
  image = Image.new("RGB", (16, 16), (200, 40, 90)).convert("CMYK")
  got = as_is(16, 16)(encode(image, "JPEG", quality=98))
  assert difference(got, np.full((16, 16, 3), (200, 40, 90))) <= 6


def test_alpha_lies_on_white():
  rgba = np.zeros((8, 8, 4), np.uint8)
  rgba[:, :4] = (255, 0, 0, 255)  # the rest is transparent black
  rgba[0, 0] = (0, 0, 255, 128)
  for form in ("PNG", "WEBP"):
    got = as_is(8, 8)(encode(rgba, form, **{"lossless": True}))
    assert (got[1:, :4] == (255, 0, 0)).all(), form
    assert (got[:, 4:] == 255).all(), form
    assert difference(got[0, 0], np.array([127, 127, 255])) <= 1
  la = np.stack([np.full((8, 8), 10), np.full((8, 8), 0)], -1).astype(np.uint8)
  assert (as_is(8, 8, 1)(encode(la, "PNG")) == 255).all()


def test_palettes_and_bits():
  image = Image.new("P", (8, 8), 1)
  image.putpalette([0, 0, 0, 10, 200, 30])
  assert (as_is(8, 8)(encode(image, "PNG")) == (10, 200, 30)).all()
  clear = encode(image, "PNG", transparency=1)
  assert (as_is(8, 8)(clear) == 255).all()
  assert (as_is(8, 8, 1)(encode(Image.new("1", (8, 8), 1), "PNG")) == 255).all()


@pytest.mark.parametrize("form", ["WEBP", "GIF", "PNG"])
def test_an_animation_gives_its_first_frame(form):
  frames = [Image.new("RGB", (8, 8), c) for c in ("red", "lime", "blue")]
  raw = encode(
    frames[0], form, save_all=True, append_images=frames[1:], duration=50
  )
  assert difference(as_is(8, 8)(raw), np.full((8, 8, 3), (255, 0, 0))) <= 3


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_file_is_broken(form):
  noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  raw = encode(noise, form)
  for keep in (0, 5, 30, len(raw) // 2, len(raw) - 40):
    with pytest.raises(BrokenImage):
      as_is(64, 64)(raw[:keep])


def test_garbage_is_broken():
  rng = np.random.default_rng(0)
  good = bytearray(encode(picture(), "PNG"))
  for _ in range(50):
    with pytest.raises(BrokenImage):
      as_is(8, 8)(rng.bytes(200))
    bad = good.copy()
    bad[rng.integers(8, len(bad) - 12)] ^= 0xFF
    try:  # a changed byte may be harmless, but never another exception
      assert as_is(8, 8)(bytes(bad)).shape == (8, 8, 3)
    except BrokenImage:
      continue


def test_grey_and_colour():
  image = picture()
  grey = as_is(48, 64, 1)(image)
  luma = image @ np.array([0.299, 0.587, 0.114])
  assert np.abs(grey[:, :, 0] - luma).max() <= 1
  np.testing.assert_array_equal(
    as_is(48, 64, 3)(grey), np.repeat(grey, 3, axis=2)
  )
  np.testing.assert_array_equal(as_is(48, 64, 1)(grey[:, :, 0]), grey)

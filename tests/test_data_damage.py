"""Damaged files give images or a message, never another error; size limits."""

import gzip
import io
import logging
import re
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from test_data_idx import idx
from test_data_sources import pixels, says, section

from gamix_jax import data
from gamix_jax.data.decode import BrokenImage, ImageTransform
from gamix_jax.errors import UserError

TIMES = 500
PIXELS = np.random.default_rng(1).integers(0, 256, (12, 6, 6), np.uint8)


def damaged(raw, rng):
  """Changes, inserts, removes or zeroes some bytes, or truncates."""
  raw = bytearray(raw)
  at, n = int(rng.integers(len(raw))), int(rng.integers(1, 20))
  match rng.integers(5):
    case 0:
      for k in rng.integers(0, len(raw), n):
        raw[k] = rng.integers(256)
    case 1:
      del raw[at:]
    case 2:
      raw[at:at] = rng.bytes(n)
    case 3:
      del raw[at : at + n]
    case 4:
      raw[at : at + n] = bytes(len(raw[at : at + n]))
  return bytes(raw)


def saved(save, *arrays, **named):
  out = io.BytesIO()
  save(out, *arrays, **named)
  return out.getvalue()


ENTRIES = {"x_train": PIXELS, "y_train": np.arange(12), "range": [0, 255.0]}
ARRAYS = {
  "stored.npz": saved(np.savez, **ENTRIES),
  "packed.npz": saved(np.savez_compressed, **ENTRIES),
  "single.npy": saved(np.save, PIXELS),
  "train-images-idx3-ubyte": idx(PIXELS),
  "train-images-idx3-ubyte.gz": gzip.compress(idx(PIXELS), mtime=0),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_damaged_arrays(tmp_path, name):
  rng = np.random.default_rng(2)
  file = tmp_path / name
  source = f"npz:{file}" if "np" in file.suffix else f"idx:{tmp_path}"
  c = section(source, channels=1, image_size=4)
  refused = 0
  for _ in range(TIMES):
    file.write_bytes(damaged(ARRAYS[name], rng))
    try:
      dataset = data.open_dataset(c, "train")
      batch = dataset.load_batch(np.arange(len(dataset)))
      assert batch["image"].shape == (len(dataset), 4, 4, 1)
    except UserError as e:
      refused += 1
      assert name in str(e) and len(str(e)) < 600
  assert TIMES / 5 < refused < TIMES


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "BMP", "WEBP"])
def test_damaged_images(tmp_path, form):
  rng = np.random.default_rng(3)
  exif = {} if form == "BMP" else {"exif": Image.Exif()}
  if exif:
    exif["exif"][0x0112] = 6
  original = Image.fromarray(rng.integers(0, 256, (24, 20, 3), np.uint8))
  raw = saved(lambda out: original.save(out, form, **exif))
  for i in range(TIMES):
    (tmp_path / f"{i:03}.png").write_bytes(damaged(raw, rng))
    (tmp_path / f"{i:03}good.png").write_bytes(raw)
  c = section(f"folder:{tmp_path}", image_size=4, max_corrupt_fraction=1.0)
  broken = {}
  for split in ("train", "test"):
    dataset = data.open_dataset(c, split)
    assert pixels(dataset).shape == (len(dataset), 4, 4, 3)
    broken |= dataset.broken
  assert TIMES / 5 < len(broken) <= TIMES
  assert not any("good" in name for name in broken)
  for why in broken.values():
    assert why and not re.search(r"\b0x|object at|<_io", why), why


def test_headers_that_ask_for_too_much(tmp_path):
  header = saved(
    np.lib.format.write_array_header_1_0,
    {"descr": "|u1", "fortran_order": False, "shape": (10**12, 8, 8)},
  )
  raw = header + bytes(1000)
  (tmp_path / "a.npy").write_bytes(raw)
  for how in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(tmp_path / f"{how}.npz", "w", how) as archive:
      archive.writestr("images.npy", raw)
  for name in ("a.npy", "0.npz", "8.npz"):
    c = section(f"npz:{tmp_path}/{name}")
    says(
      lambda c=c: data.open_dataset(c, "train"),
      name,
      "64,000,000,000,000 bytes",
    )


def test_an_archive_of_another_kind(tmp_path):
  def opening(raw):
    (tmp_path / "x.npz").write_bytes(raw)
    return lambda: data.open_dataset(section(f"npz:{tmp_path}/x.npz"), "train")

  says(opening(b""), "nothing in the file")
  says(opening(b"<html>404</html>"), "cannot be read", "numpy.savez")
  locked = bytearray(ARRAYS["stored.npz"])
  for at in re.finditer(rb"PK\x01\x02", bytes(locked)):
    locked[at.start() + 8] |= 1  # claims to be encrypted
  for at in re.finditer(rb"PK\x03\x04", bytes(locked)):
    locked[at.start() + 6] |= 1
  says(opening(bytes(locked)), "cannot be read", "encrypted")


def test_fortran_order_and_big_endian_are_read(tmp_path):
  x = np.asfortranarray(PIXELS.astype(">f8"))
  np.savez(tmp_path / "x.npz", x_train=x, x_test=x[:1])
  c = section(f"npz:{tmp_path}/x.npz", channels=1, image_size=6)
  np.testing.assert_array_equal(
    pixels(data.open_dataset(c, "train"))[..., 0], PIXELS
  )


# -------------------------------------------------------------------- limits


def encode(image, form, **how):
  return saved(lambda out: image.save(out, form, **how))


def transform(h, w, c=3):
  return ImageTransform((h, w, c), "none", "area")


SMALL = Image.fromarray(
  np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
)


@pytest.mark.parametrize("packed", [True, False])
def test_text_in_a_png_is_of_any_length(packed):
  info = PngImagePlugin.PngInfo()
  info.add_text("prompt", "x" * 3_000_000, zip=packed)
  info.add_itxt("note", "y" * 70_000_000, zip=packed)
  raw = encode(SMALL, "PNG", pnginfo=info)
  np.testing.assert_array_equal(transform(8, 10)(raw), np.asarray(SMALL))


def test_a_png_that_is_turned_by_a_text():
  info = PngImagePlugin.PngInfo()
  info.add_itxt(
    "XML:com.adobe.xmp",
    '<x:xmpmeta><rdf:RDF><rdf:Description tiff:Orientation="6"/>',
  )
  raw = encode(SMALL, "PNG", pnginfo=info)
  want = np.rot90(np.asarray(SMALL), -1)
  np.testing.assert_array_equal(transform(10, 8)(raw), want)


def test_many_pixels(tmp_path, caplog):
  raw = encode(Image.new("L", (20_000, 10_000), 128), "PNG", compress_level=1)
  assert (transform(2, 2, 1)(raw) == 128).all()
  for i in range(20):
    SMALL.save(tmp_path / f"{i}.png")
  SMALL.resize((50, 40)).save(tmp_path / "scan.png")
  c = section(f"folder:{tmp_path}", max_corrupt_fraction=0.1, max_pixels=100)
  for split in ("train", "test"):
    pixels(data.open_dataset(c, split))
  line = "scan.png: 50x40 pixels are more than the limit data.max_pixels=100"
  assert line in caplog.text
  caplog.clear()
  c.max_pixels = 2000
  for split in ("train", "test"):
    pixels(data.open_dataset(c, split))
  assert "scan.png" not in caplog.text


def test_a_limit_is_part_of_a_cache(tmp_path):
  """An image over the limit is replaced by another one."""
  for i in range(20):
    Image.new("L", (8 + 8 * (i == 3), 8), i).save(tmp_path / f"{i:02}.png")
  c = section(
    f"folder:{tmp_path}",
    max_corrupt_fraction=0.1,
    cache=str(tmp_path / "cache"),
  )
  seen = set()
  for c.max_pixels in (64, 128):
    found = [pixels(data.open_dataset(c, s)) for s in ("train", "test")]
    seen.add(3 in np.concatenate(found))
  assert seen == {False, True}


def test_no_memory_is_said(tmp_path, monkeypatch):
  for i in range(9):
    SMALL.save(tmp_path / f"{i}.png")
  dataset = data.open_dataset(section(f"folder:{tmp_path}"), "train")

  def fail(*args, **kwargs):
    raise MemoryError

  monkeypatch.setattr(Image, "open", fail)
  says(lambda: dataset[0], dataset.source.name(0), "data.max_pixels")


def test_warnings_of_pillow_break_nothing():
  """Of a harmless fault, also if Python turns warnings into errors."""
  raw = encode(SMALL, "JPEG", quality=100, subsampling=0)
  exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"  # truncated
  app1 = b"\xff\xe1" + (len(exif) + 2).to_bytes(2) + exif
  turned = raw[:2] + app1 + raw[2:]
  with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    want = transform(8, 10)(turned)
  assert heard, "Pillow no longer warns of this; find another fault"
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    np.testing.assert_array_equal(transform(8, 10)(turned), want)


# ------------------------------------------------------------------- formats


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_tiff_is_turned_once(turn):
  exif = Image.Exif()
  exif[0x0112] = turn
  way = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
  }
  want = np.asarray(SMALL.transpose(way[turn]) if turn > 1 else SMALL)
  for how in ({}, {"compression": "tiff_lzw"}):
    raw = encode(SMALL, "TIFF", exif=exif, **how)
    np.testing.assert_array_equal(transform(*want.shape[:2])(raw), want)


def test_tiff_and_bmp(tmp_path, caplog):
  other = Image.new("RGB", SMALL.size)
  for i in range(8):
    SMALL.save(tmp_path / f"{i}.tif", save_all=True, append_images=[other])
    SMALL.save(tmp_path / f"{i}.BMP")
  (tmp_path / "x.gif").write_bytes(encode(SMALL, "GIF"))
  caplog.set_level(logging.INFO, "gamix_jax")
  c = section(f"folder:{tmp_path}", image_size=(8, 10))
  found = np.concatenate(
    [pixels(data.open_dataset(c, s)) for s in ("train", "test")]
  )
  assert len(found) == 16
  assert (found == np.asarray(SMALL)).all()
  assert "not images by their names (1): x.gif" in caplog.text


def test_tiffs_of_many_bits():
  wide = (np.arange(80).reshape(8, 10) * 800).astype(np.uint16)
  got = transform(8, 10, 1)(encode(Image.fromarray(wide), "TIFF"))
  assert np.abs(got[..., 0] - wide / 257).max() <= 0.5
  for other in (wide.astype(np.int32), wide.astype(np.float32)):
    with pytest.raises(BrokenImage, match="8 or 16 bit"):
      transform(8, 10)(encode(Image.fromarray(other), "TIFF"))


def test_long_and_thin():
  for size in ((70_000, 2), (1, 40_000)):
    assert transform(8, 8)(encode(Image.new("RGB", size), "PNG")).max() == 0

"""Image grids, read back with Pillow."""

import os

import numpy as np
import pytest
from PIL import Image

from gamix_jax import pictures
from gamix_jax.files import PART


def test_to_uint8():
  x = np.array([-2.0, -1.0, 0.0, 1.0, 7.0, np.nan, np.inf, -np.inf])
  got = pictures.to_uint8(x)
  assert got.dtype == np.uint8
  np.testing.assert_array_equal(got, [0, 0, 128, 255, 255, 0, 255, 0])
  whole = np.arange(256, dtype=np.uint8)
  np.testing.assert_array_equal(pictures.to_uint8(whole / 127.5 - 1), whole)


@pytest.mark.parametrize(
  ("size", "factor"), [((8, 8), 8), ((16, 32), 2), ((64, 64), 1), ((90, 9), 1)]
)
def test_grid_places_every_image(size, factor):
  h, w = size
  rng = np.random.default_rng(0)
  images = rng.uniform(-1, 1, (7, h, w, 3))
  out = pictures.grid(images, 3)
  high, wide = h * factor, w * factor
  line = pictures.LINE
  assert out.shape == (3 * (high + line) + line, 3 * (wide + line) + line, 3)
  for i in range(9):
    y, x = i // 3 * (high + line) + line, i % 3 * (wide + line) + line
    part = out[y : y + high, x : x + wide]
    if i < 7:
      each = pictures.to_uint8(images[i])
      wanted = np.kron(each, np.ones((factor, factor, 1), np.uint8))
      np.testing.assert_array_equal(part, wanted)
    else:
      assert (part == 255).all()
    assert (out[y - line : y, x : x + wide] == 255).all()


def test_pairs_are_rows_over_rows():
  above, below = np.arange(8)[:, None], 10 + np.arange(8)[:, None]
  got = pictures.pairs(above, below, 4)[:, 0].tolist()
  assert got == [0, 1, 2, 3, 10, 11, 12, 13, 4, 5, 6, 7, 14, 15, 16, 17]
  assert len(pictures.pairs(above, below, 3)) == 12  # complete rows only


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_save_png(channels, mode, tmp_path):
  shape = (5, 6, channels)
  image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  pictures.save_png(tmp_path / "a.png", image)
  with Image.open(tmp_path / "a.png") as read:
    assert read.mode == mode
    np.testing.assert_array_equal(np.asarray(read).reshape(shape), image)
  assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_save_png_whole_or_not_at_all(tmp_path):
  old, new = np.zeros((4, 4, 1), np.uint8), np.full((4, 4, 1), 9, np.uint8)
  path = tmp_path / "a.png"
  pictures.save_png(path, old)
  before = path.read_bytes()
  (tmp_path / f"{PART}{os.getpid()}-a.png").symlink_to("/dev/full")
  with pytest.raises(OSError, match="No space"):
    pictures.save_png(path, new)
  assert path.read_bytes() == before
  assert [p.name for p in tmp_path.iterdir()] == ["a.png"]

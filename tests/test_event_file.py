"""Event files, as tensorboardX reads them and would have written them."""

import io

import numpy as np
import pytest
from PIL import Image
from program import events
from tensorboardX import summary

from gamix_jax import event_file, pictures
from gamix_jax.event_file import EventFile


@pytest.fixture
def read(tmp_path):
  """Writes values as step 300 and reads them back."""

  def round_trip(*values):
    file = EventFile(tmp_path / "events.out.tfevents.1", 5)
    file.write(300, values)
    file.close()
    version, start, *written = events(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert start.step == 5
    assert start.session_log.status == start.session_log.START
    assert all(event.step == 300 for event in written)
    assert all(event.wall_time > 1.7e9 for event in written)
    return [event.summary for event in written]

  return round_trip


def test_scalars(read):
  numbers = (0.0, -1.5, 1.1, 3e38, 1e-45, 123456789)
  values = [event_file.scalar("a/b é", v) for v in numbers]
  assert [s.value[0].simple_value for s in read(*values)] == [
    float(np.float32(v)) for v in numbers
  ]


def test_a_scalar_beyond_float32_is_infinite(read):
  (found,) = read(event_file.scalar("a", -1e39))
  assert found.value[0].tag == "a"
  assert found.value[0].simple_value == float("-inf")


@pytest.mark.parametrize(
  "values",
  [
    *(np.zeros(7), np.array([2.0]), np.array([0, 0, 0, 1e6])),
    *(np.arange(20, dtype=np.float32), np.geomspace(1e-9, 1e9, 300)),
    np.random.default_rng(0).normal(size=5000).astype(np.float32),
  ],
)
def test_histograms(read, values):
  (found,) = read(event_file.histogram("a/b", values))
  assert found == summary.histogram("a/b", values, "auto")


@pytest.mark.parametrize("channels", [1, 3])
def test_images(read, channels):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (5, 200, channels), np.uint8)
  png = pictures.encode_png(image)
  (found,) = read(event_file.image("x", png, image.shape))
  value = found.value[0]
  assert value.tag == "x"
  shape = value.image.height, value.image.width, value.image.colorspace
  assert shape == image.shape
  with Image.open(io.BytesIO(value.image.encoded_image_string)) as shown:
    np.testing.assert_array_equal(np.asarray(shown).reshape(shape), image)


def test_a_file_is_never_overwritten(tmp_path):
  (tmp_path / "events.out.tfevents.1").write_text("")
  with pytest.raises(FileExistsError):
    EventFile(tmp_path / "events.out.tfevents.1", 0)

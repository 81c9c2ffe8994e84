"""Values without a stated range, and labels of every kind."""

import logging

import numpy as np
import pytest
from test_data_idx import write
from test_data_sources import pixels, says, section

from gamix_jax import config, data
from gamix_jax.errors import UserError

Y, X = np.mgrid[:8, :8]
# From 0 to 1, both included.
SMOOTH = (Y + X)[None] * np.linspace(1, 0.2, 12)[:, None, None] / 14


def opened(tmp_path, images, changes=None, **entries):
  """The training split of an archive; every image is for training."""
  np.savez(
    tmp_path / "x.npz", x_train=images, x_test=images[:2], y_test=[0, 0],
    **entries,
  )  # fmt: skip
  c = section(f"npz:{tmp_path}/x.npz", channels=1, **(changes or {}))
  return data.open_dataset(c, "train")


@pytest.mark.parametrize(
  ("images", "black", "white"),
  [
    (SMOOTH.astype("f4"), 0, 1),
    (SMOOTH.astype("f2"), 0, 1),
    (SMOOTH.astype(">f8"), 0, 1),
    (SMOOTH - 1e-6, 0, 1),
    ((SMOOTH * 1.0000001).astype("f4"), 0, 1),
    (SMOOTH * 1.0005, 0, 1),
    (SMOOTH * 2 - 1, -1, 1),
    (SMOOTH * 2.001 - 1.0005, -1, 1),
    (SMOOTH * 255.0, 0, 255),
    (np.round(SMOOTH * 255).astype(np.int64), 0, 255),
    (np.round(SMOOTH * 200).astype(np.uint16), 0, 255),
    (np.round(SMOOTH * 60_000).astype(np.uint16), 0, 65535),
    (SMOOTH > 0.5, 0, 1),
  ],
)
def test_numbers_without_doubt(tmp_path, caplog, images, black, white):
  with caplog.at_level(logging.INFO, "gamix_jax"):
    got = pixels(opened(tmp_path, images))[..., 0]
  scaled = (images.astype(np.float64) - black) / (white - black)
  want = scaled.clip(0, 1) * 255
  assert np.abs(got - want).max() <= 0.51
  line = f"from {images.min()!s} to {images.max()!s}, black is {black} and"
  assert line in caplog.text and f"white {white} (taken" in caplog.text


@pytest.mark.parametrize(
  ("images", "flag"),
  [
    ((SMOOTH > 0.5).astype(np.uint8), "(0,1)"),
    (np.round(SMOOTH * 16).astype(np.uint8), "(0,16)"),
    (np.round(SMOOTH * 7).astype(np.int64), "(0,7)"),
    (np.round(SMOOTH * 100).astype(np.uint8), "(0,100)"),
    (np.round(SMOOTH * 4095).astype(np.uint16), "(0,4095)"),
    (np.round(SMOOTH * 65535).astype(np.int32), "(0,65535)"),
    (np.round(SMOOTH * 255 - 128).astype(np.int8), "(-128,127)"),
    (SMOOTH - 0.5, "(-0.5,0.5)"),
    (SMOOTH * 1.2 - 0.6, "(-0.6,0.6)"),
    (SMOOTH / 255, "(0,1)"),
    (SMOOTH * 16.0, "(0,16.0)"),
    (SMOOTH * 3 - 1.5, "(-1.5,1.5)"),
  ],
)
def test_numbers_in_doubt(tmp_path, images, flag):
  message = says(lambda: opened(tmp_path, images), "in doubt", flag)
  assert f"from {images.min()!s} to {images.max()!s}" in message
  # The suggested flag settles it, whatever it is; so does the archive.
  black, white = map(float, flag[1:-1].split(","))
  scaled = (images.astype(np.float64) - black) / (white - black)
  for how in (
    {"changes": {"range": (black, white)}},
    {"range": np.array([black, white])},
  ):
    got = pixels(opened(tmp_path, images, **how))[..., 0]
    assert np.abs(got - scaled * 255).max() <= 0.51


def test_a_stated_range_is_kept(tmp_path):
  x = (SMOOTH * 1.01).astype("f4")
  message = says(
    lambda: opened(tmp_path, x, range=[0, 1]), "1.01", "data.range"
  )
  assert "stated range, from 0 (black) to 1 (white)" in message
  got = opened(tmp_path, x, {"range": (0, 1.01)}, range=[0, 1])  # flag first
  assert pixels(got).max() == 255
  for wrong in ([1, 0], [0], [0, np.inf], ["0", "1"], [0, 1e300]):
    says(lambda w=wrong: opened(tmp_path, x, range=w), "range must be two")


def test_images_of_one_value(tmp_path, caplog):
  caplog.set_level(logging.INFO, "gamix_jax")
  for dtype in (np.uint8, np.int64, np.float32, bool):
    assert pixels(opened(tmp_path, np.zeros((9, 8, 8), dtype))).max() == 0
  assert "from 0 to 0, black is 0 and white 255" in caplog.text
  grey = opened(tmp_path, np.full((9, 8, 8), 7, np.uint8))
  assert (pixels(grey) == 7).all()
  says(lambda: opened(tmp_path, np.full((9, 8, 8), 0.2)), "in doubt")


def test_splits_of_two_ranges(tmp_path):
  x = np.round(SMOOTH * 255).astype(np.uint8)
  np.savez(tmp_path / "x.npz", x_train=x, x_test=SMOOTH)
  c = section(f"npz:{tmp_path}/x.npz", channels=1)
  for split in ("train", "test"):
    says(lambda s=split: data.open_dataset(c, s), "in doubt")


def test_idx_is_judged_alike(tmp_path, caplog):
  x = np.round(SMOOTH * 16).astype(np.uint8)
  write(tmp_path, "train-images-idx3-ubyte.gz", x)
  c = section(f"idx:{tmp_path}", channels=1)
  says(lambda: data.open_dataset(c, "train"), "in doubt", "(0,16)")
  c.range = (0, 16)
  caplog.set_level(logging.INFO, "gamix_jax")
  assert pixels(data.open_dataset(c, "train")).max() == 255
  assert "from 0 to 16, black is 0 and white 16 (stated)" in caplog.text


def test_the_setting(tmp_path):
  assert config.base().data.range == "auto"
  for wrong in ("all", (1, 0), (0, 0), (0,), (0, "1"), (0, float("nan"))):
    says(
      lambda w=wrong: data.open_dataset(section("digits", range=w), "train"),
      "data.range",
    )
  says(
    lambda: data.open_dataset(section("digits", range=(0, 16)), "train"), "npz"
  )
  with pytest.raises(UserError, match="max_pixels"):
    data.open_dataset(section("digits", max_pixels=0), "train")


# -------------------------------------------------------------------- labels


def labelled(tmp_path, labels, test=None, **changes):
  n = len(labels)
  x = np.random.default_rng(0).integers(0, 256, (n, 8, 8), np.uint8)
  test = labels if test is None else test
  np.savez(
    tmp_path / "x.npz", x_train=x, y_train=labels, x_test=x[: len(test)],
    y_test=test,
  )  # fmt: skip
  c = section(f"npz:{tmp_path}/x.npz", channels=1, **changes)
  return data.open_dataset(c, "train"), data.open_dataset(c, "test")


K = np.arange(12) % 3


@pytest.mark.parametrize(
  ("labels", "numbers", "names"),
  [
    (K, K, ()),
    (K[:, None].astype(np.uint64), K, ()),
    (K.astype(np.float32), K, ()),
    (K > 0, K > 0, ()),
    (K - 1, K - 1, ()),
    (np.eye(3)[K], K, ()),
    (np.eye(3, dtype=bool)[K], K, ()),
    (K + 65_533, K + 65_533, ()),
    (K + 2**33, K, tuple(str(2**33 + k) for k in range(3))),
    ((K + 1) * 10**9, K, ("1000000000", "2000000000", "3000000000")),
    (K.astype(np.uint64) + 2**63, K, tuple(str(2**63 + k) for k in range(3))),
    (np.where(K == 0, -1, K * 2**40), K - 1, (str(2**40), str(2**41))),
    (K - 5, K, ("-5", "-4", "-3")),
    (np.array(["dog", "cat", "$x"])[K], (2 - K), ("$x", "cat", "dog")),
    (np.array([b"dog", b"caf\xe9"])[K % 2], 1 - K % 2, ("caf\\xe9", "dog")),
  ],
)
def test_labels_are_kept(tmp_path, labels, numbers, names):
  train, test = labelled(tmp_path, labels, labels[4:6])
  got = train.load_batch(np.arange(12))["label"]
  assert got.dtype == np.int32
  if names == ("$x", "cat", "dog"):  # dog, cat, $x
    numbers = np.array([2, 1, 0])[K]
  np.testing.assert_array_equal(got, numbers)
  np.testing.assert_array_equal(
    test.load_batch(np.arange(2))["label"], numbers[4:6]
  )
  assert train.label_names == test.label_names == names


def test_classes_of_large_numbers_are_left_out_by_name(tmp_path):
  train, test = labelled(tmp_path, K + 2**33, exclude_labels=(2**33 + 1,))
  assert set(train.labels()) == {0, 2}
  assert train.excluded == test.excluded == (1,)


@pytest.mark.parametrize(
  "labels",
  [
    K + 0.5,
    np.where(K == 0, np.nan, K),
    np.eye(3)[K] * 2,
    np.ones((12, 3)),
    K.astype(complex),
    K.astype("M8[s]"),
    np.zeros((12, 2, 2), int),
  ],
)
def test_labels_are_refused(tmp_path, labels):
  says(lambda: labelled(tmp_path, labels), "y_train", "labels are")
  says(lambda: labelled(tmp_path, K, np.array(["a"])), "one split only")
  objects = np.array([1, "a", None] * 4, object)
  says(lambda: labelled(tmp_path, objects), "Python objects", "astype(str)")

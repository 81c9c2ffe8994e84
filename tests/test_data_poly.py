"""Digits in several views, and digits with their class."""

import gzip
import itertools
import re
import sys

import numpy as np
import pytest

from gamix_jax.data import Settings, backgrounds, options, pairing
from gamix_jax.data.builtin import Digits
from gamix_jax.data.mnist_label import MnistLabel
from gamix_jax.data.pipeline import SOURCES, open_dataset, resolve_source
from gamix_jax.data.polydigits import Polydigits
from gamix_jax.data.polymnist import VIEWS, Polymnist
from gamix_jax.errors import UserError

N = {"train": 60, "test": 20}


def settings(source="polydigits", **changes):
  return Settings(
    **dict(source=source, image_size=8, channels=1, batch_size=4, flip=False)
    | changes
  )


def opened(source, split="train", **changes):
  """Returns a source, by the table, whatever modalities are named."""
  name, rest = re.fullmatch(r"(\w+):?(.*)", str(source)).groups()
  return SOURCES[name](rest, split, settings(str(source), **changes), 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder of idx files as MNIST's; each image is a bar."""
  root = tmp_path_factory.mktemp("mnist")
  for split, name in (("train", "train"), ("test", "t10k")):
    n = N[split]
    images = np.zeros((n, 28, 28), np.uint8)
    for i in range(n):
      # On a grid of 4, which is one of 3 at 3/4 of the size.
      images[i, 4 + 4 * (i % 4) : 24, 4 * (i % 7) : 4 + 4 * (i % 7)] = 255
    for kind, values in (("images", images), ("labels", np.arange(n) % 3)):
      axes = b"".join(k.to_bytes(4) for k in values.shape)
      data = (0x0800 + values.ndim).to_bytes(4) + axes
      file = root / f"{name}-{kind}-idx{values.ndim}-ubyte.gz"
      file.write_bytes(gzip.compress(data + values.astype(np.uint8).tobytes()))
  return root


# --------------------------------------------------------------- pairing


def test_views_are_permutations_within_the_class():
  labels = np.random.default_rng(0).integers(0, 4, 200)
  found = pairing.within_class(labels, 5, np.random.default_rng(1))
  assert (labels[found] == labels[:, None]).all()
  for view in found.T:
    assert sorted(view) == list(range(200))
  for a, b in itertools.combinations(found.T, 2):
    assert (a != b).all()
  other = pairing.within_class(labels, 5, np.random.default_rng(2))
  assert (found != other).mean() > 0.9


def test_a_class_of_fewer_images_than_views_repeats_them():
  found = pairing.within_class(np.array([7, 7, 9]), 3, np.random.default_rng(0))
  assert sorted(found[0]) in ([0, 0, 1], [0, 1, 1])
  assert found[2].tolist() == [2, 2, 2]


# ------------------------------------------------------------ polydigits


def test_polydigits():
  source = opened("polydigits")
  assert source.names == ("m0", "m1", "m2", "m3", "m4")
  assert len(source) == 5000
  assert source.total == 6000
  assert len(opened("polydigits", "test")) == 1000
  row = source[7]
  for name in source.names:
    assert row[name].shape == (16, 16, 3)
    assert row[name].dtype == np.uint8
  assert source.label_names == tuple("0123456789")


def test_polydigits_is_a_function_of_the_split():
  first, again = (Polydigits("", "test", settings(), s) for s in (0, 5))
  assert first.fingerprint() == again.fingerprint()
  for name, array in first.arrays.items():
    np.testing.assert_array_equal(array, again.arrays[name])
  train = opened("polydigits")
  assert train.fingerprint() != first.fingerprint()
  # A run of fewer views has the same ones.
  some = opened("polydigits", modalities=("m3 16x16x3 l1", "m1 16x16x3 l1"))
  assert some.names == ("m1", "m3")
  np.testing.assert_array_equal(some.arrays["m3"], train.arrays["m3"])


@pytest.mark.parametrize("split", ["train", "test"])
def test_views_show_different_digits_of_one_class(split):
  source, digits = opened("polydigits", split), Digits("", split, settings(), 0)
  classes = digits.labels()[source.digits]
  assert (classes == source.labels()[:, None]).all()
  assert set(source.labels()) == set(range(10))
  for a, b in itertools.combinations(source.digits.T, 2):
    assert (a != b).all()
  # Every digit is used, about equally often in each view.
  for view in source.digits.T:
    count = np.bincount(view, minlength=len(digits))
    assert count.min() >= len(source) // len(digits)
    assert count.max() <= -(-len(source) // len(digits))


def test_no_digit_is_in_both_splits():
  """By what the views show: each digit's ink, found again."""
  shown = {}
  for split in ("train", "test"):
    source, digits = (
      opened("polydigits", split),
      Digits("", split, settings(), 0),
    )
    used = np.unique(source.digits)
    shown[split] = {digits[int(i)]["image"].tobytes() for i in used}
    assert len(shown[split]) == len(digits)
  assert not shown["train"] & shown["test"]


def ink(images, name):
  """Returns which pixels are not of the background's colours: bool."""
  low, high = map(np.array, backgrounds._DRAWN[int(name[1])][1:])
  under = (images >= low) & (images <= high)
  return ~under.all(-1)


@pytest.mark.parametrize("name", ["m0", "m1", "m2", "m3", "m4"])
def test_the_digit_inverts_the_background(name):
  """As much of it as the digit has ink."""
  source, digits = opened("polydigits"), Digits("", "train", settings(), 0)
  view = int(name[1])
  found = ink(source.arrays[name], name)
  assert 0.08 < found.mean() < 0.4
  wanted = np.stack([digits[int(i)]["image"] for i in source.digits[:, view]])
  got = found.mean((1, 2))
  assert np.corrcoef(got, wanted.mean((1, 2)))[0, 1] > 0.7


@pytest.mark.parametrize("name", ["m0", "m3"])
def test_digits_are_legible(name):
  """Nearest neighbours of raw pixels know the class of most test rows."""
  from sklearn.neighbors import KNeighborsClassifier

  train, test = (
    opened("polydigits", s, modalities=(f"{name} 16x16x3 l1",))
    for s in ("train", "test")
  )
  knn = KNeighborsClassifier(1).fit(
    ink(train.arrays[name], name).reshape(len(train), -1), train.labels()
  )
  guess = knn.predict(ink(test.arrays[name], name).reshape(len(test), -1))
  assert (guess == test.labels()).mean() > 0.9


def test_translated_digits_are_smaller_and_in_random_places():
  """The ink lies in a box of 12 pixels that is anywhere in the view."""
  plain = opened("polydigits")
  small = opened("polydigits?translated=1")
  np.testing.assert_array_equal(small.digits, plain.digits)
  assert small.fingerprint() != plain.fingerprint()
  for name in small.names:
    shown = ink(small.arrays[name], name)
    first, last = [], []
    for axis in (1, 2):
      rows = shown.any(3 - axis)
      first.append(rows.argmax(1))
      last.append(15 - rows[:, ::-1].argmax(1))
    high, wide = np.subtract(last, first) + 1
    assert 8 < high.max() <= 12
    assert 8 < wide.max() <= 12
    # A digit as high as its box tells the place, of which there are 5.
    tall = first[0][high >= 11]
    assert np.bincount(tall, minlength=5)[:5].min() > 0.05 * len(tall)
    assert shown.mean() < 0.85 * ink(plain.arrays[name], name).mean()


def test_backgrounds_leave_the_inverted_digit_legible():
  for view in range(backgrounds.VIEWS):
    drawn = backgrounds.drawn(view).astype(int)
    gap = np.abs(255 - 2 * drawn)
    assert gap.min() > 70  # of 255, in each channel of each pixel
    np.testing.assert_array_equal(drawn, backgrounds.drawn(view))
  means = np.stack([backgrounds.drawn(v).mean((0, 1)) for v in range(5)])
  apart = np.abs(means[:, None] - means).max(-1) + 255 * np.eye(5)
  assert apart.min() > 60  # each has a colour of its own


def test_crops_are_windows():
  under = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
  places = np.array([[0, 0], [0.999, 0.999], [0.5, 0.25]])
  got = backgrounds.crop(under, places, 16)
  for window, (y, x) in zip(got, ((0, 0), (24, 34), (12, 8)), strict=True):
    np.testing.assert_array_equal(window, under[y : y + 16, x : x + 16])
  got[:] = 0
  assert under.any()


# ------------------------------------------------------------- polymnist


def test_polymnist_inverts_the_background_under_the_digit(folder):
  source = opened(f"polymnist:idx:{folder}")
  assert source.names == VIEWS
  assert (len(source), source.total) == (60, 80)
  raw = opened(f"idx:{folder}")
  for i, name in itertools.product((0, 31), VIEWS):
    got = source[i][name]
    assert got.shape == (28, 28, 3)
    image = raw[int(source.images[i, int(name[1])])]
    assert image["label"] == source.labels()[i] == source[i]["label"]
    digit = image["image"] >= 128
    under = np.where(digit[..., None], 255 - got, got)
    assert window_of(under, backgrounds.drawn(int(name[1])))


def window_of(image, whole):
  """Returns whether an image is a window of another one."""
  h, w, _ = image.shape
  first = np.argwhere((whole == image[0, 0]).all(-1))
  return any(
    np.array_equal(whole[y : y + h, x : x + w], image) for y, x in first
  )


def test_polymnist_rows_do_not_depend_on_how_they_are_asked_for(folder):
  source = opened(f"polymnist:{folder}?translated=1")
  rows = np.array([5, 0, 59, 5])
  for name in VIEWS:
    batch = source.views(name, rows)
    for k, i in enumerate(rows):
      np.testing.assert_array_equal(batch[k], source.read(int(i), name))
  fewer = opened(
    f"polymnist:{folder}?rows=9&translated=1", modalities=("m2 28x28x3 l1",)
  )
  assert (len(fewer), fewer.names) == (9, ("m2",))
  for i in range(9):
    np.testing.assert_array_equal(fewer[i]["m2"], source[i]["m2"])
  other = opened(f"polymnist:{folder}", "test")
  prints = {s.fingerprint() for s in (source, fewer, other)}
  assert len(prints) == 3
  assert opened(f"polymnist:{folder}?translated=1").fingerprint() in prints


def test_polymnist_translated(folder):
  """At 3/4 of its size, with a random place wholly inside."""
  source, plain, raw = (
    opened(s)
    for s in (
      f"polymnist:{folder}?translated=1",
      f"polymnist:{folder}",
      f"idx:{folder}",
    )
  )
  shifts = []
  for i in range(len(source)):
    # The background of m0 is dark.
    moved, fixed = ((s.read(i, "m0") > 128).any(-1) for s in (source, plain))
    bar = raw[int(source.images[i, 0])]["image"] >= 128
    np.testing.assert_array_equal(fixed, bar)
    assert moved.sum() * 16 == bar.sum() * 9
    corners = [np.argwhere(m).min(0) for m in (moved, bar)]
    shifts.append(corners[0] - corners[1] * 3 // 4)
  assert np.min(shifts) == 0
  assert np.max(shifts) == 7  # 28 - 21
  assert len(np.unique(shifts, axis=0)) > 30


def test_polymnist_on_pictures(folder):
  source = opened(f"polymnist:{folder}?backgrounds=pictures")
  picture = backgrounds.picture(1)
  digit = opened(f"idx:{folder}")[int(source.images[3, 1])]["image"] >= 128
  got = source.read(3, "m1")
  assert window_of(np.where(digit[..., None], 255 - got, got), picture)


def test_every_picture_is_there():
  shapes = {backgrounds.picture(v).shape for v in range(backgrounds.VIEWS)}
  assert all(h >= 28 and w >= 28 and c == 3 for h, w, c in shapes)


def test_without_scikit_image(folder, monkeypatch):
  monkeypatch.setitem(sys.modules, "skimage", None)
  with pytest.raises(UserError, match="pip install scikit-image"):
    opened(f"polymnist:{folder}?backgrounds=pictures")


def test_polymnist_of_an_archive_of_another_size(tmp_path):
  rng = np.random.default_rng(0)
  x = rng.integers(0, 256, (40, 10, 10, 3), np.uint8)
  np.savez(tmp_path / "a.npz", images=x, labels=np.arange(40) % 2)
  by_name, bare = (
    opened(f"polymnist:{kind}{tmp_path}/a.npz") for kind in ("npz:", "")
  )
  assert by_name.fingerprint() == bare.fingerprint()
  assert bare[0]["m4"].shape == (28, 28, 3)
  assert len(bare) + len(opened(f"polymnist:{tmp_path}/a.npz", "test")) == 40


def test_images_without_labels(tmp_path):
  np.savez(
    tmp_path / "a.npz",
    images=np.eye(4, dtype=np.uint8)[None].repeat(9, 0) * 255,
  )
  for source in ("polymnist", "mnist_label"):
    with pytest.raises(UserError, match="needs images with labels"):
      opened(f"{source}:{tmp_path}/a.npz")


# ----------------------------------------------------------- mnist_label


def test_mnist_label(folder):
  source = opened(f"mnist_label:idx:{folder}")
  raw = opened(f"idx:{folder}")
  assert source.names == ("image", "digit")
  assert len(source) == 60
  for i in (0, 4, 59):
    row, wanted = source[i], raw[i]
    np.testing.assert_array_equal(row["image"][..., 0], wanted["image"])
    assert row["digit"].tolist() == np.eye(3)[wanted["label"]].tolist()
    assert row["label"] == wanted["label"]
  ten = opened(
    f"mnist_label:{folder}",
    "test",
    modalities=("image 14x14x1 bernoulli", "digit 10 categorical size"),
  )
  assert ten.arrays["image"].shape == (20, 14, 14, 1)
  assert ten.arrays["digit"].shape == (20, 10)
  assert ten.arrays["digit"].dtype == np.float32


def test_mnist_label_of_the_small_digits():
  modalities = ("image 8x8x1 bernoulli", "digit 10 categorical")
  source = opened("mnist_label:digits", modalities=modalities)
  digits = Digits("", "train", settings(), 0)
  np.testing.assert_array_equal(source.arrays["image"][..., 0], digits._images)
  assert (source.arrays["digit"].argmax(1) == digits.labels()).all()
  assert isinstance(source, MnistLabel)


# --------------------------------------------------------------- data sets


def test_the_data_set_of_polymnist_makes_rows_when_they_are_asked_for(folder):
  source = f"polymnist:{folder}?translated=1"
  modalities = ("m2 28x28x3 l1", "m0 14x14x3 l1")
  made = settings(source, modalities=modalities, missing=0.4)
  dataset = open_dataset(made, "train")
  assert not dataset.in_memory
  batch = dataset.load_batch(np.array([3, 30]))
  wanted = opened(source)
  for k, i in enumerate((3, 30)):
    seen = dataset.mask[i, 0]
    np.testing.assert_array_equal(
      batch["m2"][k], wanted.read(i, "m2") * np.uint8(seen)
    )
  assert batch["m0"].shape == (2, 14, 14, 3)
  assert 0.2 < 1 - dataset.mask.mean() < 0.5
  assert batch["label"].tolist() == wanted.labels()[[3, 30]].tolist()


@pytest.mark.parametrize(
  ("source", "entries"),
  [
    ("polydigits", ("m0 16x16x3 l1", "m1 16x16x3 l1")),
    ("polymnist:digits", ("m0 28x28x3 l1", "m1 28x28x3 l1")),
    ("mnist_label:digits", ("image 28x28x1 l1", "digit 10 categorical")),
    ("ivae?seed=1", ("x 2 l2", "segment 5 categorical")),
    ("linear_gaussian", ("x0 ", "x1 ")),
  ],
)
def test_without_modalities_the_message_has_them(source, entries):
  with pytest.raises(UserError, match="has several modalities") as e:
    open_dataset(settings(source), "test")
  for entry in entries:
    assert f"'{entry}" in str(e.value)
  # They are what to write.
  text = re.search(r'data.modalities="\((.*)\)"', str(e.value))[1]
  named = tuple(re.findall("'(.*?)'", text))
  dataset = open_dataset(settings(source, modalities=named), "test")
  row = dataset[0]
  assert len(dataset.modalities) >= 2
  for spec in dataset.modalities:
    assert row[spec.name].shape == spec.shape


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
  ("source", "changes", "words"),
  [
    ("polydigits:8", {}, "no option '8'"),
    ("polydigits?views=2", {}, "translated (a whole number from 0 to 1; 0)"),
    ("polydigits?translated=2", {}, "must be a whole number from 0 to 1"),
    ("polydigits", {"modalities": ("m5 16x16x3 l1",)}, "it has m0, m1, m2"),
    ("polymnist", {}, "needs images after it"),
    ("polymnist:?translated=1", {}, "needs images after it"),
    ("polymnist:/no/such/place", {}, "neither a folder nor a file"),
    ("polymnist:digits?translate=1", {}, "Did you mean translated=?"),
    ("polymnist:digits?x=1", {}, "translated (a whole number from 0 to 1; 0)"),
    ("polymnist:digits?translated=2", {}, "must be a whole number from 0 to 1"),
    ("polymnist:digits?translated", {}, "must be a whole number"),
    ("polymnist:digits?rows=0", {}, "must be a whole number, 1 or more"),
    ("polymnist:digits?rows=5&rows=6", {}, "is given twice"),
    ("polymnist:digits?rows=5&", {}, "no option ''"),
    ("polymnist:digits?backgrounds=no", {}, "must be code or pictures"),
    ("polymnist:digits", {"range": (0, 255)}, "is for idx and npz"),
    ("polymnist:digits", {"modalities": ("m9 28x28x3 l1",)}, "it has m0"),
    ("mnist_label:digits?x=1", {}, "There are no options"),
    ("mnist_label:digits", {"modalities": ("y 10 l2",)}, "image, digit"),
  ],
)
def test_mistakes(source, changes, words):
  with pytest.raises(UserError) as e:
    opened(source, **changes)
  assert words in str(e.value)


def test_a_question_mark_in_a_path_is_no_option():
  assert options.split("/a?b/c") == ("/a?b/c", "")
  assert options.split("/a?b/c?rows=1") == ("/a?b/c", "rows=1")
  assert options.split("?seed=1") == ("", "seed=1")


@pytest.mark.parametrize(
  ("source", "wanted"),
  [
    ("polymnist:idx:m?rows=2", "polymnist:idx:{here}/m?rows=2"),
    ("polymnist:m.npz", "polymnist:{here}/m.npz"),
    ("polymnist:tfds:mnist?rows=2", "polymnist:tfds:mnist?rows=2"),
    ("mnist_label:digits", "mnist_label:digits"),
    ("mnist_label:npz:a b", "mnist_label:npz:{here}/a b"),
    ("linear_gaussian?seed=2", "linear_gaussian?seed=2"),
    ("folder:a?b", "folder:{here}/a?b"),
    ("polydigits", "polydigits"),
    ("unknown:x", "unknown:x"),
  ],
)
def test_a_saved_source_means_the_same_everywhere(
  source, wanted, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  resolved = resolve_source(source)
  assert resolved == wanted.format(here=tmp_path)
  assert resolve_source(resolved) == resolved


def test_polymnist_of_the_small_digits_has_one_class_a_row():
  source = Polymnist("digits", "test", settings(), 0)
  classes = Digits("", "test", settings(), 0).labels()[source.images]
  assert (classes == source.labels()[:, None]).all()

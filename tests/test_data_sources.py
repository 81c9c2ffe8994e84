"""Sources, splits, broken files and the cache, with generated files."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gamix_jax import config, data
from gamix_jax.data.decode import ImageTransform
from gamix_jax.data.source import hash_split
from gamix_jax.errors import UserError


def section(source, **changes):
  """Returns the section `data`, as in main, for small images."""
  c = config.base().data
  c.update({"source": str(source), "image_size": 8, "batch_size": 4})
  c.update({"crop": "none", **changes})
  return c


def images(root, names, start=0):
  """Writes images of one colour each; the colour identifies them."""
  for i, name in enumerate(names, start):
    path = Path(root) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (i, 255 - i, 7)).save(
      path, lossless=True, quality=100
    )
  return root


def pixels(dataset):
  """Returns all images: uint8 [n, h, w, c]."""
  return np.stack([dataset[i]["image"] for i in range(len(dataset))])


def says(call, *words):
  """Asserts that the call raises a short UserError with these words."""
  with pytest.raises(UserError) as e:
    call()
  message = str(e.value)
  for word in words:
    assert word in message, message
  assert len(message.splitlines()) <= 2
  return message


def test_importing_is_quick_and_without_tensorflow():
  code = (
    "import sys; import gamix_jax.data;"
    "heavy = ['tensorflow', 'tensorflow_datasets', 'sklearn', 'grain'];"
    "print([m for m in heavy if m in sys.modules])"
  )
  out = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, check=True, text=True
  )
  assert out.stdout.strip() == "[]"


def test_digits():
  c = section("digits", channels=1)
  train, test = (
    data.open_dataset(c, "train", 0),
    data.open_dataset(c, "test", 0),
  )
  assert len(train) + len(test) == 1797
  assert 0.15 < len(test) / 1797 < 0.25
  assert train.label_names == tuple("0123456789")
  from sklearn.datasets import load_digits

  digits = load_digits()
  theirs = {
    (image.astype(int).tobytes(), int(label))
    for image, label in zip(digits.images, digits.target, strict=True)
  }
  got = [
    (np.round(d["image"][:, :, 0] / 255 * 16).astype(int).tobytes(), d["label"])
    for ds in (train, test)
    for d in (ds[i] for i in range(len(ds)))
  ]
  assert set(got) == theirs
  assert pixels(train).max() == 255
  assert np.bincount([train[i]["label"] for i in range(len(train))]).min() > 100
  larger = data.open_dataset(
    section("digits", channels=3, image_size=(16, 24)), "test"
  )
  assert larger[0]["image"].shape == (16, 24, 3)


def test_synthetic():
  c = section("synthetic:6", image_size=(16, 12))
  a, b = data.open_dataset(c, "train", 1), data.open_dataset(c, "train", 1)
  np.testing.assert_array_equal(pixels(a), pixels(b))
  assert pixels(a).shape == (6, 16, 12, 3)
  other = pixels(data.open_dataset(c, "train", 2))
  assert (other != pixels(a)).any()
  assert len(data.open_dataset(c, "test", 1)) == 1
  assert len(data.open_dataset(section("synthetic"), "train", 1)) == 256
  says(lambda: data.open_dataset(section("synthetic:x"), "train"), "number")


def test_held_out_is_stable():
  names = [f"a/{i}.png" for i in range(2000)]
  test = hash_split("here", names, 0.2, "test")
  assert 0.17 < test.mean() < 0.23
  np.testing.assert_array_equal(
    test[:900], hash_split("here", names[:900], 0.2, "test")
  )
  np.testing.assert_array_equal(test, ~hash_split("here", names, 0.2, "train"))
  assert (
    hash_split("here", names[:2], 0.01, "test").sum()
    == hash_split("here", names[:2], 0.99, "test").sum()
    == 1
  )


@pytest.mark.parametrize("test_name", ["test", "val", "Validation"])
def test_folder_with_splits(tmp_path, test_name):
  images(tmp_path / "wrap/train", [f"cat/{i}.png" for i in range(4)])
  images(tmp_path / "wrap/train", ["dog/deep/x.webp"], 10)
  images(tmp_path / f"wrap/{test_name}", ["cat/1.jpg", "bird/2.JPEG"], 20)
  (tmp_path / "wrap" / "list.csv").write_text("x")
  (tmp_path / "__MACOSX").mkdir()
  train = data.open_dataset(section(f"folder:{tmp_path}"), "train")
  test = data.open_dataset(section(f"folder:{tmp_path}/wrap"), "test")
  assert train.label_names == test.label_names == ("bird", "cat", "deep")
  assert [train[i]["label"] for i in range(5)] == [1, 1, 1, 1, 2]
  assert [test[i]["label"] for i in range(2)] == [0, 1]
  assert pixels(train)[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 10]


def test_folder_split_by_hash(tmp_path):
  images(tmp_path / "x", [f"{i}.png" for i in range(40)])
  c = section(f"folder:{tmp_path}")
  train, test = (
    data.open_dataset(c, "train", 3),
    data.open_dataset(c, "test", 4),
  )
  seen = np.concatenate([pixels(train), pixels(test)])[:, 0, 0, 0]
  assert sorted(seen) == list(range(40))
  assert 2 <= len(test) <= 16
  assert train[0]["label"] == -1 and train.label_names == ()
  # Neither more files nor another folder path moves any of them.
  images(tmp_path / "x", [f"more{i}.png" for i in range(20)], 100)
  c.source = f"folder:{tmp_path}/x"
  again = set(pixels(data.open_dataset(c, "test"))[:, 0, 0, 0].tolist())
  assert {v for v in again if v < 100} == set(pixels(test)[:, 0, 0, 0].tolist())


def test_mistakes_with_folders(tmp_path):
  def opening(source, split="train"):
    return lambda: data.open_dataset(section(source), split)

  says(opening(f"folder:{tmp_path}/no"), f"{tmp_path}/no", "does not exist")
  says(opening("folder:"), "--config.data.source=folder:")
  says(opening(f"folder:{tmp_path}"), "holds no files")
  (tmp_path / "a.txt").write_text("x")
  says(opening(f"folder:{tmp_path}"), "no image files")
  says(opening(f"folder:{tmp_path}/a.txt"), "is a file", "Unpack")
  for kind in ("zip", "tar"):
    (tmp_path / f"a.{kind}").write_text("x")
    file = f"{tmp_path}/a.{kind}"
    says(opening(f"folder:{file}"), f"data.source={kind}:{file}")
    (tmp_path / f"a.{kind}").unlink()
  (tmp_path / "a.jpg").write_text("text")
  says(opening(f"folder:{tmp_path}"), "a.jpg")
  images(tmp_path / "one", ["1.png"])
  says(opening(f"folder:{tmp_path}/one"), "one each")
  says(opening("flickr:x"), "'flickr'", "one of digits", "tfds")
  says(opening("digits:x"), "digits")


def test_mistakes_in_the_section():
  for key, value in {
    "channels": 2,
    "image_size": 0,
    "crop": "centre",
    "resize": "lanczos",
    "batch_size": 0,
    "workers": -1,
    "test_fraction": 1.0,
    "max_corrupt_fraction": -1.0,
    "cache": "",
  }.items():
    says(
      lambda k=key, v=value: data.open_dataset(
        section("digits", **{k: v}), "train"
      ),
      f"data.{key}",
    )
  wrong = dict(**section("digits"), chanels=1)
  says(
    lambda: data.open_dataset(wrong, "train"), "data.chanels", "data.channels"
  )


class Stripes(data.Source):
  """A source with the minimum that a source needs."""

  takes_path = True

  def __init__(self, rest, split, settings, seed):
    del settings, seed
    self.rest, self._first = rest, 0 if split == "train" else 20

  def __len__(self):
    return 20

  def __getitem__(self, i):
    i += self._first
    return {"image": np.full((4, 6), i, np.uint8), "label": i % 3}


def test_a_source_of_ones_own(tmp_path, monkeypatch):
  """One class and one line: everything works as for the other sources."""
  data.SOURCES.register("stripes")(Stripes)
  monkeypatch.chdir(tmp_path)
  assert data.resolve_source("stripes:a/b") == f"stripes:{tmp_path}/a/b"
  c = section("stripes:x", channels=1)
  train, test = (data.open_dataset(c, s) for s in ("train", "test"))
  assert train.source.rest == "x"
  assert pixels(train).max((1, 2, 3)).tolist() == list(range(20))
  assert train[4]["label"] == train.labels()[4] == 1
  assert train.fingerprint() != test.fingerprint()
  c.fingerprint = data.fingerprint(train, test)
  for c.cache in ("none", "memory", str(tmp_path / "c"), str(tmp_path / "c")):
    opened = data.open_dataset(c, "train")
    np.testing.assert_array_equal(pixels(opened), pixels(train))
  c.exclude_labels = (1,)
  assert set(data.open_dataset(c, "train").labels()) == {0, 2}
  stream = data.batches(train, batch_size=4, seed=0, train=False, workers=1)
  assert next(stream)["image"][:, 0, 0, 0].tolist() == [0, 1, 2, 3]
  stream.close()
  c.range = (0, 1)
  says(lambda: data.open_dataset(c, "train"), "data.range", "npz", "stripes")
  other = type("Stripes", (Stripes,), {"__module__": "other"})
  with pytest.raises(ValueError, match="stripes"):
    data.SOURCES.register("stripes", other)


def test_the_default_fingerprint_is_of_images_and_labels():
  """The cache's key is the fingerprint by default."""
  x = np.arange(5 * 4 * 4, dtype=np.uint8).reshape(5, 4, 4)
  fingerprints = []

  class Given(data.Source):
    def __init__(self, images, labels):
      self._images, self._labels = images, labels

    def __len__(self):
      return len(self._images)

    def __getitem__(self, i):
      return {"image": self._images[i], "label": self._labels[i]}

  for images, labels in (
    (x, [0] * 5),
    (x[::-1], [0] * 5),
    (x.reshape(5, 2, 8), [0] * 5),
    (x, [0, 0, 0, 0, 1]),
    (x[:4], [0] * 4),
    ([image.tobytes() for image in x], [0] * 5),
  ):
    source = Given(images, labels)
    assert source.fingerprint() == Given(images, labels).fingerprint()
    assert source.cache_key() == source.fingerprint()
    fingerprints.append(source.fingerprint())
  assert len(set(fingerprints)) == len(fingerprints)
  assert all(len(f) == 16 for f in fingerprints)


def test_a_function_as_a_source():
  @data.SOURCES.register("noise")
  def open_noise(rest, split, settings, seed):
    rng = np.random.default_rng((seed, split == "test"))
    shape = (int(rest), *settings.shape)
    return data.ArraySource(rng.integers(0, 256, shape, np.uint8))

  train = data.open_dataset(section("noise:7"), "train", 3)
  assert pixels(train).shape == (7, 8, 8, 3)
  assert train.labels().tolist() == [-1] * 7 and train.label_names == ()
  assert data.resolve_source("noise:7") == "noise:7"


def hundred(root):
  """97 good images, one text file, one empty, one truncated."""
  names = [f"{i:02}.png" for i in range(97)]
  images(root, names)
  (root / "20x.jpg").write_text("not an image")
  (root / "40x.png").write_bytes(b"")
  raw = (root / "60.png").read_bytes()
  (root / "60x.png").write_bytes(raw[: len(raw) // 2])
  return root


def both(c):
  """Reads all of both splits."""
  splits = [data.open_dataset(c, s) for s in ("train", "test")]
  for dataset in splits:
    pixels(dataset)
  return splits


def test_broken_files_are_skipped_and_named(tmp_path, caplog):
  hundred(tmp_path)
  c = section(f"folder:{tmp_path}", max_corrupt_fraction=0.03)
  with caplog.at_level(logging.WARNING):
    splits = both(c)
  names = {"20x.jpg", "40x.png", "60x.png"}
  assert names == {n for dataset in splits for n in dataset.broken}
  assert sum(len(dataset) for dataset in splits) == 98
  assert all(n in caplog.text for n in names)
  # The next intact image replaces the truncated one.
  (found,) = (d for d in splits if "60x.png" in d.broken)
  at = [found.source.name(i) for i in range(len(found))].index("60x.png")
  np.testing.assert_array_equal(
    found[at]["image"], found[(at + 1) % len(found)]["image"]
  )
  c.max_corrupt_fraction = 0.02
  says(lambda: both(c), "3 of the 100", "20x.jpg", "data.max_corrupt_fraction")
  c.max_corrupt_fraction = 0.01
  says(lambda: data.open_dataset(c, "train"), "2 of the 100")


def test_a_deleted_file_is_named(tmp_path):
  images(tmp_path, [f"{i}.png" for i in range(20)])
  dataset = data.open_dataset(section(f"folder:{tmp_path}"), "train")
  name = dataset.source.name(3)
  (tmp_path / name).unlink()
  says(lambda: dataset[3], str(tmp_path / name), "start")
  for workers in (0, 1):
    stream = data.batches(
      dataset, batch_size=len(dataset), seed=0, workers=workers
    )
    says(lambda s=stream: next(s), str(tmp_path / name))
    stream.close()


def test_npz(tmp_path):
  rng = np.random.default_rng(0)
  x = rng.integers(0, 256, (30, 8, 8, 3), np.uint8)
  y = np.arange(30)
  np.savez(tmp_path / "a.npz", images=x, labels=y)
  c = section(f"npz:{tmp_path}/a.npz")
  train, test = data.open_dataset(c, "train"), data.open_dataset(c, "test")
  labels = [d[i]["label"] for d in (train, test) for i in range(len(d))]
  assert sorted(labels) == list(range(30)) and len(test) > 1
  np.testing.assert_array_equal(pixels(train), x[labels[: len(train)]])

  grey = x[..., 0]
  for name, stored, extra in (
    ("unit", grey / np.float32(255), {}),
    ("signed", grey / np.float32(127.5) - 1, {}),
    ("ints", grey.astype(np.int64), {}),
    ("stated", grey.astype(np.uint16) * 16, {"range": [0, 255 * 16]}),
  ):
    np.savez(
      tmp_path / "b.npz", x_train=stored, x_test=stored[:5], y_test=y[:5],
      **extra,
    )  # fmt: skip
    c = section(f"npz:{tmp_path}/b.npz", channels=1)
    test = data.open_dataset(c, "test")
    np.testing.assert_array_equal(pixels(test)[..., 0], grey[:5], name)
    assert test[4]["label"] == 4
    assert len(data.open_dataset(c, "train")) == 30

  np.savez(tmp_path / "c.npz", x)  # numpy names it arr_0
  train = data.open_dataset(section(f"npz:{tmp_path}/c.npz"), "train")
  np.testing.assert_array_equal(pixels(train), x[labels[: len(train)]])


def test_mistakes_with_npz(tmp_path):
  path = tmp_path / "a.npz"
  grey = np.zeros((4, 8, 8), np.uint8)

  def opening(**arrays):
    np.savez(path, **arrays)
    return lambda: data.open_dataset(section(f"npz:{path}"), "train")

  says(
    lambda: data.open_dataset(section("npz:/no.npz"), "train"), "does not exist"
  )
  says(opening(pictures=grey), "pictures", "x_train")
  says(opening(images=np.zeros((4, 8, 8, 5), np.uint8)), "[4, 8, 8, 5]")
  says(opening(images=np.zeros((4, 3, 8, 8), np.uint8)), "moveaxis")
  says(opening(images=np.zeros((4, 64), np.uint8)), "[n, h, w]")
  says(opening(images=grey + 7.0), "range")
  says(opening(images=np.full((4, 8, 8), np.nan)), "finite")
  says(opening(images=grey, labels=np.zeros(3, int)), "labels")
  says(opening(images=np.array([None, {}])), "cannot be read")
  path.write_bytes(b"PK but no archive")
  says(
    lambda: data.open_dataset(section(f"npz:{path}"), "train"), "cannot be read"
  )


@pytest.fixture
def photographs(tmp_path):
  """Noise of various sizes, and one truncated file."""
  rng = np.random.default_rng(0)
  root = tmp_path / "in"
  root.mkdir()
  for i in range(30):
    noise = rng.integers(0, 256, (20 + i, 30, 3), np.uint8)
    Image.fromarray(noise).save(root / f"{i}.jpg")
  raw = (root / "7.jpg").read_bytes()
  (root / "7.jpg").write_bytes(raw[: len(raw) // 2])
  return root


def test_cached_is_uncached(photographs, tmp_path, monkeypatch):
  def opened(split="train", **kw):
    c = section(f"folder:{photographs}", max_corrupt_fraction=0.1, **kw)
    return data.open_dataset(c, split)

  folder = tmp_path / "cache"
  for split in ("train", "test"):
    plain = opened(split)
    want = pixels(plain)
    for cache in ("memory", str(folder), str(folder)):
      got = opened(split, cache=cache)
      np.testing.assert_array_equal(pixels(got), want)
      assert sorted(got.broken) == sorted(plain.broken)
      assert [got[i]["label"] for i in range(3)] == [-1] * 3

  caches = {p.name for p in folder.iterdir() if p.is_dir()}
  assert len(caches) == 2  # no partial one remains
  monkeypatch.setattr(ImageTransform, "__call__", None)  # found, not decoded
  opened(cache=str(folder))
  monkeypatch.undo()
  # Each of these changes the pixels.
  for kw in (
    {"resize": "nearest"},
    {"crop": "square"},
    {"channels": 1},
    {"image_size": 9},
  ):
    opened(cache=str(folder), **kw)
  Image.new("RGB", (9, 9)).save(photographs / "1.jpg")
  changed = opened(cache=str(folder))
  assert len([p for p in folder.iterdir() if p.is_dir()]) == 2 + 5
  np.testing.assert_array_equal(pixels(changed), pixels(opened()))


def test_a_damaged_cache_is_made_again(photographs, tmp_path, caplog):
  folder = tmp_path / "cache"
  c = section(
    f"folder:{photographs}", max_corrupt_fraction=0.1, cache=str(folder)
  )
  want = pixels(data.open_dataset(c, "train"))
  (cache,) = (p for p in folder.iterdir() if p.is_dir())
  raw = (cache / "images.npy").read_bytes()
  (cache / "images.npy").write_bytes(raw[:-100])
  stale = folder / f".part-1-{cache.name}"  # of a killed process
  stale.mkdir()
  np.testing.assert_array_equal(pixels(data.open_dataset(c, "train")), want)
  assert "damaged" in caplog.text
  assert (cache / "images.npy").read_bytes() == raw
  assert not stale.exists()


def test_several_make_one_cache(photographs, tmp_path):
  folder = tmp_path / "cache"
  c = section(
    f"folder:{photographs}", max_corrupt_fraction=0.1, cache=str(folder)
  )
  code = (
    "import json, sys; from gamix_jax import data;"
    "d = data.open_dataset(json.loads(sys.argv[1]), 'train');"
    "print(sum(int(d[i]['image'].sum()) for i in range(len(d))))"
  )
  ran = [
    subprocess.Popen(
      [sys.executable, "-c", code, json.dumps(c.to_dict())],
      stdout=subprocess.PIPE,
    )
    for _ in range(3)
  ]
  sums = {int(p.communicate()[0]) for p in ran}
  assert sums == {int(pixels(data.open_dataset(c, "train")).astype(int).sum())}
  assert [p.returncode for p in ran] == [0, 0, 0]


def test_no_room_for_a_cache(photographs, tmp_path, monkeypatch):
  (tmp_path / "file").write_text("")
  c = section(f"folder:{photographs}", cache=str(tmp_path / "file" / "x"))
  says(
    lambda: data.open_dataset(c, "train"), "data.cache", str(tmp_path / "file")
  )
  if Path("/dev/full").exists():
    c = section(
      f"folder:{photographs}",
      max_corrupt_fraction=0.1,
      cache=str(tmp_path / "full"),
    )
    real = Path.open
    monkeypatch.setattr(
      Path,
      "open",
      lambda self, *a, **k: real(
        Path("/dev/full") if self.name == "images.npy" else self, *a, **k
      ),
    )
    says(lambda: data.open_dataset(c, "train"), "No space left")
    left = [p for p in (tmp_path / "full").iterdir() if p.is_dir()]
    assert left == []
  monkeypatch.setattr(os, "sysconf", lambda name: 10)  # 100 bytes of memory
  c = section(f"folder:{photographs}", cache="memory")
  says(lambda: data.open_dataset(c, "train"), "--config.data.cache=")


def test_too_many_broken_while_caching(photographs, tmp_path):
  for cache in ("memory", str(tmp_path / "c")):
    c = section(f"folder:{photographs}", max_corrupt_fraction=0.01, cache=cache)
    says(lambda c=c: both(c), "7.jpg", "data.max_corrupt_fraction")

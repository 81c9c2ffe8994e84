"""MNIST's files and similar ones: values, names, every kind of damage."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from program import ROOT, noise
from test_data_sources import pixels, says, section

from gamix_jax import data

MNIST = Path(os.environ.get("MNIST", ROOT.parent / "shared" / "data" / "mnist"))
TYPES = {"|u1": 0x08, "|i1": 0x09, ">i4": 0x0C, ">f4": 0x0D}


def idx(values):
  """Returns an array as an idx file."""
  head = bytes([0, 0, TYPES[values.dtype.str], values.ndim])
  return (
    head + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
  )


def write(folder, name, values):
  """Writes an array to a file, compressed if its name says so."""
  folder.mkdir(parents=True, exist_ok=True)
  raw = values if isinstance(values, bytes) else idx(values)
  (folder / name).write_bytes(
    gzip.compress(raw, mtime=0) if name.endswith(".gz") else raw
  )


def labels_of(n):
  return (np.arange(n) * 7 % 10).astype(np.uint8)


def mnist(
  folder, name="{split}-{kind}-idx{axes}-ubyte", test="t10k", seed=0, n=(9, 4)
):
  """Writes a data set; returns {"train": (images, labels), "test": ...}."""
  splits = {}
  for k, (split, count) in enumerate(zip(("train", "test"), n, strict=True)):
    x, y = noise(seed + k, count, 8, 8), labels_of(count)
    word = test if split == "test" else split
    write(folder, name.format(split=word, kind="images", axes=3), x)
    write(folder, name.format(split=word, kind="labels", axes=1), y)
    splits[split] = x, y
  return splits


def opened(source, split="train", **changes):
  return data.open_dataset(
    section(f"idx:{source}", channels=1, **changes), split
  )


def assert_is(dataset, images, labels):
  """Asserts that the data set has these pixels and labels, in this order."""
  np.testing.assert_array_equal(pixels(dataset)[..., 0], images)
  assert [dataset[i]["label"] for i in range(len(dataset))] == list(labels)


@pytest.mark.parametrize(
  ("name", "test"),
  [
    ("{split}-{kind}-idx{axes}-ubyte", "t10k"),
    ("{split}-{kind}-idx{axes}-ubyte.gz", "t10k"),
    ("{split}-{kind}.idx{axes}-ubyte", "t10k"),
    ("{split}-{kind}.idx{axes}-ubyte.gz", "test"),
    ("kuzushiji-{split}-{kind}-idx{axes}-ubyte.gz", "t10k"),
  ],
)
def test_the_values_and_names(tmp_path, name, test):
  splits = mnist(tmp_path, name, test)
  (tmp_path / "README.md").write_text("x")
  for split in ("train", "test"):
    dataset = opened(tmp_path, split)
    assert_is(dataset, *splits[split])
    assert dataset.label_names == ()
    assert dataset.source.total == 13


def test_images_are_not_square(tmp_path):
  x = noise(0, 5, 6, 10)
  write(tmp_path, "train-images-idx3-ubyte", x)
  write(tmp_path, "t10k-images-idx3-ubyte", x)
  assert_is(opened(tmp_path, image_size=(6, 10)), x, [-1] * 5)


def test_emnist_is_transposed_back(tmp_path):
  name = "emnist-{set}-{{split}}-{{kind}}-idx{{axes}}-ubyte.gz"
  letters = mnist(tmp_path, name.format(set="letters"), "test", seed=4)
  (tmp_path / "emnist-letters-mapping.txt").write_text("1 65 97\n")
  for source in (tmp_path, f"{tmp_path}/emnist-letters"):  # the only set
    for split, (x, y) in letters.items():
      assert_is(opened(source, split), x.transpose(0, 2, 1), y)

  balanced = mnist(tmp_path, name.format(set="balanced"), "test", seed=8)
  for which, splits in (("letters", letters), ("balanced", balanced)):
    x, y = splits["test"]
    dataset = opened(f"{tmp_path}/emnist-{which}", "test")
    assert_is(dataset, x.transpose(0, 2, 1), y)
  message = says(lambda: opened(tmp_path), "2 sets", "emnist-balanced")
  assert f"idx:{tmp_path}/emnist-letters" in message
  says(lambda: opened(f"{tmp_path}/emnist"), "emnist-balanced, emnist-letters")

  plain = mnist(tmp_path, seed=12)  # no prefix, and none is given
  assert_is(opened(tmp_path), *plain["train"])


def test_emnist_without_a_test_split_and_not_square(tmp_path):
  x = noise(0, 20, 6, 10)
  write(tmp_path, "emnist-digits-train-images-idx3-ubyte", x)
  parts = [opened(tmp_path, s, image_size=(10, 6)) for s in ("train", "test")]
  got = np.concatenate([pixels(part)[..., 0] for part in parts])
  want = x.transpose(0, 2, 1)
  assert {a.tobytes() for a in got} == {a.tobytes() for a in want}


def test_without_labels(tmp_path):
  splits = mnist(tmp_path)
  (tmp_path / "t10k-labels-idx1-ubyte").unlink()
  assert_is(opened(tmp_path, "test"), splits["test"][0], [-1] * 4)
  assert_is(opened(tmp_path), *splits["train"])


def test_without_test_files_a_share_is_held_out(tmp_path):
  x, y = noise(0, 60, 8, 8), np.arange(60, dtype=np.uint8)
  write(tmp_path / "a", "train-images-idx3-ubyte.gz", x)
  write(tmp_path / "a", "train-labels-idx1-ubyte.gz", y)
  found = {}
  for split in ("train", "test"):
    dataset = opened(tmp_path / "a", split, test_fraction=0.3)
    kept = dataset.labels()
    assert_is(dataset, x[kept], kept)
    assert dataset.source.total == 60
    found[split] = set(kept.tolist())
  assert found["train"] | found["test"] == set(range(60))
  assert not found["train"] & found["test"]
  assert 8 < len(found["test"]) < 28
  # As with an archive, by index only: adding images moves none of the others.
  more = np.concatenate([x, noise(1, 20, 8, 8)])
  write(tmp_path / "b", "train-images-idx3-ubyte", more)
  np.savez(tmp_path / "b.npz", images=more)
  longer = pixels(opened(tmp_path / "b", "test", test_fraction=0.3))
  np.testing.assert_array_equal(
    longer[: len(found["test"])], x[sorted(found["test"])][..., None]
  )
  archive = section(f"npz:{tmp_path}/b.npz", channels=1, test_fraction=0.3)
  np.testing.assert_array_equal(
    longer, pixels(data.open_dataset(archive, "test"))
  )


def test_the_unpacked_file_and_content_are_what_counts(tmp_path):
  """Kaggle's folders with a file's name; a .gz that a browser unpacked."""
  splits = mnist(tmp_path, "{split}-{kind}.idx{axes}-ubyte")
  (tmp_path / "train-images-idx3-ubyte").mkdir()
  write(tmp_path, "t10k-images-idx3-ubyte.gz", b"not read")
  assert_is(opened(tmp_path), *splits["train"])
  assert_is(opened(tmp_path, "test"), *splits["test"])
  plain = tmp_path / "train-images.idx3-ubyte"
  plain.rename(tmp_path / "train-images-idx3-ubyte.gz")
  assert_is(opened(tmp_path), *splits["train"])


@pytest.mark.parametrize("cache", ["memory", "folder"])
def test_cache_and_excluded_labels(tmp_path, cache):
  splits = mnist(tmp_path / "x", n=(40, 8))
  cache = str(tmp_path / "cache") if cache == "folder" else cache
  x, y = splits["train"]
  for _ in range(2):
    train = opened(tmp_path / "x", cache=cache, exclude_labels=(3,))
    assert_is(train, x[y != 3], y[y != 3])
    assert_is(opened(tmp_path / "x", "test", cache=cache), *splits["test"])
  assert train.excluded == (3,) and 3 in y
  says(lambda: opened(tmp_path / "x", exclude_labels=(11,)), "class 11")


def test_mistakes_with_the_folder(tmp_path):
  says(lambda: opened(""), "names no folder", "--config.data.source=idx:")
  says(lambda: opened(tmp_path / "no" / "no"), "does not exist")
  says(lambda: opened(tmp_path / "mnst"), f"{tmp_path}/mnst does not exist")
  says(lambda: opened(tmp_path), "no idx files", "--config.data.source=idx:")
  mnist(tmp_path / "MNIST" / "raw")
  says(lambda: opened(tmp_path), f"idx:{tmp_path}/MNIST/raw")
  says(lambda: opened(tmp_path / "MNIST"), f"idx:{tmp_path}/MNIST/raw")
  raw = tmp_path / "MNIST" / "raw"
  file = raw / "train-images-idx3-ubyte"
  says(lambda: opened(file), "is a file", f"source=idx:{raw}")
  file.unlink()
  says(lambda: opened(raw), "train-labels-idx1-ubyte", "no training images")
  says(lambda: opened(raw, "test"), "no training images")
  (raw / "train-labels-idx1-ubyte").unlink()
  says(lambda: opened(raw), "Add train-images-idx3-ubyte.gz")
  mnist(raw)
  (raw / "t10k-images-idx3-ubyte").unlink()
  says(lambda: opened(raw), "t10k-labels-idx1-ubyte", "no file of test images")
  write(tmp_path / "one", file.name, noise(0, 1, 8, 8))
  says(lambda: opened(tmp_path / "one"), "one each")
  says(lambda: data.open_dataset(section("idy:x"), "train"), "'idy'", "idx")


IMAGES = idx(noise(0, 6, 8, 8))
LABELS = idx(labels_of(6))
PACKED = gzip.compress(IMAGES, mtime=0)
FLIPPED = PACKED[:200] + bytes([PACKED[200] ^ 255]) + PACKED[201:]


@pytest.mark.parametrize(
  ("kind", "content", "words"),
  [
    ("images", LABELS, ["0x00000803", "0x00000801", "1 axis", "original"]),
    ("labels", IMAGES, ["0x00000801", "0x00000803", "3 axes"]),
    (
      "images",
      idx(np.zeros((6, 8, 8), ">f4")),
      ["0x00000d03", "float32", "unsigned bytes, 3 axes", "npz:<path>"],
    ),
    ("images", idx(np.zeros((6, 8, 8), "i1")), ["signed bytes, 3 axes"]),
    ("images", idx(noise(0, 6, 8, 8, 3)), ["unsigned bytes, 4 axes"]),
    ("labels", idx(np.zeros((6, 8), ">i4")), ["0x00000c02", "int32, 2 axes"]),
    ("images", b"<!DOCTYPE html><html>", ["0x3c21444f", "not an idx file"]),
    ("images", b"", ["0 bytes", "Download it again"]),
    ("labels", LABELS[:7], ["7 bytes", "too few"]),
    ("images", IMAGES[:-10], ["6x8x8 images, 400 bytes", "has 390", "trunc"]),
    ("images", IMAGES + b"more", ["400 bytes", "has 404", "damaged"]),
    ("labels", LABELS[:-1], ["6 labels, 14 bytes", "has 13", "truncated"]),
    ("labels", idx(labels_of(5)), ["5 labels", "6 images", "belong"]),
    ("labels", idx(labels_of(7)), ["7 labels", "6 images", "belong"]),
    ("images", idx(noise(0, 0, 8, 8)), ["0x8x8", "nothing in it"]),
    ("images", PACKED[:-30], ["truncated", f"{len(PACKED) - 30:,} bytes"]),
    ("images", PACKED[:5], ["truncated", "Download it again"]),
    ("images", FLIPPED, ["corrupt", "unpacked", "Download it again"]),
    ("images", PACKED[:-8] + bytes(8), ["corrupt", "CRC"]),
    (
      "images",
      gzip.compress(IMAGES[:-5], mtime=0),
      ["400 bytes", "395", "truncated"],
    ),
  ],
)
def test_mistakes_in_a_file(tmp_path, kind, content, words):
  """In a file of either split; `says` also expects the file's name."""
  for split, word in (("train", "train"), ("test", "t10k")):
    folder = tmp_path / split
    mnist(folder, n=(6, 6))
    name = f"{word}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
    file = folder / name
    file.write_bytes(content)
    says(lambda f=folder, s=split: opened(f, s), str(file), *words)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
  mnist(tmp_path)

  def refuse(self, *args, **kwargs):
    raise PermissionError(13, "Permission denied", str(self))

  monkeypatch.setattr(Path, "open", refuse)
  says(lambda: opened(tmp_path), "train-images-idx3", "Permission denied")


@pytest.mark.skipif(
  not MNIST.is_dir(), reason="needs MNIST's four files in the folder $MNIST"
)
def test_the_real_ones():
  """Checks the published counts of each digit, and moments."""
  counts = {
    "train": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    "test": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
  }
  first = {"train": [5, 0, 4, 1, 9], "test": [7, 2, 1, 0, 4]}
  for split, count in counts.items():
    dataset = opened(MNIST, split, image_size=28)
    assert np.bincount(dataset.labels()).tolist() == count
    assert [dataset[i]["label"] for i in range(5)] == first[split]
    assert dataset.source.total == 70_000
  train = opened(MNIST, image_size=28)
  x = train.load_batch(np.arange(len(train)))["image"] / np.float32(255)
  assert x.mean() == pytest.approx(0.1307, abs=1e-4)
  assert x.std() == pytest.approx(0.3081, abs=1e-4)

"""hf: opens what the datasets library saved, Parquet files and image folders.

The files are written by the library and by pyarrow; nothing is downloaded.
"""

import io
import logging
import pickle
import sys

import numpy as np
import pytest
from PIL import Image
from program import noise
from test_data_sources import images, pixels, says, section

from gamix_jax import data
from gamix_jax.data.huggingface import HuggingFace


def opened(source, split="train", **changes):
  return data.open_dataset(section(f"hf:{source}", **changes), split)


def test_without_the_library(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "datasets", None)
  says(lambda: opened(tmp_path), "pip install 'gamix_jax[hf]'")


def test_names_and_paths(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "here").mkdir()
  for rest, resolved in {
    "": "",
    "mnist": "mnist",
    "user/name?image=x&revision=a.b": "user/name?image=x&revision=a.b",
    "here?label=y": f"{tmp_path}/here?label=y",
    "./x": f"{tmp_path}/x",
    "a/b/c": f"{tmp_path}/a/b/c",
    "/data/x": "/data/x",
  }.items():
    assert HuggingFace.resolve_rest(rest) == resolved


@pytest.fixture
def datasets(tmp_path, monkeypatch):
  """The library, without a network and with its cache here."""
  library = pytest.importorskip(
    "datasets", reason="needs pip install 'gamix_jax[hf]'"
  )
  monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
  monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
  library.disable_progress_bars()
  return library


def png(i):
  out = io.BytesIO()
  Image.fromarray(noise(i, 8, 8, 3)).save(out, "PNG")
  return out.getvalue()


def made(datasets, rows, broken=(), label="label", image="image"):
  """A split of the images of these numbers, labels i % 2."""
  features = {
    image: datasets.Image(),
    label: datasets.ClassLabel(names=["even", "odd"]),
    "text": datasets.Value("string"),
  }
  return datasets.Dataset.from_dict(
    {
      image: [
        {"bytes": b"x" if i in broken else png(i), "path": None} for i in rows
      ],
      label: [i % 2 for i in rows],
      "text": [f"t{i % 3}" for i in rows],
    },
    features=datasets.Features(features),
  )


def wanted(rows):
  return np.stack([noise(i, 8, 8, 3) for i in rows])


def test_saved_to_disk(datasets, tmp_path):
  place = tmp_path / "d"
  datasets.DatasetDict(
    {
      "train": made(datasets, range(30)),
      "validation": made(datasets, range(30, 36)),
      "other": made(datasets, range(40, 44)),
    }
  ).save_to_disk(place)
  train, test = opened(place), opened(place, "test")
  np.testing.assert_array_equal(pixels(train), wanted(range(30)))
  np.testing.assert_array_equal(pixels(test), wanted(range(30, 36)))
  assert train.label_names == test.label_names == ("even", "odd")
  assert train.labels().tolist() == [i % 2 for i in range(30)]
  assert train[3]["label"] == 1
  assert train.source.name(3) == "train[3]"
  words = opened(f"{place}?label=text&train=other", "test")
  assert words.label_names == ("t0", "t1", "t2")
  assert words.labels().tolist() == [i % 3 for i in range(30, 36)]
  other = opened(f"{place}?train=other&test=train")
  np.testing.assert_array_equal(pixels(other), wanted(range(40, 44)))
  # Batches are a function of seed and step, and worker processes read too.
  how = dict(batch_size=8, seed=5, flip=True)
  plain = data.batches(train, **how)
  first = [next(plain) for _ in range(4)]
  working = data.batches(train, start=3, workers=1, **how)
  got = next(working)
  for key, value in first[3].items():
    np.testing.assert_array_equal(got[key], value)
  plain.close()
  working.close()
  assert len(pickle.dumps(train.source)) < 10_000
  assert "tensorflow" not in sys.modules


def test_without_a_test_split_and_with_broken_images(
  datasets, tmp_path, caplog
):
  made(datasets, range(40), broken=(7, 20)).save_to_disk(tmp_path / "d")
  c = dict(max_corrupt_fraction=0.1)
  with caplog.at_level(logging.INFO):
    train = opened(tmp_path / "d", **c)
    test = opened(tmp_path / "d", "test", **c)
  assert "20 % of train are held out" in caplog.text
  seen = np.concatenate([pixels(train), pixels(test)])
  rows = [i for i in range(40) if i not in (7, 20)]
  want = {x.tobytes() for x in wanted(rows)}
  assert {x.tobytes() for x in seen} == want and len(seen) == 38
  assert (
    train.broken
    == test.broken
    == dict.fromkeys(("train[7]", "train[20]"), "does not begin as an image")
  )
  says(lambda: opened(tmp_path / "d", max_corrupt_fraction=0.0), "are broken")
  assert train.fingerprint() != test.fingerprint()
  # Another place changes nothing; another image does.
  made(datasets, range(40), broken=(7, 20)).save_to_disk(tmp_path / "e")
  assert opened(tmp_path / "e", **c).fingerprint() == train.fingerprint()
  made(datasets, [*range(39), 50], broken=(7, 20)).save_to_disk(tmp_path / "f")
  assert {
    opened(tmp_path / "f", s, **c).fingerprint() for s in ("train", "test")
  } != {train.fingerprint(), test.fingerprint()}


def test_parquet(datasets, tmp_path):
  """By the library, and by pyarrow without the library's features."""
  import pyarrow as pa
  import pyarrow.parquet as pq

  folder = tmp_path / "d"
  folder.mkdir()
  made(datasets, range(20), image="img").to_parquet(
    folder / "train-00000-of-00001.parquet"
  )
  made(datasets, range(20, 25), image="img").to_parquet(
    folder / "test-00000-of-00001.parquet"
  )
  train, test = opened(folder), opened(folder, "test")
  np.testing.assert_array_equal(pixels(train), wanted(range(20)))
  np.testing.assert_array_equal(pixels(test), wanted(range(20, 25)))
  assert test.label_names == ("even", "odd")

  table = pa.table(
    {
      "payload": [png(i) for i in range(20)],
      "number": [None if i == 3 else i + 5 for i in range(20)],
      "word": [None if i == 3 else "ab"[i % 2] for i in range(20)],
    }
  )
  pq.write_table(table, tmp_path / "x.parquet")
  file = tmp_path / "x.parquet"
  both = [opened(f"{file}?label=number", s) for s in ("train", "test")]
  for dataset in both:
    assert len(dataset) and dataset.label_names == ()
    for i in range(len(dataset)):
      label = dataset[i]["label"]
      row = int(dataset.source.name(i)[6:-1])
      assert label == (-1 if row == 3 else row + 5)
      np.testing.assert_array_equal(dataset[i]["image"], noise(row, 8, 8, 3))
  words = [opened(f"{file}?label=word", s) for s in ("train", "test")]
  assert words[0].label_names == ("a", "b")
  assert {-1, 0, 1} == {n for d in words for n in d.labels().tolist()}
  assert set(opened(file).labels().tolist()) == {-1}


def test_image_folder(datasets, tmp_path):
  images(tmp_path / "d/train", [f"{c}/{i}.png" for c in "ab" for i in range(9)])
  images(tmp_path / "d/test", ["a/1.png", "b/2.png"], 50)
  train, test = opened(tmp_path / "d"), opened(tmp_path / "d", "test")
  plain = data.open_dataset(section(f"folder:{tmp_path}/d"), "train")
  assert train.label_names == plain.label_names == ("a", "b")
  np.testing.assert_array_equal(pixels(train), pixels(plain))
  np.testing.assert_array_equal(train.labels(), plain.labels())
  assert len(test) == 2
  (tmp_path / "d/train/a/3.png").unlink()
  says(lambda: pixels(train), "3.png", "at the start")


def test_a_data_set_of_the_hub_that_is_in_the_cache(datasets, tmp_path):
  """Moved to where a download would be, and opened by name, offline."""
  folder = tmp_path / "name"
  folder.mkdir()
  made(datasets, range(12)).to_parquet(folder / "train-00000-of-00001.parquet")
  datasets.load_dataset(str(folder))
  (tmp_path / "hf/name").rename(tmp_path / "hf/user___name")
  both = [opened("user/name", split) for split in ("train", "test")]
  assert sum(map(len, both)) == 12
  local = [opened(folder, split) for split in ("train", "test")]
  for a, b in zip(both, local, strict=True):
    assert a.fingerprint() == b.fingerprint()
    np.testing.assert_array_equal(pixels(a), pixels(b))
  says(lambda: opened("user/other"), "cannot be opened", "user/other")


def test_mistakes(datasets, tmp_path):
  place = tmp_path / "d"
  made(datasets, range(9)).save_to_disk(place)

  def opening(rest):
    return lambda: opened(rest)

  says(opening(""), "names no data set", "hf:user/name")
  says(opening("/no/where"), "/no/where does not exist")
  says(opening("gamix-jax/no-such-set"), "cannot be opened", "save_to_disk")
  says(opening(f"{place}?imag=x"), "image=?")
  says(opening(f"{place}?image=x"), "'x' is not there", "image (", "text (str")
  says(opening(f"{place}?image=text"), "'text' holds no images")
  says(opening(f"{place}?label=x"), "'x' is not there", "label (")
  says(opening(f"{place}?label=image"), "holds no labels")
  says(opening(f"{place}?test=x"), "no split 'x'", "train")
  text = datasets.Dataset.from_dict({"a": [1, 2], "b": ["x", "y"]})
  text.save_to_disk(tmp_path / "t")
  says(opening(tmp_path / "t"), "no column of images", "a (int64), b (string)")
  two = made(datasets, range(4), image="left")
  two = two.add_column("right", [b"x"] * 4)
  two.save_to_disk(tmp_path / "two")
  says(opening(tmp_path / "two"), "several columns of images", "left, right")
  says(opening(f"{tmp_path}/two?image=right"), "no readable image", "right")
  (tmp_path / "empty").mkdir()
  says(opening(tmp_path / "empty"), "cannot be opened")
  (tmp_path / "bad.parquet").write_bytes(b"PAR1xxxx")
  says(opening(tmp_path / "bad.parquet"), "cannot be opened")
  for file in place.glob("*.arrow"):
    file.write_bytes(b"x")
  says(opening(place), "cannot be opened")

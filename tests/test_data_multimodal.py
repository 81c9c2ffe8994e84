"""Several modalities: their entries, sources, masks and batches."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from gamix_jax import config, data
from gamix_jax.data import missing
from gamix_jax.data.modalities import ModalitySpec, parse
from gamix_jax.errors import UserError

ENTRIES = ("m0 4x4x3 l1", "x 5 l2 0.5", "digit 10 categorical size")
COUNT = 200


def section(source, modalities=ENTRIES, **changes):
  """Returns the section `data`, as in main."""
  c = config.base().data
  c.update({"source": str(source), "batch_size": 8, "crop": "none"})
  c.update({"flip": False, "modalities": modalities, **changes})
  return c


def says(call, *words):
  """Asserts that the call raises a short UserError with these words."""
  with pytest.raises(UserError) as e:
    call()
  message = str(e.value)
  for word in words:
    assert word in message, message
  assert len(message.splitlines()) <= 2


def rows(n=COUNT, start=0):
  """Returns arrays of the modalities in ENTRIES, each row different."""
  rng = np.random.default_rng(start)
  return {
    "m0": rng.integers(1, 256, (n, 4, 4, 3), dtype=np.uint8),
    "x": rng.normal(size=(n, 5)),
    "digit": rng.integers(0, 10, n),
  }


def open_rows(rest, split, settings, seed):
  del rest, settings, seed
  n = COUNT if split == "train" else 40
  arrays = rows(n, start=split == "test")
  return data.MultimodalArrays(arrays, arrays["digit"], title=f"rows/{split}")


@pytest.fixture(autouse=True)
def source_of_rows(monkeypatch):
  """As a function, which has no flags."""
  monkeypatch.setitem(data.SOURCES, "test_rows", open_rows)


def opened(source="test_rows", split="train", **changes):
  return data.open_dataset(section(source, **changes), split)


def whole(dataset):
  return dataset.load_batch(np.arange(len(dataset)))


def equal(a, b):
  """Asserts that two batches are the same."""
  assert a.keys() == b.keys()
  for key in a:
    assert a[key].dtype == b[key].dtype
    np.testing.assert_array_equal(a[key], b[key])


# ---------------------------------------------------------- data.modalities


def test_entries():
  m0, x, digit = parse(ENTRIES)
  assert m0 == ModalitySpec("m0", (4, 4, 3), "l1", None)
  assert (x.weight, digit.weight, digit.shape) == (0.5, "size", (10,))
  assert [s.is_image for s in (m0, x, digit)] == [True, False, False]
  # Three classes at each place are no colours.
  assert not parse(["a 4x4x3 categorical"])[0].is_image
  assert tuple(map(str, parse(ENTRIES))) == ENTRIES
  assert parse(()) == ()


@pytest.mark.parametrize(
  ("entries", "word"),
  [
    (("m0 4x4x3",), "2 words"),
    (("m0 4x4x3 l1 1 2",), "5 words"),
    (("0m 4 l1",), "'0m'"),
    (("mask 4 l1",), "'mask'"),
    (("label 4 l1",), "'label'"),
    (("m0 4x0 l1",), "4x0"),
    (("m0 4x l1",), "4x"),
    (("m0 -4 l1",), "-4"),
    (("m0 4 5",), "likelihood"),
    (("m0 4 l1 0",), "weight"),
    (("m0 4 l1 nan",), "weight"),
    (("m0 4 l1 big",), "weight"),
    (("m0 4 l1", "m0 5 l1"), "2 times"),
    ("m0 4 l1", "tuple"),
    ((3,), "tuple"),
  ],
)
def test_wrong_entries(entries, word):
  says(lambda: parse(entries), "data.modalities", word)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(flip=True), ["--config.data.flip=False"]),
    (dict(cache="/tmp/cache"), ["data.cache", "memory"]),
    (dict(missing=1.0), ["data.missing=1.0", "[0, 1)"]),
    (dict(missing_test=-0.1), ["data.missing_test"]),
    (dict(missing_by="size"), ["data.missing_by", "random, value"]),
    (dict(modalities=(), missing=0.5), ["data.missing=0.5", "data.modalities"]),
  ],
)
def test_wrong_settings(changes, words):
  c = section("test_rows", **changes)
  says(lambda: data.Settings.from_config(c), *words)


def test_entries_survive_the_config_file():
  c = config.base()
  c.data.modalities, c.data.missing, c.data.flip = ENTRIES, 0.25, False
  again = config.from_json(config.to_json(c))
  assert again.data.modalities == ENTRIES
  assert again.data.missing == 0.25


# ---------------------------------------------------------- batches


def test_batches():
  """Types, shapes, one-hot classes and values as they are."""
  dataset = opened()
  want = rows()
  got = whole(dataset)
  assert list(got) == ["m0", "x", "digit", "mask", "label"]
  np.testing.assert_array_equal(got["m0"], want["m0"])
  np.testing.assert_array_equal(got["x"], want["x"].astype(np.float32))
  np.testing.assert_array_equal(got["digit"].argmax(1), want["digit"])
  assert got["digit"].shape == (COUNT, 10) and got["digit"].sum() == COUNT
  assert got["m0"].dtype == np.uint8
  assert {got[k].dtype for k in ("x", "digit", "mask")} == {np.dtype("f4")}
  assert got["mask"].shape == (COUNT, 3) and got["mask"].all()
  assert got["label"].dtype == np.int32
  np.testing.assert_array_equal(got["label"], want["digit"])
  one = dataset[-1]
  for key, value in got.items():
    np.testing.assert_array_equal(one[key], value[-1])
  assert dataset.names == ("m0", "x", "digit") and dataset.in_memory


def test_some_modalities_in_another_order():
  dataset = opened(modalities=("x 5 l2", "m0 4x4x3 l1"))
  got = whole(dataset)
  assert list(got) == ["x", "m0", "mask", "label"]
  np.testing.assert_array_equal(got["m0"], rows()["m0"])


def test_images_are_resized():
  """As a data set of images does it."""
  dataset = opened(modalities=("m0 2x2x1 l1",))
  got = whole(dataset)["m0"]
  assert got.shape == (COUNT, 2, 2, 1)
  settings = data.Settings(
    source="x", image_size=2, channels=1, batch_size=1, crop="none"
  )
  images = data.Dataset(data.ArraySource(rows()["m0"]), settings, "train")
  np.testing.assert_array_equal(got[7], images[7]["image"])


@pytest.mark.parametrize("changes", [{}, dict(missing=0.5)])
def test_two_hosts_rows_together_are_one_hosts(changes):
  kwargs = dict(batch_size=8, seed=3)
  parts = []
  for count, index in ((1, 0), (2, 0), (2, 1)):
    stream = data.batches(
      opened(**changes), **kwargs, process_index=index, process_count=count
    )
    parts.append([next(stream) for _ in range(30)])
    stream.close()
  for one, a, b in zip(*parts, strict=True):
    equal(one, {key: np.concatenate([a[key], b[key]]) for key in a})


def test_resuming_gives_the_same_batches():
  dataset = opened(missing=0.5)
  kwargs = dict(batch_size=8, seed=1)
  stream = data.batches(dataset, **kwargs)
  first = [next(stream) for _ in range(30)]
  stream.close()
  stream = data.batches(opened(missing=0.5), **kwargs, start=27)
  for want in first[27:]:
    equal(next(stream), want)
  stream.close()


@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_sees_every_observation_once(count):
  dataset = opened(split="test", missing_test=0.5)
  hosts = [
    list(
      data.eval_batches(
        dataset, batch_size=16, process_index=i, process_count=count
      )
    )
    for i in range(count)
  ]
  got = [
    {key: np.concatenate([b[key] for b in parts]) for key in parts[0]}
    for parts in zip(*hosts, strict=True)
  ]
  got = {key: np.concatenate([b[key] for b in got]) for key in got[0]}
  valid = got.pop("valid") == 1
  assert valid.sum() == len(dataset) < len(valid)
  equal({k: v[valid] for k, v in got.items()}, whole(dataset))


def test_excluded_labels():
  dataset = opened(exclude_labels=(3,), missing=0.3)
  got = whole(dataset)
  assert set(got["label"]) == set(range(10)) - {3}
  assert dataset.excluded == (3,)
  seen = got["mask"][:, 0] == 1
  kept = rows()["digit"] != 3
  np.testing.assert_array_equal(got["m0"][seen], rows()["m0"][kept][seen])
  assert 3 in opened(split="test", exclude_labels=(3,)).labels()
  assert dataset.fingerprint() == opened().fingerprint()


def test_other_data_have_another_fingerprint():
  def of(arrays, **kwargs):
    return data.MultimodalArrays(arrays, **kwargs).fingerprint()

  base = rows()
  changed = base | {"x": base["x"] + 1}
  mask = np.ones((COUNT, 3), bool)
  same = of(base, mask=mask.copy())
  mask[0, 0] = False
  more = base | {"y": base["x"]}
  seen = {same, of(changed), of(base, mask=mask), of(more)}
  assert len(seen) == 4 and of(base) in seen
  c = section("test_rows", fingerprint="0" * 16 + ":" + "0" * 16)
  says(lambda: data.open_dataset(c, "train"), "fingerprint=any")


# ---------------------------------------------------------- missing modalities


@pytest.mark.parametrize("by", ["random", "value"])
def test_masks_are_deterministic(by):
  """The same in every run; different at training and at test."""
  settings = dict(missing=0.5, missing_test=0.5, missing_by=by)
  train, test = (opened(split=s, **settings) for s in ("train", "test"))
  np.testing.assert_array_equal(train.mask, opened(**settings).mask)
  seeded = data.open_dataset(section("test_rows", **settings), "train", 7)
  np.testing.assert_array_equal(train.mask, seeded.mask)
  assert (train.mask[: len(test)] != test.mask).any()
  assert opened(missing_test=0.5).mask.all()
  for dataset in (train, test):
    assert dataset.mask.any(axis=1).all() and not dataset.mask.all()
    got = whole(dataset)
    np.testing.assert_array_equal(got["mask"], dataset.mask)
    for m, name in enumerate(dataset.names):
      there = dataset.mask[:, m] == 1
      assert not got[name][~there].any()
      assert got[name].reshape(len(got[name]), -1)[there].any(axis=1).all()


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8])
def test_fraction_that_is_missing_at_random(fraction):
  """p - p^M / M, since one modality always stays; each equally often."""
  n, m = 4000, 3
  own = np.ones((n, m), bool)
  got = ~missing.observed(own, fraction, "random", "train", None)
  wanted = fraction - fraction**m / m
  np.testing.assert_allclose(got.mean(axis=0), wanted, atol=0.03)
  # Independent of the number of observations.
  fewer = missing.observed(own[:9], fraction, "random", "train", None)
  np.testing.assert_array_equal(fewer, ~got[:9])


def test_largest_values_are_missing():
  """Of each modality; of an observation with both, the smaller stays."""
  values = np.array([[9, 0], [8, 1], [0, 9.0], [1, 7], [2, 2], [3, 8]])
  own = np.ones((6, 2), bool)
  got = missing.observed(own, 1 / 3, "value", "train", lambda: values)
  wanted = [[0, 1], [0, 1], [1, 0], [1, 1], [1, 1], [1, 0]]
  np.testing.assert_array_equal(got, np.array(wanted, bool))
  both = np.array([[9, 8], [8, 9], [0, 0.0]])
  got = missing.observed(own[:3], 2 / 3, "value", "test", lambda: both)
  np.testing.assert_array_equal(got, [[0, 1], [1, 0], [1, 1]])


def test_values_of_a_data_set():
  """Mean pixels, mean numbers and class numbers."""
  dataset = opened(missing=0.25, missing_by="value")
  want = rows()
  alone = 0
  for m, value in enumerate(
    (want["m0"].mean((1, 2, 3)), want["x"].astype("f4").mean(1), want["digit"])
  ):
    lost = np.argsort(-value, kind="stable")[: COUNT // 4]
    stayed = dataset.mask[lost, m] == 1
    alone += stayed.sum()
    assert (dataset.mask[lost[stayed]].sum(axis=1) == 1).all()
    others = np.delete(dataset.mask[:, m], lost)
    assert others.all()
  assert alone < 10


def test_the_sources_mask_comes_first():
  """What it lacks is missing; a row that would be empty keeps its own."""
  own = np.random.default_rng(0).random((1000, 2)) < 0.5
  own[~own.any(axis=1)] = True
  got = missing.observed(own, 0.5, "random", "train", None)
  drawn = missing.observed(np.ones_like(own), 0.5, "random", "train", None)
  both = own & drawn
  full = both.any(axis=1)
  np.testing.assert_array_equal(got[full], both[full])
  np.testing.assert_array_equal(got[~full], own[~full])
  assert 0 < (~full).sum() < 500
  assert missing.observed(own, 0.0, "random", "train", None) is own


# ---------------------------------------------------------- wrong arrays


def test_wrong_arrays():
  a = rows(6)
  make = data.MultimodalArrays
  says(lambda: make(a | {"x": a["x"][:4]}), "lengths", "m0 6", "x 4")
  mask = np.ones((6, 3), bool)
  mask[4] = False
  says(lambda: make(a, mask=mask), "row 4", "all zeros")
  says(lambda: make(a, mask=np.ones((6, 2))), "[6, 2]", "[6, 3]", "digit")
  says(lambda: make(a, mask=np.full((6, 3), 2)), "booleans")
  a["x"][3, 1] = np.nan
  says(lambda: make(a, title="it"), "it: x", "row 3", "mask")
  mask = np.ones((6, 3), bool)
  mask[3, 1] = False
  dataset = data.MultimodalDataset(
    make(a, mask=mask), data.Settings.from_config(section("it")), "train"
  )
  assert np.isfinite(whole(dataset)["x"]).all()


@pytest.mark.parametrize(
  ("entry", "words"),
  [
    ("digits 10 l1", ["'digits'", "did you mean digit?", "m0, x, digit"]),
    ("x 6 l2", ["x 6 l2", "[200, 5]", "'x 5 l2'"]),
    ("x 4x4x3 l1", ["uint8", "float64 [200, 5]"]),
    ("m0 48 l1", ["[4, 4, 3] an observation", "'m0 4x4x3 l1'"]),
    ("digit 9 categorical", ["the class 9", "9 classes"]),
    ("x 5 categorical", ["probabilities", "sum to 1"]),
    ("x 5 bernoulli", ["bernoulli", "-1 (off)"]),
    ("x 4 categorical", ["[200, 5]", "probabilities [n, 4]"]),
  ],
)
def test_entries_that_do_not_fit(entry, words):
  says(lambda: opened(modalities=(entry,)), *words)


def test_an_observation_without_any_of_the_chosen_modalities():
  mask = np.ones((COUNT, 3), bool)
  mask[5, :2] = False
  source = data.MultimodalArrays(rows(), mask=mask)
  c = section("it", modalities=ENTRIES[:2])
  settings = data.Settings.from_config(c)
  says(lambda: data.MultimodalDataset(source, settings, "train"), "row 5")


def test_images_and_modalities_are_not_confused():
  says(
    lambda: data.open_dataset(
      section("test_rows", modalities=(), flip=True), "train"
    ),
    "('m0 4x4x3 l1', 'x 5 l2', 'digit 10 categorical')",
    "--config.data.flip=False",
  )
  says(
    lambda: opened("digits"),
    "digits has images only",
    "folder, ",
    "npz, ",
    "m0, x",
  )


def test_a_source_may_read_modalities_one_by_one():
  """A source of a user that holds no arrays."""

  class Lazy(data.MultimodalSource):
    names, arrays = ("x", "m0"), {}
    mask = np.array([[1, 1], [1, 0], [0, 1]], bool)

    def read(self, i, name):
      assert self.mask[i, self.names.index(name)]
      return rows()[name][i]

    def labels(self):
      return np.arange(3)

  c = section("it", modalities=("m0 4x4x3 l1", "x 5 l2"))
  settings = data.Settings.from_config(c)
  dataset = data.MultimodalDataset(Lazy(), settings, "train")
  got = whole(dataset)
  np.testing.assert_array_equal(got["mask"], [[1, 1], [0, 1], [1, 0]])
  np.testing.assert_array_equal(got["m0"][[0, 2]], rows()["m0"][[0, 2]])
  assert not got["m0"][1].any() and not got["x"][2].any()
  assert list(Lazy()[1]) == ["x", "label", "mask"]


# ---------------------------------------------------------- npz


def archive(path, **arrays):
  np.savez(path, **arrays)
  return f"npz:{path}"


def test_npz_with_a_test_split(tmp_path):
  train, test = rows(30), rows(12, start=1)
  mask = np.ones((30, 3), np.uint8)
  mask[4, 1] = 0
  train["x"][4] = np.nan
  source = archive(
    tmp_path / "a.npz",
    **{f"{k}_train": v for k, v in train.items()},
    **{f"{k}_test": v for k, v in test.items()},
    mask_train=mask,
    y_train=np.arange(30),
    y_test=np.arange(12),
  )
  got = whole(opened(source))
  np.testing.assert_array_equal(got["mask"], mask)
  np.testing.assert_array_equal(got["m0"], train["m0"])
  assert not got["x"][4].any()
  np.testing.assert_array_equal(got["label"], np.arange(30))
  test_set = opened(source, "test")
  assert test_set.mask.all() and len(test_set) == 12
  assert test_set.source.total == 42
  assert test_set.source.name(3) == "a.npz/test[3]"


def test_npz_is_split_as_images_are(tmp_path):
  """By the index, so the same rows are held out."""
  arrays = rows(50)
  source = archive(
    tmp_path / "a.npz", images=arrays["m0"], m0=arrays["m0"], x=arrays["x"]
  )
  for split in ("train", "test"):
    entries = ("m0 4x4x3 l1", "x 5 l2")
    got = opened(source, split, modalities=entries)
    images = data.open_dataset(
      section(source, modalities=(), image_size=4), split
    )
    want = np.stack([images[i]["image"] for i in range(len(images))])
    np.testing.assert_array_equal(whole(got)["m0"], want)
  assert set(got.labels()) == {-1}


def test_npz_converts(tmp_path):
  """Floats of images, booleans, words as labels, probabilities."""
  n = 40
  arrays = rows(n)
  mask = np.ones((n, 3), bool)
  mask[7] = [False, True, True]
  image = arrays["m0"].astype(np.float32) / 255
  image[7] = np.nan
  source = archive(
    tmp_path / "a.npz",
    image=image,
    on=arrays["x"] > 0,
    p=np.full((n, 4), 0.25),
    labels=np.array(["odd", "even"] * (n // 2)),
    mask=mask,
  )
  entries = ("image 4x4x3 l1", "on 5 bernoulli", "p 4 categorical")
  parts = [opened(source, s, modalities=entries) for s in ("train", "test")]
  assert sum(map(len, parts)) == n
  assert parts[0].label_names == ("even", "odd")
  pixels = np.concatenate([whole(p)["image"] for p in parts])
  want = np.where(mask[:, :1, None, None], arrays["m0"], 0)
  assert sorted(pixels.sum((1, 2, 3))) == sorted(want.sum((1, 2, 3)))
  for part in parts:
    assert set(np.unique(whole(part)["on"])) == {-1, 1}
    assert (whole(part)["p"] == 0.25).all()


def test_wrong_npz(tmp_path):
  a = rows(20)
  path = tmp_path / "a.npz"

  def wrong(*words, modalities=ENTRIES, **arrays):
    source = archive(path, **arrays)
    says(lambda: opened(source, modalities=modalities), *words)

  wrong("no entry digit", "m0, x", m0=a["m0"], x=a["x"])
  wrong("lengths", "x 19", **(a | {"x": a["x"][1:]}))
  wrong("no digit_test", **a, m0_test=a["m0"], x_test=a["x"])
  mask = np.ones((20, 3))
  mask[11] = 0
  wrong("row 11", "all zeros", **a, mask=mask)
  wrong("[20, 2]", "[20, 3]", **a, mask=mask[:, :2])
  wrong("y is int64 [3]", **a, y=np.arange(3))
  wrong("in doubt", "m0", **(a | {"m0": np.zeros((20, 4, 4)) + 0.3}))
  source = archive(path, x=a["x"])
  says(
    lambda: opened(source, modalities=("x 5 l2",), range=(0, 1)),
    "data.range",
    "x 5 l2",
  )
  a["x"][2, 3] = np.nan
  wrong("x has NaN", "row 2", "mask", **a)
  a["x"] = np.full((20, 5), 3.0)
  wrong("up to 3", modalities=("x 5 bernoulli",), **a)
  np.save(tmp_path / "b.npy", a["m0"])
  says(lambda: opened(f"npz:{tmp_path}/b.npy"), "single array", "savez")
  says(lambda: opened("npz:/no.npz"), "does not exist")
  # Without data.modalities, the message says what to set.
  source = archive(path, m0=a["m0"])
  says(
    lambda: data.open_dataset(section(source, modalities=()), "train"),
    "data.modalities",
  )


# ---------------------------------------------------------- folders


VIEWS = ("m0 8x8x3 l1", "m1 8x8x3 l1")


def views(root, names, folders=("m0", "m1")):
  """Writes images of one colour, which identifies the name and the folder."""
  for m, folder in enumerate(folders):
    for name in names:
      path = root / folder / f"{name}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      value = int(name.split(".")[0])
      Image.new("RGB", (8, 8), (value, m, 7)).save(path)
  return root


def test_folder_with_splits(tmp_path):
  names = [f"{i}.{i % 3}" for i in range(12)] + ["99"]
  views(tmp_path / "pack" / "Train", names)
  views(tmp_path / "pack" / "val", ["200.5", "201.no"])
  source = f"folder:{tmp_path}"  # holds nothing but pack/
  train, test = (opened(source, s, modalities=VIEWS) for s in ("train", "test"))
  got = whole(train)
  assert got["m0"].shape == (13, 8, 8, 3) and train.mask.all()
  np.testing.assert_array_equal(got["m0"][..., 0], got["m1"][..., 0])
  assert (got["m1"][..., 1] == 1).all()
  index = got["m0"][:, 0, 0, 0]
  want = np.where(index == 99, -1, index.astype(int) % 3)
  np.testing.assert_array_equal(got["label"], want)
  np.testing.assert_array_equal(train.labels(), want)
  assert whole(test)["label"].tolist() == [5, -1]
  assert train.source.total == test.source.total == 30
  # Workers and a cache return the same; the fingerprint ignores the place.
  equal(whole(pickle.loads(pickle.dumps(train))), got)
  cached = opened(source, modalities=VIEWS, cache="memory")
  assert cached.in_memory and not train.in_memory
  equal(whole(cached), got)
  (tmp_path / "pack").rename(tmp_path / "other")
  assert opened(source, modalities=VIEWS).fingerprint() == train.fingerprint()


def test_folder_without_splits(tmp_path, caplog):
  """Held out by name; a file that is missing is a missing modality."""
  names = [f"{i}.{i % 3}" for i in range(60)]
  views(tmp_path, names)
  for i in range(0, 60, 4):
    (tmp_path / "m1" / f"{i}.{i % 3}.png").unlink()
  source = f"folder:{tmp_path}"
  with caplog.at_level("INFO"):
    parts = [opened(source, s, modalities=VIEWS) for s in ("train", "test")]
  assert "without m1" in caplog.text and "20 %" in caplog.text
  assert sum(map(len, parts)) == 60
  assert 4 < len(parts[1]) < 24
  for part in parts:
    got = whole(part)
    lacks = got["m0"][:, 0, 0, 0] % 4 == 0
    np.testing.assert_array_equal(got["mask"][:, 1] == 0, lacks)
    assert not got["m1"][lacks].any()
  # Later files move none of the others.
  views(tmp_path, ["70.1"])
  held_out = {parts[1].source.name(i) for i in range(len(parts[1]))}
  more = opened(source, "test", modalities=VIEWS).source
  assert {more.name(i) for i in range(len(more))} - {"70.1"} == held_out


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_broken_images_are_missing(tmp_path, cache, caplog):
  """Found at opening or at decoding; an observation without any is skipped."""
  root = views(tmp_path / "train", [f"{i}" for i in range(10, 40)])
  views(tmp_path / "test", ["50"])
  (root / "m0" / "11.png").write_bytes(b"no image")
  part = (root / "m0" / "12.png").read_bytes()[:45]  # begins as an image
  (root / "m0" / "12.png").write_bytes(part)
  for m in ("m0", "m1"):
    (root / m / "13.png").write_bytes(part)
  kwargs = dict(modalities=VIEWS, max_corrupt_fraction=0.1, cache=cache)
  dataset = opened(f"folder:{tmp_path}", **kwargs)
  got = whole(dataset)
  assert got["mask"][:4].tolist() == [[1, 1], [0, 1], [0, 1], [1, 1]]
  assert got["mask"][4:].all()
  assert not got["m0"][1:3].any()
  assert got["m1"][:5, 0, 0, 0].tolist() == [10, 11, 12, 14, 14]
  assert len(dataset.broken) == 4
  assert "4 broken of 62 files" in caplog.text
  by_value = opened(
    f"folder:{tmp_path}", **kwargs, missing=0.5, missing_by="value"
  )
  assert by_value.mask[20:].sum() < 30
  says(
    lambda: whole(
      opened(f"folder:{tmp_path}", **(kwargs | {"max_corrupt_fraction": 0.03}))
    ),
    "max_corrupt_fraction",
    "of the 62 files",
  )


def test_folder_with_arrays(tmp_path):
  """Files of numbers and of classes beside images."""
  names = [f"{i}.{i % 3}" for i in range(20)]
  views(tmp_path, names, ["m0"])
  for folder in ("x", "digit"):
    (tmp_path / folder).mkdir()
  for i, name in enumerate(names[:15]):
    np.save(tmp_path / "x" / f"{name}.npy", np.full(5, float(i)))
    np.save(tmp_path / "digit" / f"{name}.npy", i % 10)
  entries = ("m0 8x8x3 l1", *ENTRIES[1:])
  source = f"folder:{tmp_path}"
  for split in ("train", "test"):
    got = whole(opened(source, split, modalities=entries))
    index = got["m0"][:, 0, 0, 0]
    there = index < 15
    np.testing.assert_array_equal(got["mask"][:, 1] == 1, there)
    np.testing.assert_array_equal(got["x"][:, 0], np.where(there, index, 0))
    digits = got["digit"][there].argmax(axis=1)
    np.testing.assert_array_equal(digits, index[there] % 10)
  np.save(tmp_path / "x" / "3.0.npy", np.array([1, 2, 3, 4, np.nan]))
  says(lambda: opened(source, modalities=entries), "x/3.0.npy", "NaN")
  np.save(tmp_path / "x" / "3.0.npy", np.zeros(4))
  says(lambda: opened(source, modalities=entries), "x/3.0.npy", "[5]")


def test_wrong_folders(tmp_path):
  def wrong(*words, path=tmp_path, modalities=VIEWS):
    says(lambda: opened(f"folder:{path}", modalities=modalities), *words)

  wrong("Cannot read the folder", path=tmp_path / "none")
  views(tmp_path / "a" / "train", ["1"])
  views(tmp_path / "a" / "other", ["1"])
  wrong("neither a folder m0 nor folders train", "other, train")
  views(tmp_path / "b", ["1", "2"])
  b = tmp_path / "b"
  wrong("'m2'", "m0, m1", path=b, modalities=(*VIEWS, "m2 8x8x3 l1"))
  (b / "m2").mkdir()
  wrong("m2 has no images", path=b, modalities=(*VIEWS, "m2 8x8x3 l1"))
  wrong("m2 has no .npy files", path=b, modalities=(*VIEWS, "m2 8 l1"))
  Image.new("RGB", (8, 8)).save(b / "m1" / "2.jpg")
  wrong("2.jpg", "2.png", "Rename", path=b)


def test_workers_decode_modalities(tmp_path):
  """Processes return what threads do."""
  names = [f"{i}.{i % 3}" for i in range(24)]
  views(tmp_path, names)
  dataset = opened(f"folder:{tmp_path}", modalities=VIEWS, missing=0.3)
  got = []
  for workers in (0, 1):
    stream = data.batches(dataset, batch_size=4, seed=0, workers=workers)
    got.append([next(stream) for _ in range(3)])
    stream.close()
  for a, b in zip(*got, strict=True):
    equal(a, b)
  assert json.dumps(sorted(got[0][0])) == '["label", "m0", "m1", "mask"]'

"""zip: and tar: read what folder: reads of the unpacked files.

The archives are made by Python's zipfile and tarfile, and by the command tar.
"""

import gzip
import io
import json
import logging
import os
import pickle
import shutil
import subprocess
import tarfile
import threading
import zipfile

import numpy as np
import pytest
from damage import damages
from PIL import Image
from program import noise
from test_data_sources import hundred, images, pixels, says, section

from gamix_jax import data
from gamix_jax.data import tar
from gamix_jax.data.packed import unwrapped
from gamix_jax.errors import UserError
from gamix_jax.paths import cache_folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
  """Keeps the listings of archives in a folder of the test."""
  folder = tmp_path_factory.mktemp("cache")
  monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
  return folder / "gamix_jax" / "archives"


def packed(kind, root, file):
  """Packs a folder: zip stored or deflated, tar by Python or by the command."""
  if kind == "tar command":
    subprocess.run(["tar", "-cf", file, "-C", root, "."], check=True)
    return f"tar:{file}"
  names = sorted(p.relative_to(root).as_posix() for p in root.rglob("*"))
  np.random.default_rng(0).shuffle(names)
  if kind == "tar":
    with tarfile.open(file, "w") as archive:
      for name in names:
        archive.add(root / name, name, recursive=False)
    return f"tar:{file}"
  how = zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED
  with zipfile.ZipFile(file, "w", how) as archive:
    for name in names:
      archive.write(root / name, name)
  return f"zip:{file}"


KINDS = ("stored", "deflated", "tar", "tar command")
every_kind = pytest.mark.parametrize("kind", KINDS)


def opened(source, split="train", **changes):
  return data.open_dataset(section(source, **changes), split)


def assert_same(a, b, batches=3):
  """Asserts equal images, labels, names, fingerprints and batches."""
  assert len(a) == len(b) and a.label_names == b.label_names
  assert a.fingerprint() == b.fingerprint()
  np.testing.assert_array_equal(a.labels(), b.labels())
  names = [[d.source.name(i) for i in range(len(d))] for d in (a, b)]
  assert names[0] == names[1]
  streams = [data.batches(d, batch_size=4, seed=3, flip=True) for d in (a, b)]
  for _ in range(batches):
    x, y = map(next, streams)
    np.testing.assert_array_equal(x["image"], y["image"])
    np.testing.assert_array_equal(x["label"], y["label"])
  for stream in streams:
    stream.close()


def tree(root, kind):
  """Writes a folder of one of three layouts."""
  if kind == "splits":
    images(root / "wrap/train", [f"cat/{i}.png" for i in range(9)])
    images(root / "wrap/train", ["dog/deep/x.webp"], 10)
    images(root / "wrap/Val", ["cat/1.jpg", "bird/2.JPEG"], 20)
    (root / "wrap" / "list.csv").write_text("x")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "a.jpg").write_text("x")
  elif kind == "hash":
    images(root, [f"{'ab'[i % 2]}/{i}.png" for i in range(40)])
    images(root, ["0.jpg", "b/._1.png"], 50)
  else:
    hundred(root / "celeba")
  return root


@every_kind
@pytest.mark.parametrize("layout", ["splits", "hash", "broken"])
def test_an_archive_is_its_folder(tmp_path, kind, layout):
  root = tree(tmp_path / "in", layout)
  source = packed(kind, root, tmp_path / "file")
  more = {"max_corrupt_fraction": 0.03}
  for split in ("train", "test"):
    a = opened(f"folder:{root}", split, **more)
    b = opened(source, split, **more)
    assert_same(a, b)
    np.testing.assert_array_equal(pixels(a), pixels(b))
    assert a.broken == b.broken
    assert bool(a.broken) == (layout == "broken")
    assert a.source.total == b.source.total


@pytest.mark.parametrize("kind", ["deflated", "tar"])
def test_workers_and_resuming(tmp_path, kind):
  """Batches are a function of seed and step, whoever reads them."""
  root = images(tmp_path / "in", [f"{i:02}.png" for i in range(40)])
  dataset = opened(packed(kind, root, tmp_path / "file"))
  how = dict(batch_size=8, seed=5, flip=True)
  plain = data.batches(dataset, **how)
  first = [next(plain) for _ in range(5)]
  workers = 1 if kind == "tar" else 0
  later = data.batches(dataset, start=3, workers=workers, **how)
  for t in (3, 4):
    got = next(later)
    np.testing.assert_array_equal(got["image"], first[t]["image"])
    np.testing.assert_array_equal(got["label"], first[t]["label"])
  for stream in (plain, later):
    stream.close()
  copy = pickle.loads(pickle.dumps(dataset))
  np.testing.assert_array_equal(pixels(copy), pixels(dataset))


@every_kind
def test_threads_do_not_disturb_each_other(tmp_path, kind):
  """Many threads read all images, each another order; also in a fork."""
  root = tmp_path / "in"
  images(root, [f"{i:02}.png" for i in range(40)])
  source = opened(packed(kind, root, tmp_path / "file")).source
  want = [(root / source.name(i)).read_bytes() for i in range(len(source))]
  wrong = []

  def read(seed):
    for i in np.random.default_rng(seed).permutation(
      np.arange(300) % len(want)
    ):
      if source[int(i)]["image"] != want[i]:
        wrong.append(i)

  threads = [threading.Thread(target=read, args=(k,)) for k in range(6)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert wrong == []


def count_listings(monkeypatch):
  """Returns a list that grows with every tar file that is listed."""
  seen = []
  real = tar._list
  monkeypatch.setattr(
    tar, "_list", lambda file, label: seen.append(file) or real(file, label)
  )
  return seen


def test_the_listing_is_made_once(tmp_path, monkeypatch, cache, caplog):
  root = images(tmp_path / "in", [f"a/{i:02}.png" for i in range(20)])
  source = packed("tar", root, tmp_path / "x.tar")
  seen = count_listings(monkeypatch)
  want = opened(f"folder:{root}")
  for _ in range(2):
    for split in ("train", "test"):
      opened(source, split)
  assert len(seen) == 1
  (kept,) = cache.iterdir()
  kept.write_bytes(kept.read_bytes()[:-50])  # damaged: made again
  assert_same(opened(source), want)
  assert "damaged" in caplog.text and len(seen) == 2
  images(root, ["a/zz.png"], 99)
  packed("tar", root, tmp_path / "x.tar")  # changed: made again
  assert_same(opened(source), opened(f"folder:{root}"))
  assert len(seen) == 3
  # No place for it: read all the same.
  shutil.rmtree(cache)
  cache.write_text("")
  with caplog.at_level(logging.INFO):
    assert_same(opened(source), opened(f"folder:{root}"))
  assert "cannot be kept" in caplog.text


# ------------------------------------------------------------------- WebDataset


def encoded(i, form="PNG"):
  out = io.BytesIO()
  Image.fromarray(noise(i, 8, 8, 3)).save(out, form, lossless=True)
  return out.getvalue()


def shards(folder, samples, per=10, name="train-{:06d}.tar", first=0):
  """Writes samples, each {suffix: bytes}, in shards; returns the files."""
  folder.mkdir(exist_ok=True)
  paths = []
  for k in range(0, len(samples), per):
    path = folder / name.format(k // per)
    with tarfile.open(path, "w") as archive:
      for i, sample in enumerate(samples[k : k + per], first + k):
        for suffix, content in sample.items():
          info = tarfile.TarInfo(f"{i:06d}.{suffix}")
          info.size = len(content)
          archive.addfile(info, io.BytesIO(content))
    paths.append(path)
  return paths


def sample(i):
  label = {
    "label": i % 3 + 100,
    "of": {"word": "ab"[i % 2]},
    "odd": ("a\0\ud800", "b")[i % 2],  # JSON can say it, UTF-8 cannot
  }
  return {
    "jpg": encoded(i),
    "cls": str(i % 3).encode(),
    "json": json.dumps(label).encode(),
    "txt": f"word {i % 4}\n".encode(),
  }


def test_webdataset(tmp_path):
  """Labels of all kinds, and split by the names of the shards."""
  n = 37
  shards(tmp_path / "d", [sample(i) for i in range(n)])
  shards(
    tmp_path / "d",
    [sample(i) for i in range(n, n + 6)],
    name="val-{:06d}.tar",
    first=n,
  )
  pattern = f"tar:{tmp_path}/d/*.tar"
  want = np.stack([noise(i, 8, 8, 3) for i in range(n + 6)])
  train, test = opened(pattern), opened(pattern, "test")
  np.testing.assert_array_equal(pixels(train), want[:n])
  np.testing.assert_array_equal(pixels(test), want[n:])
  i = np.arange(n + 6)
  for option, label, names in (
    ("", i % 3, ()),
    ("?label=cls", i % 3, ()),
    ("?label=json", i % 3 + 100, ()),
    ("?label=json.of.word", i % 2, ("a", "b")),
    ("?label=json.odd", i % 2, ("a\\ud800", "b")),
    ("?label=txt&image=jpg", i % 4, tuple(f"word {k}" for k in range(4))),
  ):
    for split, rows in (("train", slice(n)), ("test", slice(n, None))):
      dataset = opened(pattern + option, split)
      assert dataset.label_names == names
      assert dataset.labels().tolist() == label[rows].tolist(), option
      assert dataset[2]["label"] == label[rows][2]
  # The same files by other patterns.
  assert_same(opened(f"tar:{tmp_path}/d"), train)
  ranges = f"tar:{tmp_path}/d/{{train,val}}-{{000000..000003}}.tar"
  says(lambda: opened(ranges), "3 of 8 are missing", "val-000001")
  for k in (1, 2, 3):
    shards(
      tmp_path / "d", [{"txt": b"no image"}], name=f"val-{k:06d}.tar", first=90
    )
  assert_same(opened(ranges), train)
  assert data.resolve_source(pattern + "?label=cls") == pattern + "?label=cls"


def test_packing_in_other_shards_changes_nothing(tmp_path):
  samples = [sample(i) for i in range(40)]
  shards(tmp_path / "a", samples, per=7)
  shards(tmp_path / "b", samples, per=40, name="all.tar")
  for split in ("train", "test"):
    a = opened(f"tar:{tmp_path}/a/train-{{000000..000005}}.tar", split)
    b = opened(f"tar:{tmp_path}/b/all.tar", split)
    assert_same(a, b)
    assert a.source.cache_key() != b.source.cache_key()


def test_equal_names_in_two_shards(tmp_path):
  for k in range(2):
    shards(
      tmp_path / "d",
      [sample(i + 20 * k) for i in range(20)],
      per=20,
      name=f"{k}-{{}}.tar",
    )
  both = [opened(f"tar:{tmp_path}/d", split) for split in ("train", "test")]
  seen = {x.tobytes() for d in both for x in pixels(d)}
  assert seen == {noise(i, 8, 8, 3).tobytes() for i in range(40)}
  assert len({d.source.name(i) for d in both for i in range(len(d))}) == 40


def test_more_shards_than_a_thread_keeps_open(tmp_path):
  shards(tmp_path / "d", [sample(i) for i in range(80)], per=1)
  dataset = opened(f"tar:{tmp_path}/d")
  before = len(os.listdir("/proc/self/fd"))
  for _ in range(2):
    seen = pixels(dataset)
  assert len(os.listdir("/proc/self/fd")) - before <= 32
  names = [int(dataset.source.name(i)[:6]) for i in range(len(dataset))]
  want = np.stack([noise(i, 8, 8, 3) for i in names])
  np.testing.assert_array_equal(seen, want)


def test_mistakes_with_webdataset(tmp_path):
  d = tmp_path / "d"
  shards(d, [sample(i) for i in range(12)])

  def opening(rest):
    return lambda: opened(f"tar:{rest}")

  says(opening(""), "names no file", "--config.data.source='tar:")
  says(opening(f"{tmp_path}/x*.tar"), "matches no file", "x*.tar")
  says(opening(f"{tmp_path}/x.tar"), "does not exist")
  says(opening("http://a.b/c.tar"), "is an address", "disk")
  says(opening(f"{d}?lable=cls"), "label=?")
  says(opening(f"{d}?label=clss"), "'clss'", "cls, json, txt")
  says(opening(f"{d}?label=json.no"), "'json.no'")
  says(opening(f"{d}?label=json.of"), "of is {'word': 'a'}", "?label=json.")
  says(opening(f"{d}?image=png"), ".png", "cls, jpg, json, txt", "?image=")
  (tmp_path / "none").mkdir()
  says(opening(f"{tmp_path}/none"), "no .tar files")
  shards(
    tmp_path / "two", [sample(i) | {"seg.png": encoded(i)} for i in (1, 2)]
  )
  says(opening(f"{tmp_path}/two"), "?image=jpg or ?image=seg.png")
  assert len(opened(f"tar:{tmp_path}/two?image=seg.png")) == 1
  mixed = [sample(i) | {"cls": b"7" if i else b"cat"} for i in range(4)]
  shards(tmp_path / "mixed", mixed)
  says(opening(f"{tmp_path}/mixed"), "'cat'", "7", "numbers")
  shards(tmp_path / "text", [{"txt": b"a"}] * 3)
  says(opening(f"{tmp_path}/text"), "no image files", "txt")


def test_broken_tar_files(tmp_path, caplog):
  (path,) = shards(tmp_path / "d", [sample(i) for i in range(8)])
  raw = path.read_bytes()

  def opening():
    opened(f"tar:{path}")

  path.write_bytes(b"")
  says(opening, "not a tar file")
  path.write_bytes(b"\xff\xd8\xff" + raw[3:])
  says(opening, "not a tar file")
  at = raw.index(b"000003.jpg")
  path.write_bytes(raw[: at + 600])
  says(opening, "not a whole one", path.name)
  path.write_bytes(raw[:at])
  opening()
  assert "has no end mark" in caplog.text
  path.write_bytes(raw[:at] + b"\xff" * 512 + raw[at + 512 :])
  says(opening, f"damaged at byte {at:,}")
  path.write_bytes(
    raw.rstrip(b"\0").ljust(len(raw) // 512 * 512, b"\0")[:-10240]
  )

  path.write_bytes(gzip.compress(raw))
  says(opening, "is compressed", f"gunzip {path.name}")
  # A tar file that shrinks later.
  path.write_bytes(raw)
  dataset = opened(f"tar:{path}")
  path.write_bytes(raw[:600])
  says(lambda: pixels(dataset), path.name, "at the start")


# -------------------------------------------------------------------------- zip


def test_broken_zip_files(tmp_path):
  root = images(tmp_path / "in", [f"{i:02}.png" for i in range(60)])
  path = tmp_path / "x.zip"

  def opening():
    return opened(f"zip:{path}", max_corrupt_fraction=0.1)

  says(lambda: opened("zip:"), "names no file", "zip:/path")
  says(opening, "does not exist", str(path))
  path.mkdir()
  says(opening, "is no file")
  path.rmdir()
  path.write_bytes(b"x" * 100)
  says(opening, "not a zip file")
  packed("deflated", root, path)
  raw = path.read_bytes()
  path.write_bytes(raw[: len(raw) // 2])
  says(opening, "not a zip file", "Get it again")
  # Three members with other damages.
  with zipfile.ZipFile(io.BytesIO(raw)) as archive:
    infos = {i.filename: i for i in archive.infolist()}
  damaged = bytearray(raw)
  damaged[infos["07.png"].header_offset] = 0
  for name in ("08.png", "09.png"):
    at = infos[name].header_offset + 30 + len(name)
    size = infos[name].compress_size
    damaged[at + size // 2 : at + size // 2 + 8] = bytes(8)
  path.write_bytes(damaged)
  broken = opening().broken
  assert broken.keys() == {"07.png", "08.png", "09.png"}
  assert all("damaged in the zip file" in why for why in broken.values())
  for how, name in ((zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "lzma")):
    with zipfile.ZipFile(path, "w", how) as archive:
      archive.write(root / "07.png", "07.png")
    says(opening, "07.png", name, "zip -r")
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("a.txt", "x")
  says(opening, "no image files among its 1")
  locked = bytearray(raw)
  at = -1
  while (at := raw.find(b"PK\x01\x02", at + 1)) >= 0:
    locked[at + 8] |= 1
  path.write_bytes(locked)
  says(opening, "encrypted")


def test_a_size_that_is_not_there(tmp_path):
  """A directory that claims a huge member allocates nothing."""
  path = tmp_path / "x.zip"
  with zipfile.ZipFile(path, "w") as archive:
    for i in range(3):
      archive.writestr(f"{i}.png", encoded(i))
  raw = bytearray(path.read_bytes())
  at = raw.find(b"PK\x01\x02")
  raw[at + 20 : at + 28] = b"\xf0\xff\xff\x7f" * 2  # both sizes, 2 GiB
  path.write_bytes(raw)
  dataset = opened(f"zip:{path}", max_corrupt_fraction=0.5)
  assert list(dataset.broken) == ["0.png"]


@pytest.mark.parametrize("kind", ["stored", "deflated", "tar"])
def test_any_damage_gives_images_or_a_message(tmp_path, kind):
  root = images(
    tmp_path / "in", [f"{c}/{i}.png" for c in "ab" for i in range(4)]
  )
  file = tmp_path / "x"
  source = packed(kind, root, file)
  refused, broken = 0, 0
  for raw in damages(file.read_bytes(), 150):
    file.write_bytes(raw)
    try:
      dataset = opened(source, max_corrupt_fraction=1.0)
      assert pixels(dataset).shape == (len(dataset), 8, 8, 3)
      broken += bool(dataset.broken)
    except UserError as e:
      refused += 1
      assert len(str(e)) < 600
  assert refused > 15 and broken > 1


def test_a_fork_reads_through_its_own_handles(tmp_path, monkeypatch):
  root = images(tmp_path / "in", [f"{i:02}.png" for i in range(30)])
  path = tmp_path / "x.zip"
  source = opened(packed("stored", root, path)).source
  first = source[0]
  before = source._open(path)
  assert source._open(path) is before
  monkeypatch.setattr(os, "getpid", lambda: -1)
  assert source[0] == first and source._open(path) is not before


def test_folders_around_all_files():
  for names, length in {
    ("a/b/1", "a/b/2"): 4,
    ("a/b/1", "a/c/2"): 2,
    ("ab/1", "ac/2"): 0,
    ("a/1", "a/1/2"): 2,
    ("a/1", "1"): 0,
    ("a/b/1",): 4,
    ("a/1", "__MACOSX/a/._1", ".x/1"): 2,
    (): 0,
  }.items():
    assert unwrapped(names) == length, names


def test_cache_folder(monkeypatch, tmp_path):
  monkeypatch.delenv("XDG_CACHE_HOME")
  monkeypatch.setenv("HOME", str(tmp_path))
  assert cache_folder("x") == tmp_path / ".cache" / "gamix_jax" / "x"

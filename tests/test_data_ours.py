"""Files of this program are not data; entries, splits, fingerprints."""

import gzip
import logging
import os
import shutil
import struct

import numpy as np
import pytest
from conftest import flat, save_run, state_of
from PIL import Image
from test_data_sources import images, pixels, says, section

from gamix_jax import build, data, marks, pictures, plots
from gamix_jax.data import folder as folder_lib
from gamix_jax.data.settings import Settings
from gamix_jax.errors import UserError
from gamix_jax.generate import folder as generated


def colours(source, **changes):
  """Returns the red value of each image in both splits, which identifies it."""
  c = section(f"folder:{source}", **changes)
  found = [pixels(data.open_dataset(c, split)) for split in ("train", "test")]
  return [sorted(x[:, 0, 0, 0].tolist()) for x in found]


def photos(root, n=20):
  return images(root, [f"{i:02}.png" for i in range(n)])


def noise(n):
  return np.random.default_rng(0).uniform(-1, 1, (n, 8, 8, 3))


def workdir(path, config_only=False):
  """Returns a run's folder that contains pictures."""
  path.parent.mkdir(parents=True, exist_ok=True)
  spec = build.train_spec(c := flat())
  save_run(path, c, *([] if config_only else [state_of(spec)]))
  for name in () if config_only else ("images/a.png", "eval/samples.png"):
    (path / name).parent.mkdir(exist_ok=True)
    pictures.save_png(path / name, np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize("place", ["run", "runs/a/b", "deep/x"])
def test_a_run_below_its_data_changes_nothing(tmp_path, caplog, place):
  photos(tmp_path / "in" / "photos")
  want = colours(tmp_path)
  workdir(tmp_path / "in" / place)
  # The folder is still scanned; what the run wrote is not in it.
  with caplog.at_level(logging.INFO, "gamix_jax"):
    assert colours(tmp_path) == want
  assert str(tmp_path / "in" / "photos") in caplog.text
  # With a second folder of photos, the run's folder is ignored and named.
  images(tmp_path / "in" / "more", ["z.png"], 50)
  with caplog.at_level(logging.INFO, "gamix_jax"):
    train, test = colours(tmp_path)
  assert sorted(train + test) == [*range(20), 50]
  assert f"folders that gamix_jax wrote (1): {place}" in caplog.text


def test_a_run_that_has_only_begun_is_none_of_the_data(tmp_path):
  photos(tmp_path)
  want = colours(tmp_path)
  workdir(tmp_path / "run", config_only=True)
  images(tmp_path / "run" / "images", ["0.png"], 99)  # from an older version
  assert colours(tmp_path) == want


def test_a_run_in_the_data_folder_itself(tmp_path, caplog):
  photos(tmp_path / "in" / "photos")
  want = colours(tmp_path / "in")
  workdir(tmp_path / "run")
  shutil.copytree(tmp_path / "run", tmp_path / "in", dirs_exist_ok=True)
  assert colours(tmp_path / "in") == want
  images(tmp_path / "in", ["z.png"], 50)
  with caplog.at_level(logging.INFO, "gamix_jax"):
    train, test = colours(tmp_path / "in")
  assert sorted(train + test) == [*range(20), 50]
  assert "pictures that gamix_jax wrote (2)" in caplog.text


def test_generated_images_and_figures_are_left_out(tmp_path, caplog):
  photos(tmp_path)
  want = colours(tmp_path)
  generated.save(tmp_path / "fake", noise(5), {"source": "prior"})
  pictures.save_png(tmp_path / "grid.png", pictures.grid(noise(4), 2))
  from matplotlib.figure import Figure

  plots.save(Figure(), tmp_path / "compare.png")
  with caplog.at_level(logging.INFO, "gamix_jax"):
    assert colours(tmp_path) == want
  assert "(1): fake" in caplog.text
  assert "(2): compare.png, grid.png" in caplog.text


def test_a_cache_below_the_data_changes_nothing(tmp_path):
  photos(tmp_path / "in" / "photos")
  want = colours(tmp_path)
  for _ in range(2):
    assert colours(tmp_path, cache=str(tmp_path / "in" / "cache")) == want
  assert colours(tmp_path) == want


def test_generated_images_alone_are_what_was_asked_for(tmp_path, caplog):
  workdir(tmp_path / "run")
  target = tmp_path / "run" / "fake"
  generated.save(target, noise(12), {"source": "prior"})
  c = section(f"folder:{target}")
  with caplog.at_level(logging.INFO, "gamix_jax"):
    found = [pixels(data.open_dataset(c, s)) for s in ("train", "test")]
  want = {x.tobytes() for x in pictures.to_uint8(noise(12))}
  assert {x.tobytes() for part in found for x in part} == want
  assert "read pictures that gamix_jax wrote" in caplog.text
  # But a folder that contains only runs has no images.
  shutil.rmtree(target)
  workdir(tmp_path / "second")
  says(
    lambda: data.open_dataset(section(f"folder:{tmp_path}"), "train"),
    "no files but those that gamix_jax wrote in run, second",
  )


def test_a_config_of_another_program_is_no_mark(tmp_path):
  images(tmp_path / "a", [f"{i}.png" for i in range(6)])
  images(tmp_path / "b", [f"{i}.png" for i in range(6)], 10)
  for name in ("config.json", "protocol.json", "compare.csv"):
    (tmp_path / "a" / name).write_text('{"architectures": ["x"]}')
  (tmp_path / "a" / "checkpoints").mkdir()
  train, test = colours(tmp_path)
  assert len(train) + len(test) == 12


def test_a_marked_picture_is_the_same_picture(tmp_path):
  x = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
  pictures.save_png(tmp_path / "x.png", x)
  with Image.open(tmp_path / "x.png") as file:
    file.load()
    assert file.info["Software"] == "gamix_jax"
    np.testing.assert_array_equal(np.asarray(file), x)
  assert marks.is_marked((tmp_path / "x.png").read_bytes()[:4096])
  file = tmp_path / "other.png"
  Image.fromarray(x).save(file)
  assert not marks.is_marked(file.read_bytes()[:4096])


# ------------------------------------------------------------------ splits


@pytest.mark.parametrize(
  ("train", "test"),
  [("Training", "Test"), ("training", "testing"), ("TRAIN", "valid")],
)
def test_words_for_the_splits(tmp_path, caplog, train, test):
  images(tmp_path / train, ["a/1.png", "b/2.png"], 1)
  images(tmp_path / test, ["a/3.png"], 3)
  images(tmp_path / "extra", ["4.png"], 4)
  with caplog.at_level(logging.INFO, "gamix_jax"):
    assert colours(tmp_path) == [[1, 2], [3]]
  line = f"trained on {train}/, held out {test}/; 1 images elsewhere are not"
  assert line in caplog.text and "extra/4.png" in caplog.text
  opened = data.open_dataset(section(f"folder:{tmp_path}"), "test")
  assert opened.label_names == ("a", "b")


def test_a_split_by_hash_is_said(tmp_path, caplog):
  photos(tmp_path / "train")
  photos(tmp_path / "dev")
  with caplog.at_level(logging.INFO, "gamix_jax"):
    data.open_dataset(
      section(f"folder:{tmp_path}", test_fraction=0.25), "train"
    )
  assert "so 25 % of the images are held out, by a hash" in caplog.text


# ----------------------------------------------------------------- entries


def test_pipes_sockets_and_devices_are_named(tmp_path, caplog):
  photos(tmp_path)
  os.mkfifo(tmp_path / "pipe.jpg")
  os.symlink("/dev/null", tmp_path / "null.png")
  with caplog.at_level(logging.INFO, "gamix_jax"):
    dataset = data.open_dataset(section(f"folder:{tmp_path}"), "train")
  assert dataset.source.total == 20 and dataset.broken == {}
  text = "not a file (2): null.png (a device), pipe.jpg (a named pipe)"
  assert text in caplog.text
  for source in ("folder", "npz"):
    c = section(f"{source}:{tmp_path}/pipe.jpg")
    says(lambda c=c: data.open_dataset(c, "train"), "pipe.jpg")


def test_links_to_nothing_count_as_broken(tmp_path, caplog):
  photos(tmp_path)
  os.symlink("nowhere.jpg", tmp_path / "a.jpg")
  os.symlink("b.jpg", tmp_path / "b.jpg")
  c = section(f"folder:{tmp_path}", max_corrupt_fraction=0.1)
  dataset = data.open_dataset(c, "train")
  assert list(dataset.broken) == ["a.jpg", "b.jpg"]
  assert "a.jpg: a link to nowhere.jpg, which does not exist" in caplog.text
  assert "b.jpg: cannot be read (Too many levels" in caplog.text
  c.max_corrupt_fraction = 0.05
  says(
    lambda: data.open_dataset(c, "train"),
    "2 of the 22",
    "a link to nowhere.jpg",
  )


def test_an_unreadable_file_counts_as_broken(tmp_path, monkeypatch, caplog):
  photos(tmp_path)

  def refuse(path, *args, real=open, **kwargs):
    if str(path).endswith("07.png"):
      raise PermissionError(13, "Permission denied", path)
    return real(path, *args, **kwargs)

  monkeypatch.setattr(folder_lib, "open", refuse, raising=False)
  c = section(f"folder:{tmp_path}", max_corrupt_fraction=0.1)
  assert list(data.open_dataset(c, "train").broken) == ["07.png"]
  assert "07.png: cannot be read (Permission denied)" in caplog.text


def test_ten_skipped_files_are_named_then_counted(tmp_path, caplog):
  photos(tmp_path)
  for i in range(13):
    (tmp_path / f"bad{i:02}.jpg").write_bytes(b"" if i % 2 else b"<html>")
  data.open_dataset(
    section(f"folder:{tmp_path}", max_corrupt_fraction=0.5), "train"
  )
  assert "bad00.jpg: does not begin as an image" in caplog.text
  assert "bad09.jpg: empty" in caplog.text
  assert "bad10.jpg" not in caplog.text and "and 3 more" in caplog.text


def test_files_met_one_by_one_are_named_up_to_ten(tmp_path, caplog):
  photos(tmp_path, 80)
  for i in range(50):
    file = tmp_path / f"{i:02}.png"
    file.write_bytes(file.read_bytes()[:50])
  dataset = data.open_dataset(
    section(f"folder:{tmp_path}", max_corrupt_fraction=0.9), "train"
  )
  for i in range(len(dataset)):
    dataset[i]
  n = len(dataset.broken)
  assert 30 < n <= 50 and caplog.text.count("cannot be decoded") == 10
  counted = [r.args[1] for r in caplog.records if "skipped" in r.msg]
  assert counted == sorted(counted) and counted[-1] > n / 2
  assert len(counted) <= 10 + 3


def test_names_that_are_not_utf8(tmp_path, caplog):
  raw = os.fsencode(tmp_path)
  for label in (b"caf\xe9", b"$th\xe9"):
    os.makedirs(raw + b"/" + label)
    for i in range(8):
      Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "x.png")
      os.replace(tmp_path / "x.png", raw + b"/" + label + b"/%d\xff.png" % i)
  with open(raw + b"/caf\xe9/bad\xe9.png", "wb"):
    pass
  caplog.set_level(logging.INFO, "gamix_jax")
  c = section(f"folder:{tmp_path}", max_corrupt_fraction=0.1)
  dataset = data.open_dataset(c, "train")
  assert dataset.label_names == ("$th\\xe9", "caf\\xe9")
  assert list(dataset.broken) == ["caf\\xe9/bad\\xe9.png"]
  caplog.text.encode()  # strictly
  for word in ("caf\\xe9", "caf\udce9"):  # escaped, or as the shell passes it
    c.exclude_labels = (word,)
    left = data.open_dataset(c, "train")
    assert set(left.labels()) == {0}
    assert left.excluded == (1,)


# ------------------------------------------------------------------- labels


def numbered(root):
  """Folders 1 to 11, each with images of its own colour."""
  for k in range(1, 12):
    images(root, [f"{k}/{i}.png" for i in range(8)], 10 * k)
  return root


def left(root, excluded):
  dataset = data.open_dataset(
    section(f"folder:{root}", exclude_labels=excluded), "train"
  )
  names = {dataset.label_names[k] for k in dataset.labels()}
  assert {dataset.label_names[k] for k in dataset.excluded}.isdisjoint(names)
  return {str(k) for k in range(1, 12)} - names


def test_classes_are_left_out_by_name_first(tmp_path):
  root = numbered(tmp_path)
  # Sorted: "1", "10", "11", "2", ...: 1 may be "1", or class number 1, "10".
  message = says(lambda: left(root, (1,)), "('1',)", "('10',)")
  assert "1 is the name of one class and the number of another" in message
  assert left(root, ("1",)) == {"1"}
  assert left(root, ("10", "3")) == {"10", "3"}
  assert left(root, (11,)) == {"11"}  # no class has number 11
  assert left(root, (0,)) == {"1"}  # no class is named 0
  says(lambda: left(root, ("0",)), "no images of class '0'", "1, 10, 11")
  says(lambda: left(root, (12,)), "no images of class 12")
  for k in (3, "3"):
    c = section("digits", channels=1, exclude_labels=(k,))
    assert set(data.open_dataset(c, "train").labels()) == set(range(10)) - {3}


# -------------------------------------------------------------- fingerprints


def prints(source, **changes):
  c = section(source, **changes)
  return [data.open_dataset(c, s).fingerprint() for s in ("train", "test")]


def test_a_fingerprint_is_of_what_is_in_the_files(tmp_path):
  images(tmp_path / "a", [f"x/{i}.png" for i in range(20)])
  big = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
  Image.fromarray(big).save(tmp_path / "a" / "x" / "big.png")
  images(tmp_path / "a", [f"y/{i}.png" for i in range(20)], 30)
  want = prints(f"folder:{tmp_path}/a")
  assert len(set(want)) == 2 and all(len(p) == 16 for p in want)
  shutil.copytree(tmp_path / "a", tmp_path / "b")  # other path and times
  os.utime(tmp_path / "b" / "x" / "1.png", (1, 1))
  moved = f"folder:{tmp_path}/b"
  assert prints(moved) == want
  assert prints(moved, exclude_labels=("y",)) == want
  assert prints(moved, cache="memory", image_size=16) == want

  def changed():
    return prints(moved) != want

  file = tmp_path / "b" / "x" / "big.png"
  raw = file.read_bytes()
  for at in (100, len(raw) - 100):  # a different byte at either end
    file.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
    assert changed()
  file.write_bytes(raw)
  assert not changed()
  (tmp_path / "b" / "y").rename(tmp_path / "b" / "z")
  assert changed()


def test_a_fingerprint_of_arrays(tmp_path):
  x = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
  y = np.arange(20) % 3
  np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:5])
  np.savez_compressed(
    tmp_path / "b.npz",
    images=x / 255.0, labels=y.astype(np.int16), test_images=x[:5] / 255.0,
  )  # fmt: skip
  want = prints(f"npz:{tmp_path}/a.npz")
  assert prints(f"npz:{tmp_path}/b.npz") == want
  np.savez(tmp_path / "b.npz", x_train=x, y_train=y[::-1], x_test=x[:5])
  assert prints(f"npz:{tmp_path}/b.npz")[0] != want[0]
  x[3, 4, 5] ^= 1
  np.savez(tmp_path / "b.npz", x_train=x, y_train=y, x_test=x[:5])
  other = prints(f"npz:{tmp_path}/b.npz")
  assert other[0] != want[0]

  raw = bytes([0, 0, 8, 3]) + struct.pack(">3I", *x.shape) + x.tobytes()
  for name, content in (("i", raw), ("j", gzip.compress(raw, mtime=0))):
    (tmp_path / name).mkdir()
    ending = ".gz" if name == "j" else ""
    file = tmp_path / name / f"train-images-idx3-ubyte{ending}"
    file.write_bytes(content)
  assert prints(f"idx:{tmp_path}/i") == prints(f"idx:{tmp_path}/j")
  assert prints("digits") == prints("digits", exclude_labels=(3,))
  assert prints("synthetic:8") != prints("synthetic:9")


def test_absolute(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", "/home/x")
  for source, want in {
    "folder:a b/[1]": f"folder:{tmp_path}/a b/[1]",
    "npz:~/x.npz": "npz:/home/x/x.npz",
    "idx:mnist/emnist-balanced": f"idx:{tmp_path}/mnist/emnist-balanced",
    "folder:/d:e": "folder:/d:e",
    "folder:": "folder:",
    "digits": "digits",
    "tfds:mnist": "tfds:mnist",
    "synthetic:9": "synthetic:9",
    "flickr:x": "flickr:x",
  }.items():
    assert data.resolve_source(source) == want


def test_a_folder_called_none():
  for slip in ("None", "", "True", "false", " none", "0"):
    with pytest.raises(UserError, match=r"data\.cache.*none"):
      Settings.from_config({**section("digits"), "cache": slip})
  for fine in ("none", "memory", "./None", "nonesuch"):
    assert (
      Settings.from_config({**section("digits"), "cache": fine}).cache == fine
    )

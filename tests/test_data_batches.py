"""The batch of step t: hosts, workers, resuming, epochs, orphaned workers."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gamix_jax import data
from gamix_jax.data.batches import flip_horizontally
from gamix_jax.data.index_sampler import IndexSampler
from gamix_jax.errors import UserError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  """27 small noisy JPEG files, one of them truncated; label = file index."""
  root = tmp_path_factory.mktemp("images")
  rng = np.random.default_rng(0)
  for i in range(36):
    noise = rng.integers(0, 256, (16, 16, 3), np.uint8)
    (root / f"{i:02}").mkdir()
    Image.fromarray(noise).save(root / f"{i:02}" / "x.jpg")
  settings = data.Settings(
    source=f"folder:{root}",
    image_size=8,
    channels=3,
    batch_size=8,
    max_corrupt_fraction=0.5,
  )
  ds = data.open_dataset(settings, "train")
  broken = root / ds.source.name(5)
  broken.write_bytes(broken.read_bytes()[:300])
  return ds


def take(dataset, n, **how):
  """Returns the first n batches."""
  how = {"batch_size": 8, "seed": 3, "flip": True} | how
  stream = data.batches(dataset, **how)
  try:
    return [next(stream) for _ in range(n)]
  finally:
    stream.close()


def same(a, b):
  """Whether the batches are bitwise equal."""
  assert len(a) == len(b)
  for x, y in zip(a, b, strict=True):
    assert x.keys() == y.keys() == {"image", "label"}
    for k in x:
      assert x[k].dtype == y[k].dtype
      np.testing.assert_array_equal(x[k], y[k])


def test_the_rows_are_the_images_mirrored_or_not(dataset):
  """Labels match the images; a replacement image comes with its own label."""
  order = IndexSampler(len(dataset), 8, 3, shuffle=True, flip=True)
  for t, batch in enumerate(take(dataset, 9)):
    assert batch["image"].shape == (8, 8, 8, 3)
    assert batch["image"].dtype == np.uint8
    assert batch["label"].shape == (8,) and batch["label"].dtype == np.int32
    for row, (i, flip) in enumerate(
      zip(order.rows(t), order.flips(t), strict=True)
    ):
      image, label = dataset[int(i)]["image"], dataset[int(i)]["label"]
      want = image[:, ::-1] if flip else image
      np.testing.assert_array_equal(batch["image"][row], want)
      read = int(i) + (int(i) == 5)  # image 5 is broken
      assert batch["label"][row] == label == dataset.labels()[read]
  flips = np.concatenate([order.flips(t) for t in range(200)])
  assert 0.45 < flips.mean() < 0.55


def test_every_epoch_is_a_permutation():
  for n, b in ((27, 8), (8, 8), (5, 16), (1, 4), (1000, 64)):
    order = IndexSampler(n, b, 0, shuffle=True, flip=False)
    steps = -(-4 * n // b)
    seen = np.concatenate([order.rows(t) for t in range(steps)])[: 4 * n]
    epochs = seen.reshape(4, n)
    assert (np.sort(epochs) == np.arange(n)).all()
    if n > 20:
      assert (epochs[0] != epochs[1]).any()
    # Each step on its own, in any order.
    for t in (steps - 1, 0, steps // 2):
      again = IndexSampler(n, b, 0, shuffle=True, flip=False).rows(t)
      np.testing.assert_array_equal(
        again[: 4 * n - t * b], seen[t * b : t * b + b]
      )


def test_the_seed_counts():
  rows = [
    IndexSampler(99, 9, s, shuffle=True, flip=True).rows(0) for s in (0, 1, -1)
  ]
  assert len({r.tobytes() for r in rows}) == 3


def test_workers_and_hosts_and_resuming_change_nothing(dataset):
  straight = take(dataset, 8)
  same(take(dataset, 5, start=3), straight[3:])
  same(take(dataset, 5, start=3, workers=2), straight[3:])
  for hosts in (2, 4):
    parts = [
      take(dataset, 8, process_index=i, process_count=hosts)
      for i in range(hosts)
    ]
    joined = [
      {k: np.concatenate([p[t][k] for p in parts]) for k in ("image", "label")}
      for t in range(8)
    ]
    same(joined, straight)
  assert len(dataset.broken) == 1  # also if a worker found it


def test_workers_report_broken_files(dataset):
  fresh = data.open_dataset(dataset.settings, "train")
  take(fresh, 8, workers=1)
  assert list(fresh.broken) == [dataset.source.name(5)]


@pytest.mark.parametrize("cache", ["memory", "folder"])
def test_cached_batches_are_the_same(dataset, tmp_path, cache):
  cache = str(tmp_path) if cache == "folder" else cache
  settings = {**vars(dataset.settings), "cache": cache}
  got = take(data.open_dataset(settings, "train"), 8, workers=2)
  same(got, take(dataset, 8))


def test_no_shuffle_no_flip(dataset):
  got = take(dataset, 4, train=False)
  want = [dataset[i % len(dataset)]["image"] for i in range(32)]
  np.testing.assert_array_equal(
    np.concatenate([b["image"] for b in got]), np.stack(want)
  )


def test_a_small_set_fills_the_batch(caplog):
  settings = dict(source="synthetic:3", image_size=8, channels=1, batch_size=8)
  (batch,) = take(data.open_dataset(settings, "train"), 1, flip=False)
  assert len({row.tobytes() for row in batch["image"]}) == 3
  assert "3 images" in caplog.text


def test_uneven_hosts():
  settings = dict(source="synthetic", image_size=8, channels=1, batch_size=8)
  dataset = data.open_dataset(settings, "train")
  with pytest.raises(UserError, match="3 hosts"):
    take(dataset, 1, process_count=3)
  with pytest.raises(UserError, match="3 hosts"):
    next(data.eval_batches(dataset, batch_size=8, process_count=3))


def test_evaluation_sees_every_image_once(dataset):
  got = list(data.eval_batches(dataset, batch_size=8))
  assert len(got) == -(-len(dataset) // 8)
  assert {b["image"].shape for b in got} == {(8, 8, 8, 3)}
  valid = np.concatenate([b["valid"] for b in got])
  assert valid.dtype == np.float32 and valid.sum() == len(dataset)
  images = np.concatenate([b["image"] for b in got])[valid == 1]
  want = np.stack([dataset[i]["image"] for i in range(len(dataset))])
  np.testing.assert_array_equal(images, want)
  hosts = [
    list(
      data.eval_batches(dataset, batch_size=8, process_index=i, process_count=2)
    )
    for i in range(2)
  ]
  for whole, a, b in zip(got, *hosts, strict=True):
    for k in whole:
      np.testing.assert_array_equal(whole[k], np.concatenate([a[k], b[k]]))


def test_a_dead_worker_is_said_plainly(dataset):
  stream = data.batches(dataset, batch_size=8, seed=0, workers=1)
  next(stream)
  for child in multiprocessing.active_children():
    child.kill()
  with pytest.raises(UserError, match=r"data\.workers"):
    for _ in range(20):
      next(stream)
  stream.close()
  with pytest.raises(ValueError, match="closed"):
    next(stream)


SCRIPT = """
import sys, time
from gamix_jax import data
if __name__ == "__main__":
  ds = data.open_dataset(dict(source="synthetic", image_size=8, channels=3,
                      batch_size=8), "train")
  stream = data.batches(ds, batch_size=8, seed=0, workers=2)
  next(stream), next(stream), next(stream)
  print("ready", flush=True)
  if sys.argv[1] == "sleep":
    time.sleep(600)
"""


def children(pid):
  """Returns the processes that any thread of `pid` started, from /proc."""
  lists = Path(f"/proc/{pid}/task").glob("*/children")
  return [int(p) for found in lists for p in found.read_text().split()]


def alive(pid):
  """Whether the process runs; a zombie does not."""
  try:
    return (
      Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0] != "Z"
    )
  except FileNotFoundError:
    return False


@pytest.mark.skipif(
  not Path(f"/proc/self/task/{os.getpid()}/children").exists(),
  reason="lists child processes through Linux's /proc",
)
def test_workers_die_with_a_killed_parent(tmp_path):
  (tmp_path / "script.py").write_text(SCRIPT)
  parent = subprocess.Popen(
    [sys.executable, str(tmp_path / "script.py"), "sleep"],
    stdout=subprocess.PIPE,
  )
  try:
    assert parent.stdout.readline() == b"ready\n"
    workers = children(parent.pid)
    assert len(workers) >= 2
  finally:
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
  end = time.monotonic() + 10
  while any(map(alive, workers)) and time.monotonic() < end:
    time.sleep(0.1)
  assert [p for p in workers if alive(p)] == []


def test_a_program_that_forgets_to_close_ends(tmp_path):
  (tmp_path / "script.py").write_text(SCRIPT)
  ran = subprocess.run(
    [sys.executable, str(tmp_path / "script.py"), "end"],
    check=False,
    capture_output=True,
    timeout=60,
    text=True,
  )
  assert (ran.returncode, ran.stdout) == (0, "ready\n"), ran.stderr
  assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("cache", ["none", "memory", "folder"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_is_its_images(tmp_path, cache, channels):
  """Bitwise: pixels and labels, also of repeated rows; arrays are new."""
  images = np.random.default_rng(0).integers(0, 256, (40, 6, 10, 3), np.uint8)
  np.savez(tmp_path / "x.npz", images=images, labels=np.arange(40))
  settings = dict(
    source=f"npz:{tmp_path}/x.npz",
    image_size=(6, 10),
    channels=channels,
    crop="none",
    batch_size=9,
    cache=str(tmp_path / "cache") if cache == "folder" else cache,
  )
  dataset = data.open_dataset(settings, "train")
  index = np.random.default_rng(1).integers(0, len(dataset), 9)
  index[1] = index[0]
  with ThreadPoolExecutor(3) as pool:
    got = dataset.load_batch(index, pool)
  assert got.keys() == {"image", "label"} and dataset.broken == {}
  for row, i in enumerate(index):
    item = dataset.load(int(i))
    np.testing.assert_array_equal(got["image"][row], item["image"])
    assert got["label"][row] == item["label"]
    if channels == 3:
      np.testing.assert_array_equal(item["image"], images[item["label"]])
  assert got["image"].dtype == np.uint8 and got["label"].dtype == np.int32
  again = dataset.load_batch(index)
  for key, array in got.items():
    assert array.flags.owndata and array.flags.c_contiguous
    assert not np.shares_memory(array, again[key])
    np.testing.assert_array_equal(array, again[key])


@pytest.mark.parametrize("channels", [1, 3])
def test_flip_horizontally(channels):
  shape = (5, 6, 10, channels)
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  np.testing.assert_array_equal(
    flip_horizontally(images), images[:, :, ::-1, :]
  )


def test_threads_end_with_the_batches(dataset):
  def decoding():
    return [t for t in threading.enumerate() if t.name.startswith("decode")]

  stream = data.batches(dataset, batch_size=8, seed=0)
  next(stream)
  assert decoding() or os.cpu_count() == 1
  stream.close()
  next(data.eval_batches(dataset, batch_size=8))
  gc.collect()
  end = time.monotonic() + 10
  while decoding() and time.monotonic() < end:
    time.sleep(0.01)
  assert decoding() == []

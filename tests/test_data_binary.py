"""`data.binarize`: probabilities, fixed and new draws, hosts, caches, runs."""

import numpy as np
import pytest
import scipy.stats

from gamix_jax import data
from gamix_jax.data.batches import flip_horizontally
from gamix_jax.data.binary import binarize, draw_levels
from gamix_jax.data.index_sampler import IndexSampler
from gamix_jax.errors import UserError


def opened(split="train", seed=0, **keys):
  keys = {"binarize": "dynamic", "channels": 1} | keys
  settings = dict(source="synthetic:40", image_size=8, batch_size=8) | keys
  return data.open_dataset(settings, split, seed)


def take(dataset, n, **how):
  """The images of the first n batches."""
  stream = data.batches(dataset, **({"batch_size": 8, "seed": 3} | how))
  try:
    return [next(stream)["image"] for _ in range(n)]
  finally:
    stream.close()


def test_probabilities():
  """Each of the 256 levels is white as often as it says."""
  n = 20_000
  images = np.broadcast_to(np.arange(256, dtype=np.uint8), (n, 256))
  levels = draw_levels(np.random.default_rng(0), images.shape)
  white = binarize(images, levels)
  assert white.dtype == np.uint8 and set(np.unique(white)) == {0, 255}
  counts = (white == 255).sum(0)
  assert counts[0] == 0 and counts[255] == n
  tails = scipy.stats.binom.cdf(counts, n, np.arange(256) / 255)
  assert tails[1:255].min() > 1e-5 and tails[1:255].max() < 1 - 1e-5


@pytest.mark.parametrize("kind", ["fixed", "dynamic"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_fixed_draws(kind, split):
  """Of an image, however it is read; they do not depend on the run's seed."""
  dataset = opened(split, source="digits", binarize=kind)
  grey = opened(split, source="digits", binarize="none")
  assert len(dataset) == len(grey)
  batch = dataset.load_batch(np.array([4, 0, 4]))
  np.testing.assert_array_equal(batch["image"][0], batch["image"][2])
  np.testing.assert_array_equal(batch["image"][1], dataset[0]["image"])
  assert batch["label"][0] == grey[4]["label"]
  again = opened(split, seed=5, source="digits", binarize="fixed")
  cached = opened(split, source="digits", binarize=kind, cache="memory")
  assert cached.in_memory and not dataset.in_memory
  for other in (again, cached):
    np.testing.assert_array_equal(dataset[7]["image"], other[7]["image"])
  rows = np.arange(len(grey))
  levels = grey.load_batch(rows)["image"].astype(float)
  white = dataset.load_batch(rows)["image"]
  assert set(np.unique(white)) == {0, 255}
  assert (white[levels == 0] == 0).all() and (white[levels == 255] > 0).all()
  p = levels / 255
  spread = 255 * np.sqrt((p * (1 - p)).sum()) / p.size
  assert abs(white.mean() - levels.mean()) < 5 * spread


def test_splits_have_draws_of_their_own():
  keys = dict(source="synthetic:400", binarize="fixed", image_size=16)
  a, b = opened("train", **keys), opened("test", **keys)
  assert (a._levels(0) != b._levels(0)).mean() > 0.9


def test_dynamic_draws_are_new_in_each_step():
  """A function of (seed, step): the mean over steps tends to the grey image."""
  dataset = opened(binarize="dynamic", source="synthetic:8")
  grey = dataset.grey
  steps = 2_000
  seen = np.zeros((8, 8, 8, 1))
  order = IndexSampler(8, 8, 3, shuffle=True, flip=False)
  for t, images in enumerate(take(dataset, steps)):
    seen[order.rows(t)] += images / 255 / steps
  p = grey.load_batch(np.arange(8))["image"] / 255
  error = np.abs(seen - p)
  assert (error <= 5.5 * np.sqrt(p * (1 - p) / steps)).all()
  assert error.mean() > 1e-4  # they are draws and not the levels


def test_resumed_hosts_and_mirrored():
  """Batches are the same in two halves, from a later step, and by hosts."""
  dataset = opened(channels=3)
  whole = take(dataset, 6, flip=True)
  for a, b in zip(whole[2:], take(dataset, 4, start=2, flip=True), strict=True):
    np.testing.assert_array_equal(a, b)
  hosts = [
    take(dataset, 6, flip=True, process_index=i, process_count=2)
    for i in (0, 1)
  ]
  for step, images in enumerate(whole):
    parts = np.concatenate([host[step] for host in hosts])
    np.testing.assert_array_equal(images, parts)
  sampler = IndexSampler(len(dataset), 8, 3, shuffle=True, flip=True)
  images = dataset.grey.load_batch(sampler.rows(1))["image"]
  images = binarize(images, sampler.levels(1, images.shape[1:]))
  flips = sampler.flips(1)
  images[flips] = flip_horizontally(images[flips])
  np.testing.assert_array_equal(images, whole[1])


@pytest.mark.parametrize("train", [True, False])
def test_what_is_not_drawn_anew(train):
  """Fixed images in training, and both kinds elsewhere."""
  dataset = opened(binarize="fixed" if train else "dynamic")
  order = IndexSampler(len(dataset), 8, 3, shuffle=train, flip=False)
  for t, images in enumerate(take(dataset, 7, train=train)):
    want = dataset.load_batch(order.rows(t))["image"]
    np.testing.assert_array_equal(images, want)
  (batch,) = data.eval_batches(dataset, batch_size=4, at_most=4)
  np.testing.assert_array_equal(batch["image"][0], dataset[0]["image"])


def test_a_cache_in_a_folder_holds_grey_levels(tmp_path):
  """One cache serves all kinds, and a fingerprint names the same images."""
  made = [
    opened(binarize=kind, cache=str(tmp_path), source="digits")
    for kind in ("dynamic", "none", "fixed")
  ]
  assert len([p for p in tmp_path.iterdir() if p.is_dir()]) == 1
  assert len({d.fingerprint() for d in made}) == 1
  plain = opened(binarize="fixed", source="digits")
  np.testing.assert_array_equal(made[2][3]["image"], plain[3]["image"])
  assert len(np.unique(made[1].load_batch(np.arange(50))["image"])) > 2


def test_mistakes():
  with pytest.raises(UserError, match=r"binarize='yes' must be one of none, f"):
    opened(binarize="yes")
  with pytest.raises(UserError, match=r"for images.*--config.data.binarize=no"):
    opened(modalities=("m0 4x4x1 l1", "m1 4x4x1 l1"), flip=False)

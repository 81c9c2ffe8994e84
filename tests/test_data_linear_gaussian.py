"""Sources that are made of known latents, against SciPy and the definitions."""

import itertools
import re

import numpy as np
import pytest
import scipy.stats

from gamix_jax.data import Settings
from gamix_jax.data.ivae import Ivae
from gamix_jax.data.linear_gaussian import LinearGaussian, sizes
from gamix_jax.data.pipeline import SOURCES
from gamix_jax.errors import UserError
from gamix_jax.metrics import mcc_strong, mcc_weak


def opened(source, split="train", seed=0, **changes):
  settings = Settings(
    source=source, image_size=8, channels=1, batch_size=4, flip=False, **changes
  )
  name, rest = re.fullmatch(r"(\w+):?(.*)", source).groups()
  return SOURCES[name](rest, split, settings, seed)


def joint(model, seen):
  """Returns the covariance of (z, x_S), from the definition."""
  w = np.concatenate([model.loadings[model.names[m]] for m in seen])
  top = np.concatenate([np.eye(w.shape[1]), w.T], 1)
  low = np.concatenate([w, w @ w.T + np.eye(len(w))], 1)
  return np.concatenate([top, low])


every_model = pytest.mark.parametrize(
  "model",
  [
    LinearGaussian(modalities=4),
    LinearGaussian(3, modalities=3, latent=2, sparse=True),
  ],
  ids=["shared", "sparse"],
)


@every_model
def test_log_prob_and_posterior_are_those_of_the_joint_gaussian(model):
  """For every set of modalities, in one call."""
  m = len(model.names)
  masks = np.array(list(itertools.product((0, 1), repeat=m)), np.float32)
  x, _ = model.draw(len(masks), np.random.default_rng(0))
  log_p = model.log_prob(x, masks)
  means, covariances = model.posterior(x, masks)
  for i, mask in enumerate(masks):
    seen = np.flatnonzero(mask)
    latents = means.shape[1]
    if not len(seen):
      assert log_p[i] == 0
      np.testing.assert_array_equal(means[i], 0)
      np.testing.assert_array_equal(covariances[i], np.eye(latents))
      continue
    row = np.concatenate([x[model.names[k]][i] for k in seen])
    c = joint(model, seen)
    xx, zx = c[latents:, latents:], c[:latents, latents:]
    wanted = scipy.stats.multivariate_normal(cov=xx).logpdf(row)
    np.testing.assert_allclose(log_p[i], wanted, rtol=1e-10)
    gain = zx @ np.linalg.inv(xx)
    np.testing.assert_allclose(means[i], gain @ row, atol=1e-10)
    np.testing.assert_allclose(
      covariances[i], np.eye(latents) - gain @ zx.T, atol=1e-10
    )


@every_model
def test_loadings(model):
  assert sum(map(len, model.loadings.values())) == sum(
    sizes({4: 0, 3: 3}[len(model.names)], len(model.names))
  )
  for k, w in enumerate(model.loadings.values()):
    own = w[:, (w != 0).any(0)]
    np.testing.assert_allclose(own.T @ own, np.eye(own.shape[1]), atol=1e-12)
    # The shared latents, and those of this modality.
    wanted = np.arange(model.shared)
    if w.shape[1] > model.shared:
      first = model.shared * (1 + k)
      wanted = np.r_[wanted, first : first + model.shared]
    np.testing.assert_array_equal(np.flatnonzero((w != 0).any(0)), wanted)


def test_with_shared_latents_the_posterior_has_a_closed_form():
  """W'W = I, so that |S| modalities give the precision 1 + |S|."""
  model = LinearGaussian()
  x, z = model.draw(4000, np.random.default_rng(1))
  means, covariances = model.posterior(x)
  np.testing.assert_allclose(
    covariances, np.eye(5)[None] / 6 + 0 * covariances, atol=1e-12
  )
  error = z - means
  np.testing.assert_allclose(np.cov(error.T), np.eye(5) / 6, atol=0.02)


def test_what_is_missing_is_not_looked_at():
  model = LinearGaussian()
  x, _ = model.draw(3, np.random.default_rng(2))
  mask = np.array([[1, 0, 1, 1, 1]] * 3)
  wanted = model.log_prob(x, mask)
  x["x1"] = np.full_like(x["x1"], np.nan)
  np.testing.assert_array_equal(model.log_prob(x, mask), wanted)
  with pytest.raises(ValueError, match="the mask is"):
    model.log_prob(x, mask[:2])
  with pytest.raises(ValueError, match="x4 is"):
    model.log_prob(x | {"x4": x["x4"][:, 1:]})


def test_the_source():
  source = opened("linear_gaussian")
  assert source.names == ("x0", "x1", "x2", "x3", "x4")
  assert (len(source), len(opened("linear_gaussian", "test"))) == (5000, 1000)
  assert tuple(a.shape[1] for a in source.arrays.values()) == sizes()
  assert all(30 <= d <= 59 for d in sizes())
  assert source.latents.shape == (5000, 5)
  noise = source.arrays["x2"] - source.latents @ source.model.loadings["x2"].T
  np.testing.assert_allclose(noise.var(0), 1, atol=0.1)
  assert source.arrays["x2"].dtype == np.float32
  # Two splits and two seeds are other rows; the run's seed changes nothing.
  prints = [
    opened(*args).fingerprint()
    for args in (
      ("linear_gaussian",),
      ("linear_gaussian", "test"),
      ("linear_gaussian?seed=1",),
      ("linear_gaussian?sparse=1",),
    )
  ]
  assert len(set(prints)) == 4
  assert opened("linear_gaussian?seed=0", seed=9).fingerprint() == prints[0]


def test_the_source_is_of_its_model():
  """The mean of ln p(x) is the entropy's; and of another model less."""
  source = opened("linear_gaussian?seed=4&sparse=1&modalities=3", "test")
  model = LinearGaussian.of_source(
    "linear_gaussian?sparse=1&seed=4&modalities=3"
  )
  assert source.latents.shape == (1000, 20)
  log_p = source.model.log_prob(source.arrays)
  np.testing.assert_array_equal(model.log_prob(source.arrays), log_p)
  c = joint(model, range(3))[20:, 20:]
  entropy = scipy.stats.multivariate_normal(cov=c).entropy()
  error = log_p.std() / np.sqrt(len(log_p))
  assert abs(log_p.mean() + entropy) < 4 * error
  other = LinearGaussian(4, modalities=3)
  assert other.log_prob(source.arrays).mean() < log_p.mean() - 1


def test_some_modalities():
  all_of = opened("linear_gaussian")
  some = opened("linear_gaussian", modalities=(f"x3 {sizes()[3]} l2",))
  assert some.names == ("x3",)
  np.testing.assert_array_equal(some.arrays["x3"], all_of.arrays["x3"])


@pytest.mark.parametrize(
  ("source", "words"),
  [
    ("linear_gaussian:3", "takes options only, not 3"),
    ("linear_gaussian?latent=16", "from 1 to 15"),
    ("linear_gaussian?seed=-1", "0 or more"),
    ("linear_gaussian?sparse=yes", "from 0 to 1"),
    ("linear_gaussian?views=3", "latent (a whole number from 1 to 15; 5)"),
    ("ivae:3", "takes options only, not 3"),
    ("ivae?sed=1", "Did you mean seed=?"),
  ],
)
def test_mistakes(source, words):
  with pytest.raises(UserError) as e:
    opened(source)
  assert words in str(e.value)
  with pytest.raises(UserError, match="is not linear_gaussian"):
    LinearGaussian.of_source("ivae")


# --------------------------------------------------------------------- ivae


def test_ivae():
  source = opened("ivae")
  assert (len(source), len(opened("ivae", "test"))) == (4000, 1000)
  assert source.names == ("x", "segment")
  segments = source.labels()
  assert (source.arrays["segment"] == np.eye(5)[segments]).all()
  assert np.bincount(segments).min() > 700
  scales = [source.latents[segments == k].std(0) for k in range(5)]
  assert np.ptp(scales, axis=0).min() > 0.5  # they depend on the segment
  means = [source.latents[segments == k].mean(0) for k in range(5)]
  assert np.abs(np.array(means) / scales).max() < 0.15
  for k in range(5):
    r = np.corrcoef(source.latents[segments == k].T)[0, 1]
    assert abs(r) < 0.12
  again = opened("ivae?seed=0", seed=3)
  assert again.fingerprint() == source.fingerprint()
  assert opened("ivae?seed=1").fingerprint() != source.fingerprint()


def test_ivae_mixes_nonlinearly_and_can_be_undone():
  """Piecewise linear: exact within a region, up to the noise; not beyond."""
  source = opened("ivae")
  x = source.arrays["x"].astype(np.float64)
  s = source.latents
  assert mcc_strong(s, x) < 0.98
  whole = residual(s, x)
  assert whole > 0.2
  # Rows of one region of the network, found by the two hidden units.
  hidden = s @ first_layer(0).T
  for signs in itertools.product((-1, 1), repeat=2):
    rows = (np.sign(hidden) == signs).all(1)
    assert residual(s[rows], x[rows]) == pytest.approx(0.1, abs=0.01)
  assert mcc_strong(s, s[:, ::-1] * [2, -1]) == pytest.approx(1)
  assert mcc_weak(s, x) < 0.99


def first_layer(seed):
  """Returns the first matrix of the mixing network."""
  rng = np.random.default_rng((80, seed, 0))
  rng.uniform(size=(5, 2))
  return np.linalg.qr(rng.normal(size=(2, 2)))[0]


def residual(s, x):
  """Returns the standard deviation of x given the best affine map of s."""
  a = np.concatenate([s, np.ones((len(s), 1))], 1)
  return float((x - a @ np.linalg.lstsq(a, x)[0]).std())


def test_ivae_has_one_law_for_both_splits():
  train, test = opened("ivae"), opened("ivae", "test")
  for k in range(5):
    ratio = [s.latents[s.labels() == k].std(0) for s in (train, test)]
    np.testing.assert_allclose(*ratio, rtol=0.25)
  assert isinstance(train, Ivae)
  shared = set(map(bytes, train.arrays["x"])) & set(
    map(bytes, test.arrays["x"])
  )
  assert not shared

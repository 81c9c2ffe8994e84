"""Metrics against SciPy, quadrature, closed forms and exhaustive averages."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.signal
from scipy import stats

from gamix_jax import metrics
from gamix_jax.errors import UserError
from gamix_jax.evaluate import settings
from gamix_jax.metrics import specs
from gamix_jax.posterior import Gaussian, Mixture
from gamix_jax.training import progress

LAPLACE = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])


def rng(seed=0):
  return np.random.default_rng(seed)


def gaussian(mu, logvar):
  return Gaussian(jnp.asarray(mu, jnp.float32), jnp.asarray(logvar, "float32"))


def mixture(n=7, k=3, d=2, seed=0):
  r = rng(seed)
  parts = (
    r.normal(size=(n, k)),
    r.normal(0.3, 1.3, (n, k, d)),
    r.normal(-1, 0.5, (n, k, d)),
  )
  return Mixture(*(jnp.asarray(v, jnp.float32) for v in parts))


# ----------------------------------------------------------- sharpness


def test_sharpness_of_a_constant_and_of_noise():
  flat = metrics.sharpness(jnp.full((2, 8, 9, 3), 0.3))
  np.testing.assert_allclose(flat, 0, atol=1e-12)
  # Noise of 0.1 on [0, 1] is noise of 0.2 on [-1, 1].
  noise = jnp.asarray(rng().normal(0, 0.2, (64, 64, 64, 1)), jnp.float32)
  got = metrics.sharpness(noise)
  assert got.shape == (64,)
  np.testing.assert_allclose(np.mean(got), 20 * 0.1**2, rtol=0.03)


def test_sharpness_is_scipys():
  x = rng().uniform(-1, 1, (3, 7, 9, 3))
  grey = (x.mean(axis=-1) + 1) / 2
  want = [scipy.signal.convolve2d(g, LAPLACE, "valid").var() for g in grey]
  got = metrics.sharpness(jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_sharpness_refuses_small_images():
  with pytest.raises(UserError, match="3x3"):
    metrics.sharpness(jnp.zeros((1, 2, 8, 1)))


# ------------------------------------------------------------- Frechet


@pytest.mark.parametrize("rows", [500, 4])  # 4: covariances are singular
def test_frechet_is_scipys(rows):
  a = rng(0).normal(size=(500, 6)) @ rng(1).normal(size=(6, 6))
  b = rng(2).normal(0.5, 2, (rows, 6))
  sa, sb = np.cov(a.T), np.cov(b.T)
  if rows > 6:
    cross = np.trace(scipy.linalg.sqrtm(sa @ sb)).real
  else:  # sqrtm needs regular matrices; singular values do not
    root = scipy.linalg.cholesky(sa, lower=True)
    rest = (b - b.mean(axis=0)) / np.sqrt(rows - 1)
    cross = scipy.linalg.svdvals(rest @ root).sum()
  want = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(sa + sb) - 2 * cross
  np.testing.assert_allclose(metrics.frechet_distance(a, b), want, rtol=1e-6)
  np.testing.assert_allclose(metrics.frechet_distance(b, a), want, rtol=1e-6)


def test_frechet_in_one_dimension_and_of_itself():
  a, b = rng(0).normal(1, 2, (50, 1)), rng(1).normal(3, 0.5, (70, 1))
  want = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
  np.testing.assert_allclose(metrics.frechet_distance(a, b), want, rtol=1e-9)
  c = rng(2).normal(size=(100, 20))
  assert 0 <= metrics.frechet_distance(c, c) < 1e-9


@pytest.mark.parametrize(
  ("a", "b", "words"),
  [
    (np.zeros((1, 3)), np.zeros((5, 3)), "rows"),
    (np.zeros((5, 2)), np.zeros((5, 3)), "features"),
    (np.full((5, 3), np.nan), np.zeros((5, 3)), "finite"),
  ],
)
def test_frechet_refuses(a, b, words):
  with pytest.raises(UserError, match=words):
    metrics.frechet_distance(a, b)


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 12, 3)])
def test_random_features(shape):
  features = metrics.random_features(shape, seed=3)
  assert features.name == "random_conv_f224_s3"
  x = rng().uniform(-1, 1, (10, *shape)).astype(np.float32)
  got = features(x)
  assert got.shape == (10, 224) and np.isfinite(got).all()
  again = metrics.random_features(shape, seed=3)(jnp.asarray(x[:2]))
  np.testing.assert_allclose(again, got[:2], rtol=1e-5, atol=1e-6)
  other = metrics.random_features(shape, seed=4)(x)
  assert np.abs(other - got).max() > 0.1
  with pytest.raises(UserError, match="was made for"):
    features(x[:, 1:])
  with pytest.raises(UserError, match="8x8"):
    metrics.random_features((4, 8, 1), 0)


def test_random_features_first_layer_and_chunks(monkeypatch):
  """SciPy's correlation; chunking a set leaves no seam."""
  features = metrics.random_features((9, 9, 2), seed=0)
  x = rng().uniform(-1, 1, (5, 9, 9, 2)).astype(np.float32)
  kernel = np.asarray(features.kernels[0], np.float64)
  want = np.zeros((5, 5, 5))
  for image, c in itertools.product(range(5), range(2)):
    full = scipy.signal.correlate2d(
      x[image, :, :, c], kernel[:, :, c, 0], "same"
    )
    want[image] += full[::2, ::2]
  want = np.where(want < 0, 0.2 * want, want)
  whole = features(x)
  np.testing.assert_allclose(whole[:, 0], want.mean(axis=(1, 2)), rtol=1e-4)
  np.testing.assert_allclose(whole[:, 16], want.std(axis=(1, 2)), rtol=1e-4)
  monkeypatch.setattr(metrics.features, "FEATURE_BATCH", 2)
  np.testing.assert_allclose(features(x), whole, rtol=1e-5, atol=1e-6)


def test_the_distance_orders_noise_by_its_strength():
  r = rng()
  features = metrics.random_features((8, 8, 1), 0)
  waves = np.sin(
    np.linspace(0, 6, 64).reshape(8, 8, 1) + r.normal(size=(300, 1, 1, 1))
  )
  noise = r.normal(size=waves.shape)
  real = features(0.7 * waves)
  far = [
    metrics.frechet_distance(real, features(0.7 * waves + s * noise))
    for s in (0, 0.1, 0.3)
  ]
  assert far[0] < 1e-4 and far[0] < far[1] < far[2]


# ------------------------------------------------------------- surgery


def test_surgery_is_the_integral():
  """G11: in one dimension, by quadrature."""
  mu, sigma = rng(0).normal(0, 1.3, 6), np.exp(rng(1).normal(-0.7, 0.3, 6))
  z = np.linspace(-12, 12, 20001)
  each = stats.norm(mu[:, None], sigma[:, None]).logpdf(z)
  population = np.logaddexp.reduce(each) - np.log(6)
  dz = z[1] - z[0]
  own = np.sum(np.exp(each) * (each - population)) * dz / 6
  kl = np.sum(np.exp(population) * (population - stats.norm.logpdf(z))) * dz
  q = gaussian(mu[:, None], 2 * np.log(sigma)[:, None])
  got = metrics.surgery(
    q, jax.random.key(0), draws=20000, gaussian_components=True
  )
  np.testing.assert_allclose(got["mutual_information"], own, atol=0.01)
  np.testing.assert_allclose(got["population_kl"], kl, atol=0.02)
  # In one dimension, there is nothing to correlate with.
  np.testing.assert_allclose(got["total_correlation"], 0, atol=1e-5)
  exact = 0.5 * np.mean(sigma**2 + mu**2 - 1 - 2 * np.log(sigma))
  np.testing.assert_allclose(got["kl"], exact, atol=0.02)


@pytest.mark.parametrize("size", [None, 50])
def test_surgery_adds_up(size):
  got = metrics.surgery(
    mixture(),
    jax.random.key(1),
    draws=30,
    dataset_size=size,
    chunk=5,
    gaussian_components=True,
  )
  parts = got["mutual_information"] + got["population_kl"]
  np.testing.assert_allclose(got["kl"], parts, rtol=1e-12)
  parts = got["total_correlation"] + got["dimension_kl"]
  np.testing.assert_allclose(got["population_kl"], parts, rtol=1e-12)
  assert 0 <= got["mutual_information"] <= np.log(size or 7)


def test_surgery_of_a_mixture_is_numpys():
  """All terms from the same samples, in float64 with SciPy."""
  q, key = mixture(), jax.random.key(2)
  z, w = (np.asarray(v, np.float64) for v in q.sample(key, 30))
  pi, mu, var = (np.asarray(v, np.float64) for v in q.components())
  # [s, i, j, k, d]: sample s of image i under component k of image j
  dims = stats.norm(mu, np.sqrt(var)).pdf(z[:, :, None, None])
  joint = np.sum(pi * dims.prod(axis=-1), axis=-1)
  posterior = np.diagonal(joint, axis1=1, axis2=2)
  population = joint.mean(axis=-1)
  product = np.prod(np.sum(pi[..., None] * dims, axis=3).mean(axis=2), axis=-1)
  prior = stats.norm.pdf(z).prod(axis=-1)

  def expect(a, b):
    return np.sum(w * np.log(a / b)) / 7

  got = metrics.surgery(q, key, draws=30, chunk=5, gaussian_components=True)
  want = {
    "kl": expect(posterior, prior),
    "mutual_information": expect(posterior, population),
    "population_kl": expect(population, prior),
    "total_correlation": expect(population, product),
    "dimension_kl": expect(product, prior),
  }
  assert got.keys() == want.keys()
  for name, value in want.items():
    np.testing.assert_allclose(got[name], value, rtol=2e-4, err_msg=name)


def test_surgery_at_the_ends_of_the_mutual_information():
  apart = gaussian(100 * np.arange(4.0)[:, None], np.zeros((4, 1)))
  got = metrics.surgery(apart, jax.random.key(0))
  np.testing.assert_allclose(got["mutual_information"], np.log(4), rtol=1e-5)
  assert got.keys() == {"kl", "mutual_information", "population_kl"}
  # 4 disjoint codes that represent 100: ln 100.
  got = metrics.surgery(apart, jax.random.key(0), dataset_size=100)
  np.testing.assert_allclose(got["mutual_information"], np.log(100), rtol=1e-5)
  same = gaussian(np.zeros((4, 2)), np.zeros((4, 2)))
  got = metrics.surgery(same, jax.random.key(0), gaussian_components=True)
  np.testing.assert_allclose(list(got.values()), 0, atol=1e-5)
  one = metrics.surgery(gaussian([[1.0]], [[0.0]]), jax.random.key(0))
  assert one["mutual_information"] == pytest.approx(0, abs=1e-6)


def test_total_correlation_of_a_gaussian_population():
  """-1/2 ln(1 - r^2) for codes on a line, about 0 for independent ones."""
  r, sigma2 = rng(0), 0.3
  a, b = r.normal(size=(2, 500))
  logvar = np.full((500, 2), np.log(sigma2))
  tc = {}
  for name, mu in {"line": [a, a], "free": [a, b]}.items():
    q = gaussian(np.stack(mu, axis=1), logvar)
    got = metrics.surgery(
      q, jax.random.key(3), draws=8, gaussian_components=True
    )
    tc[name] = got["total_correlation"]
  rho = 1 / (1 + sigma2)
  np.testing.assert_allclose(tc["line"], -0.5 * np.log(1 - rho**2), rtol=0.06)
  assert abs(tc["free"]) < 0.05


def test_surgery_takes_another_prior():
  q, key = mixture(), jax.random.key(0)
  plain = metrics.surgery(q, key)
  other = metrics.surgery(q, key, log_prior=lambda z: -jnp.sum(z, -1) * 0 - 3.0)
  assert other["mutual_information"] == plain["mutual_information"]
  z, w = q.sample(key, 1)
  want = float(jnp.sum(w * q.log_prob(z)) / 7) + 3
  np.testing.assert_allclose(other["kl"], want, rtol=1e-4)


def test_surgery_refuses():
  q, key = mixture(), jax.random.key(0)
  with pytest.raises(UserError, match="draws=0"):
    metrics.surgery(q, key, draws=0)
  with pytest.raises(UserError, match="smaller than the batch of 7"):
    metrics.surgery(q, key, dataset_size=6)
  with pytest.raises(UserError, match="one image"):
    metrics.surgery(mixture(n=1), key, dataset_size=6)


# ----------------------------------------------------------------- MSS


@pytest.mark.parametrize(("batch", "size"), [(2, 2), (4, 12), (4, 4), (5, 9)])
def test_mss_weights(batch, size):
  """G10."""
  w = metrics.mss_weights(batch, size)
  np.testing.assert_allclose(w.sum(axis=1), 1, rtol=1e-12)
  np.testing.assert_allclose(np.diag(w), 1 / size, rtol=1e-12)
  m = batch - 1
  for i, row in enumerate(w):
    rest = np.delete(row, i)
    np.testing.assert_allclose(rest[:-1], 1 / m)
    np.testing.assert_allclose(rest[-1], (size - m) / (size * m))


@pytest.mark.parametrize("place", [0, 2, 3])
def test_mss_is_unbiased(place):
  """G9: the mean over every batch that has image 0, in any order."""
  log_q = rng().normal(0, 1.5, 8)
  rows = []
  for others in itertools.permutations(range(1, 8), 3):
    rows.append(log_q[list(np.insert(others, place, 0))])
  tables = np.zeros((len(rows), 4, 4), np.float32)
  tables[:, place] = rows
  got = jax.vmap(lambda t: metrics.log_population_mss(t, 8))(tables)
  np.testing.assert_allclose(
    np.exp(got[:, place]).mean(), np.exp(log_q).mean(), rtol=1e-5
  )


def test_mss_refuses():
  with pytest.raises(UserError, match="smaller than the batch"):
    metrics.log_population_mss(jnp.zeros((4, 4)), 3)
  with pytest.raises(UserError, match="no others"):
    metrics.mss_weights(1, 3)
  with pytest.raises(UserError, match="square"):
    metrics.log_population_mss(jnp.zeros((4, 3)), 9)


# ------------------------------------------------------ Gaussian bounds


def test_the_bounds_are_in_order():
  """G12, with the true KL by quadrature in two dimensions."""
  r = rng(0)
  mu, var = r.normal(0, 1.5, (3, 2)), np.exp(r.normal(-1.4, 0.6, (3, 2)))
  grid = np.linspace(-9, 9, 601)
  z = np.stack(np.meshgrid(grid, grid), axis=-1)
  each = stats.norm(mu, np.sqrt(var)).logpdf(z[:, :, None]).sum(axis=-1)
  log_q = np.logaddexp.reduce(each, axis=-1) - np.log(3)
  log_p = stats.norm.logpdf(z).sum(axis=-1)
  area = (grid[1] - grid[0]) ** 2
  true = np.sum(np.exp(log_q) * (log_q - log_p)) * area
  diagonal = metrics.population_kl_gaussian(mu, var, "diagonal")
  full = metrics.population_kl_gaussian(mu, var)
  assert 0 < diagonal < full < true
  # The moments by quadrature, too: the KL to p of the Gaussian with them.
  q = np.exp(log_q) * area
  m = np.einsum("ij,ijd->d", q, z)
  s = np.einsum("ij,ijd,ije->de", q, z - m, z - m)
  want = 0.5 * (np.trace(s) + m @ m - 2 - np.log(np.linalg.det(s)))
  np.testing.assert_allclose(full, want, rtol=1e-5)
  v = np.diag(s)
  want = 0.5 * np.sum(v + m**2 - 1 - np.log(v))
  np.testing.assert_allclose(diagonal, want, rtol=1e-5)
  q = gaussian(mu, np.log(var))
  drawn = metrics.surgery(q, jax.random.key(0), draws=20000)
  np.testing.assert_allclose(drawn["population_kl"], true, atol=0.05)


def test_the_bound_of_too_few_images():
  mean, var = np.zeros((3, 3)), np.ones((3, 3))
  assert np.isnan(metrics.population_kl_gaussian(mean, var))
  assert metrics.population_kl_gaussian(mean, var, "diagonal") == 0
  # slogdet of one dimension: 1/2 (s + m^2 - 1 - ln s), s = 2/3 + 2, m = 2.
  one = metrics.population_kl_gaussian([[1], [2], [3]], [[2], [2], [2]])
  assert one == pytest.approx(0.5 * (8 / 3 + 4 - 1 - np.log(8 / 3)))
  with pytest.raises(UserError, match="full_covariance, diagonal"):
    metrics.population_kl_gaussian(mean, var, "means")


def test_latent_report():
  mean = np.array([[0.0, 1, 0.05], [0, -1, -0.05], [0, 0, 0]])
  var = np.array([[1, 1e-3, 1], [1, 1e-3, 1], [1, 1, 1]])
  got = metrics.latent_report(mean, var)
  assert got == {"active_units": 1.0, "collapsed_fraction": 2 / 9}


def test_total_variance():
  """Of a mixture, by its second moment; of one component, its own."""
  q = mixture()
  pi, mu, var = (np.asarray(v, np.float64) for v in q.components())
  mean = np.sum(pi[..., None] * mu, axis=1)
  second = np.sum(pi[..., None] * (var + np.square(mu)), axis=1)
  want = second - np.square(mean)
  np.testing.assert_allclose(metrics.total_variance(q), want, rtol=1e-4)
  alone = gaussian(mu[:, 0], np.log(var[:, 0]))
  np.testing.assert_allclose(
    metrics.total_variance(alone), var[:, 0], rtol=1e-6
  )


def test_mixture_report():
  """Equal weights use all components, one-hot weights a single one."""
  weights = np.array([[0.25] * 4, [1, 0, 0, 0]])
  var = np.ones((2, 4, 3))
  var[0, 0, :2] = var[1, 0] = 1e-3  # of weights 1/4 and 1
  got = metrics.mixture_report(weights, var)
  assert got["effective_components"] == pytest.approx((4 + 1) / 2)
  assert got["collapsed_components"] == pytest.approx((2 / 3 / 4 + 1) / 2)


def test_by_activity():
  mean = np.array([[0.0, 3, 1], [0, -3, -1], [0, 0, 0]])
  assert list(metrics.by_activity(mean)) == [1, 2, 0]


# ------------------------------------------------------------ the table


@pytest.mark.parametrize(
  ("name", "section", "title"),
  [
    ("mae", "Reconstructions", "absolute error ↓"),
    ("fd_reconstructions", "Reconstructions", "fd of reconstructions ↓"),
    ("fid_prior", "Samples", "fid of samples, prior ↓"),
    ("kd_a_b_gmm", "Samples", "kd_a_b of samples, gmm ↓"),
    ("sharpness_images", "Reconstructions", "sharpness of images"),
    ("sharpness_vamp", "Samples", "sharpness of samples, vamp"),
    ("iwae_bits_per_dim", "Likelihood", "iwae, bits per dimension ↓"),
    ("auroc_elbo", "Anomalies", "AUROC, elbo ↑"),
  ],
)
def test_the_table_has_names_of_all_kinds(name, section, title):
  spec = specs.find(name)
  assert (spec.section, spec.title(name)) == (section, title)


def test_the_table_knows_every_source_and_what_the_training_prints():
  assert set(specs.SAMPLE_SETS) == {"training_images", *settings.SOURCES}
  for name in progress.HELD_OUT:
    specs.find(name)
  with pytest.raises(KeyError):
    specs.find("maes")


def test_names_by_metric_are_in_the_tables_order():
  names = ["knn", "sharpness_images", "mae", "sharpness_reconstructions"]
  got = specs.by_spec(names)
  assert list(got.values()) == [["mae"], names[1::2], ["knn"]]


def test_sparseness():  # P10
  one_hot = metrics.sparseness(np.eye(10))
  assert one_hot == dict(population_sparseness=1, lifetime_sparseness=1)
  flat = metrics.sparseness(np.full((4, 6), 2.0))
  assert flat == dict(population_sparseness=0, lifetime_sparseness=0)
  z = np.random.default_rng(0).poisson(0.7, (50, 8)).astype(float)
  z[:, 3] = z[7] = 0  # excluded
  got = metrics.sparseness(z)
  for name, rows in (("population", z), ("lifetime", z.T)):
    each = [
      (1 - np.mean(r) ** 2 / np.mean(r**2)) / (1 - 1 / len(r))
      for r in rows
      if r.any()
    ]
    np.testing.assert_allclose(got[f"{name}_sparseness"], np.mean(each))
  assert np.isnan(metrics.sparseness(np.ones((1, 3)))["lifetime_sparseness"])
  with pytest.raises(UserError, match="negative"):
    metrics.sparseness(-z)

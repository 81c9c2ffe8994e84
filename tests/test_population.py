"""The population term against NumPy, Monte Carlo and perfect codes.

In float64 unless stated otherwise. A perfect population has a q(z) with the
moments of N(0, I); each batch samples its posteriors anew.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from conftest import jit

from gamix_jax import objectives
from gamix_jax.errors import UserError
from gamix_jax.objectives import population
from gamix_jax.posterior import Gaussian, Mixture

FORMS = tuple(population.FORMS)
UNBIASED = ("debiased", "quadratic")
KINDS = ("gaussian", "mixture")
TERM = jit(population.population_kl, static_argnums=1)


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def gaussian(b=6, d=3, seed=0):
  rng = np.random.default_rng(seed)
  parts = rng.normal(0.3, 0.8, (b, d)), rng.normal(-1, 0.5, (b, d))
  return Gaussian(*map(jnp.asarray, parts))


def mixture(b=6, k=3, d=3, seed=0):
  rng = np.random.default_rng(seed)
  parts = (
    rng.normal(size=(b, k)),
    rng.normal(0.3, 0.8, (b, k, d)),
    rng.normal(-1, 0.5, (b, k, d)),
  )
  return Mixture(*map(jnp.asarray, parts))


ANY = pytest.mark.parametrize("q", [gaussian, mixture], ids=KINDS)


def value(form, q):
  return float(TERM(q, form)[0])


# ------------------------------------------------- perfect populations


@functools.cache
def _styles(d):
  """Returns four mixtures: weights [4, 3], offsets and variances [4, 3, d].

  Offsets average to 0 over components and share a direction, so that a sixth of
  a nat of the population's correlations is within the images.
  """
  rng = np.random.default_rng(1)
  pi = rng.dirichlet(np.full(3, 3.0), 4)
  c = rng.normal(size=(4, 3, 1)) + 0.4 * rng.normal(size=(4, 3, d))
  c -= np.einsum("tk,tkd->td", pi, c)[:, None]
  w = np.einsum("tk,tki,tkj->tij", pi, c, c)
  c *= np.sqrt(0.8 / np.linalg.norm(w, 2, axis=(1, 2)))[:, None, None]
  return pi, c, rng.uniform(0.05, 0.15, (4, 3, d))


def perfect(kind, n, b, d, g=0.5, seed=0):
  """Returns n batches of b posteriors; each array has a leading axis [n].

  g is the fraction of the variance in the means of Gaussians. A mixture's mean
  has what its own covariance leaves: for every style, E z z^T = I.
  """
  rng = np.random.default_rng(seed)
  eps = rng.normal(size=(n, b, d))
  if kind == "gaussian":
    logvar = np.full((n, b, d), np.log(1 - g))
    return Gaussian(jnp.asarray(np.sqrt(g) * eps), jnp.asarray(logvar))
  pi, c, var = _styles(d)
  within = np.einsum("tk,tki,tkj->tij", pi, c, c)
  within += np.einsum("tk,tkd->td", pi, var)[:, :, None] * np.eye(d)
  root = np.linalg.cholesky(np.eye(d) - within)
  style = rng.integers(len(pi), size=(n, b))
  mean = np.einsum("nbij,nbj->nbi", root[style], eps)
  return Mixture(
    jnp.asarray(np.log(pi)[style]),
    jnp.asarray(mean[:, :, None] + c[style]),
    jnp.asarray(np.log(var)[style]),
  )


@functools.partial(jax.jit, static_argnums=1)
def each(q, form):
  """Returns the term of every batch, [n]."""
  return jax.lax.map(lambda q: population.FORMS[form].function(q)[0], q)


def mean_and_error(values):
  values = np.asarray(values)
  return values.mean(), values.std() / np.sqrt(values.size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("b", [4, 16, 64])
def test_quadratic_is_zero_at_a_perfect_population(kind, b):
  q = perfect(kind, 3000 if b < 64 else 1000, b, 8)
  mean, error = mean_and_error(each(q, "quadratic"))
  assert abs(mean) < 4 * error
  for form in ("means", "full"):  # a bias is visible
    biased, error = mean_and_error(each(q, form))
    assert abs(biased) > 20 * error, form


@pytest.mark.parametrize("g", [0.05, 0.5, 0.9])
@pytest.mark.parametrize(("d", "n"), [(16, 1000), (64, 200), (128, 60)])
def test_debiased_is_zero_at_a_perfect_population(d, n, g):
  """From uninformative to informative codes, with 64 images."""
  mean, error = mean_and_error(
    each(perfect("gaussian", n, 64, d, g), "debiased")
  )
  assert abs(mean) < 4 * error
  # Small next to the bias that plain squares of correlations have.
  assert error < 0.05 * g**2 * d * (d - 1) / (4 * 63) + 1e-3


def test_debiased_is_zero_at_a_perfect_population_of_mixtures():
  mean, error = mean_and_error(
    each(perfect("mixture", 2000, 64, 8), "debiased")
  )
  assert abs(mean) < 4 * error
  # Ignoring the covariances within images would be visible here.
  pi, c, _ = _styles(8)
  inside = np.einsum("tk,tki,tkj->ij", pi, c, c) / len(pi)
  missed = 0.5 * np.sum(np.triu(inside, 1) ** 2)
  assert missed > 20 * error


@pytest.mark.parametrize(("b", "most"), [(16, 0.01), (4, 0.12)])
def test_ratio_bias_of_debiased_in_small_batches(b, most):
  """Its ratio has a bias: 0.006 nats for 16 images and 0.1 for 4, at d = 8.

  For informative codes; less for uninformative ones. `means` has 0.6 and 2.6.
  """
  for g in (0.05, 0.5, 0.9):
    q = perfect("gaussian", 30_000, b, 8, g)
    mean, error = mean_and_error(each(q, "debiased"))
    assert abs(mean) + error < most, g
  assert mean > 4 * error  # a bias, not noise
  assert 0.05 * population.finite_sample_bias(b, 8) > mean


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", UNBIASED)
def test_gradient_does_not_reward_information(kind, form):
  """d/dg of the mean term is 0, with g the fraction of variance in the means.

  For mixtures, whose components are separated along one latent each.
  """
  b, d, n, apart = 64, 8, 400, 0.3
  rng = np.random.default_rng(0)
  eps = jnp.asarray(rng.normal(size=(n, b, d)))
  latent = jax.nn.one_hot(rng.integers(d, size=(n, b)), d)
  latent = latent if kind == "mixture" else 0 * latent

  def posterior(g, eps, latent):
    left = 1 - apart * latent  # of the variance, [b, d]
    mu, logvar = jnp.sqrt(g * left) * eps, jnp.log((1 - g) * left)
    if kind == "gaussian":
      return Gaussian(mu, logvar)
    step = np.sqrt(apart) * latent
    mu = jnp.stack([mu + step, mu - step], axis=1)
    return Mixture(jnp.zeros((b, 2)), mu, jnp.stack([logvar] * 2, axis=1))

  def slopes(form):
    def term(g, batch):
      return population.FORMS[form].function(posterior(g, *batch))[0]

    of = jax.jit(lambda e: jax.lax.map(lambda x: jax.grad(term)(0.5, x), e))
    return mean_and_error(of((eps, latent)))

  mean, error = slopes(form)
  assert abs(mean) < 4 * error
  assert error < 0.02
  mean, error = slopes("means")
  assert mean < -2  # it rewards informative codes: -d/2 (1/g - 1) and more


# ------------------------------------------------- parts of a batch


@pytest.mark.parametrize(
  ("form", "kind"),
  [
    pytest.param(
      *(form, kind),
      # 2,500 pairs of components a batch, of 20,000 batches.
      marks=pytest.mark.slow if (form, kind) == ("kernel", "mixture") else (),
    )
    for form in FORMS
    for kind in KINDS
  ],
)
def test_mean_over_parts_equals_the_full_batch_in_expectation(kind, form):
  """32 images and four times 8, of a population far from N(0, I).

  `quadratic` and `kernel` exactly; `debiased` to 0.06 of 0.7 and 1.5 nats, with
  parts that small; `means` and `full` are off by 0.3 and more.
  """
  n, b, parts, d = 4000, 32, 4, 6
  q = perfect(kind, n, b, d)
  q = q.replace(mu=1.3 * q.mu + 0.2 + 0.5 * q.mu[..., :1])
  split = jax.tree.map(
    lambda v: v.reshape(n * parts, b // parts, *v.shape[2:]), q
  )
  whole = np.asarray(each(q, form))
  mean = np.asarray(each(split, form)).reshape(n, parts).mean(1)
  off, error = mean_and_error(mean - whole)
  if population.FORMS[form].unbiased:
    assert abs(off) < 4 * error
    assert error < 0.02 * whole.mean()
  elif form == "debiased":
    assert abs(off) < 0.06
    assert error < 0.005
  else:
    assert off > 0.3


def test_the_pairs_of_debiased_are_unbiased_in_parts():
  """`squared_covariances` alone, exactly, on skewed and correlated data."""
  rng = np.random.default_rng(0)
  mix = rng.normal(size=(4, 4)) * 0.5
  x = (rng.exponential(size=(20_000, 12, 4)) - 1) @ mix.T
  true = np.sum(np.triu(mix @ mix.T, 1) ** 2)

  @jax.jit
  def estimates(x):
    x = x - jnp.mean(x, axis=1, keepdims=True)
    return jax.vmap(population.squared_covariances)(x)

  whole = np.asarray(estimates(x))
  mean, error = mean_and_error(whole)
  assert abs(mean - true) < 4 * error
  assert error < 0.03 * true
  parts = np.asarray(estimates(x.reshape(-1, 4, 4))).reshape(-1, 3).mean(1)
  off, error = mean_and_error(parts - whole)
  assert abs(off) < 4 * error
  plain = [np.sum(np.triu(np.cov(v.T), 1) ** 2) for v in x[:2000]]
  assert np.mean(plain) > 1.2 * true


def test_population_of_a_split_batch_differs():
  """8 devices of 8 images with their own moments: 72.3 instead of 7.8 nats."""
  rng = np.random.default_rng(0)
  mu = jnp.asarray(rng.normal(size=(64, 512)))
  q = Gaussian(mu, jnp.zeros_like(mu))
  whole = value("means", q)
  parts = [jax.tree.map(lambda v, i=i: v[i::8], q) for i in range(8)]
  split = np.mean([value("means", part) for part in parts])
  assert abs(whole - 7.8) < 0.5
  assert abs(split - 72.3) < 2


# ------------------------------------------------- second opinions


def numpy_of(q):
  return [np.asarray(v, np.float64) for v in q.components()]


def raw_moments(q):
  """Returns E z, [b, d], and E z z^T, [b, d, d], of each image."""
  pi, mu, var = numpy_of(q)
  second = np.einsum("bk,bki,bkj->bij", pi, mu, mu)
  within = np.einsum("bk,bkd->bd", pi, var)
  second += within[:, :, None] * np.eye(mu.shape[-1])
  return np.einsum("bk,bkd->bd", pi, mu), second


def biased_moments(q):
  """Mean [d], covariance of the components' means, mean sigma^2 [d]."""
  pi, mu, var = numpy_of(q)
  b, _, d = mu.shape
  w = pi.reshape(-1) / b
  mu, var = mu.reshape(-1, d), var.reshape(-1, d)
  return w @ mu, np.cov(mu.T, aweights=w, ddof=0), w @ var


def mean_over_quadruples(q):
  """Returns the mean over four different images of sum_{a<b} H_ij H_kl.

  H_ij is the mean of (z_i - z_j)_a (z_i - z_j)_b / 2 over samples of z.
  """
  m, second = raw_moments(q)
  cross = np.einsum("ia,jb->ijab", m, m)
  h = second[:, None] + second[None] - cross - cross.transpose(1, 0, 2, 3)
  h = np.triu(h / 2, 1)
  tuples = np.array(list(itertools.permutations(range(len(m)), 4)))
  i, j, k, l = tuples.T  # noqa: E741
  return np.mean(np.sum(h[i, j] * h[k, l], axis=(1, 2)))


def reference(form, q):
  """The term as in its formula, with loops over pairs and quadruples."""
  m, second = raw_moments(q)
  n, d = m.shape
  pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
  if form == "kernel":
    return discrepancy(*numpy_of(q), pairs)
  if form == "quadratic":
    first = np.mean([m[i] @ m[j] for i, j in pairs])
    both = np.mean([np.sum(second[i] * second[j]) for i, j in pairs])
    trace = np.mean([np.trace(s) for s in second])
    return 0.5 * first + 0.25 * (both - 2 * trace + d)
  if form == "debiased":
    between = np.var(m, axis=0, ddof=1)
    within = np.mean(np.einsum("naa->na", second) - m**2, axis=0)
    v = between + within
    head = m.mean(0) ** 2 - between / n + v - 1 - np.log(v)
    head -= (between / v) ** 2 / (n - 1)
    scaled = q.replace(
      mu=np.asarray(q.mu) / np.sqrt(v), logvar=np.asarray(q.logvar) - np.log(v)
    )
    return 0.5 * np.sum(head) + 0.5 * mean_over_quadruples(scaled)
  m, between, within = biased_moments(q)
  v = np.diag(between) + (within if form == "full" else 0)
  return 0.5 * np.sum(m**2 + v - 1 - np.log(v))


def discrepancy(pi, mu, var, pairs):
  """The squared MMD, with expectations as sums over a fine grid."""
  n, d = len(mu), mu.shape[2]
  c = d / 5
  s = np.exp([-7.0, -6, -5, -4, -3, -2, -1, 0, 1])
  share = np.sqrt(s) * np.exp(-s)
  x = np.linspace(-9, 9, 1801)
  of_x = np.exp(-(x**2) / 2)
  of_x /= of_x.sum()

  def expected(mean, spread):
    at = mean[:, None] + np.sqrt(spread)[:, None] * x
    each = np.exp(-s[:, None, None] * at**2 / c) @ of_x
    return share @ np.prod(each, axis=1)

  def of_components(weights, means, spreads):
    found = map(expected, means, spreads)
    return sum(w * f for w, f in zip(weights, found, strict=True))

  def of_pair(i, j):
    return of_components(
      np.outer(pi[i], pi[j]).ravel(),
      (mu[i][:, None] - mu[j]).reshape(-1, d),
      (var[i][:, None] + var[j]).reshape(-1, d),
    )

  own = np.mean([of_pair(i, j) for i, j in pairs if i < j])
  crossed = np.mean([of_components(pi[i], mu[i], var[i] + 1) for i in range(n)])
  zero, two = np.zeros(d), np.full(d, 2.0)
  prior = expected(zero, two)
  # At N(m, I) the distance is 2 E k(y, y') - 2 E k(y + m, y').
  m = 0.01 * np.eye(d)[0]
  slope = 2 * (prior - expected(m, two)) / m[0] ** 2
  return (own - 2 * crossed + prior) / (2 * slope)


@pytest.mark.parametrize("form", FORMS)
@ANY
def test_forms_against_numpy(form, q):
  for b in (4, 7):
    kl, info = TERM(q(b=b), form)
    rtol = 2e-5 if form == "kernel" else 1e-9
    np.testing.assert_allclose(kl, reference(form, q(b=b)), rtol=rtol)
    mean, between, within = biased_moments(q(b=b))
    np.testing.assert_allclose(info["population/mean"], mean, rtol=1e-9)
    var = np.diag(between) + (0 if form == "means" else within)
    if form == "debiased":  # its variance of the images' means is unbiased
      var = var + np.var(raw_moments(q(b=b))[0], axis=0) / (b - 1)
    np.testing.assert_allclose(info["population/var"], var, rtol=1e-9)
    assert ("population/kl_excess" in info) == (form == "means")


@ANY
def test_quadratic_matches_samples_of_z(q):
  """The kernel <x, y> / 2 + <x, y>^2 / 4 of samples of different images."""
  n, q = 20_000, q(b=5)
  keys = jax.random.split(jax.random.key(0), 50)

  @jax.jit
  def estimate(key):
    """The mean over n samples z of all images, and over y from the prior."""
    z = sample(key, q, n)
    product = jnp.einsum("sid,sjd->sij", z, z)
    k = product / 2 + jnp.square(product) / 4
    pairs = jnp.sum(k, axis=(1, 2)) - jnp.einsum("sii->s", k)
    # E k(z, y) = |z|^2 / 4 and E k(y, y') = d / 4 for y from N(0, I).
    of_prior = jnp.mean(jnp.sum(jnp.square(z), axis=2), axis=1) / 4
    return jnp.mean(pairs / 20 - 2 * of_prior + z.shape[2] / 4)

  mean, error = mean_and_error(jax.lax.map(estimate, keys))
  assert abs(mean - value("quadratic", q)) < 4 * error
  assert error < 1e-3


def sample(key, q, n):
  """Samples z [n, b, d], one per image at a time."""
  weights, mu, var = q.components()
  of, noise = jax.random.split(key)
  z = jax.random.normal(noise, (n, *mu.shape))
  z = mu[None] + jnp.sqrt(var)[None] * z
  chosen = jax.random.categorical(
    of, jnp.log(weights)[None], shape=(n, len(mu))
  )
  return jnp.take_along_axis(z, chosen[:, :, None, None], axis=2)[:, :, 0]


@ANY
def test_pairs_of_debiased_match_samples_of_z(q):
  """Covariances within a mixture count as those of samples do."""
  n, q = 20_000, q(b=5)
  keys = jax.random.split(jax.random.key(0), 50)

  @jax.jit
  def estimate(key):
    z = sample(key, q, n)
    z = z - jnp.mean(z, axis=1, keepdims=True)
    return jnp.mean(jax.vmap(population.squared_covariances)(z))

  mean, error = mean_and_error(jax.lax.map(estimate, keys))
  assert abs(mean - mean_over_quadruples(q)) < 4 * error
  assert error < 1e-3


def exact_kl(m, second):
  return 0.5 * (
    np.trace(second) + m @ m - m.size - np.linalg.slogdet(second)[1]
  )


@pytest.mark.parametrize("form", UNBIASED)
@pytest.mark.parametrize("kind", KINDS)
def test_second_order_of_the_gaussians_kl(form, kind):
  """Near N(0, I), the error falls with the cube of the distance.

  Gaussians: 200,000 codes with the given moments. Mixtures: one posterior for
  all images, which has the moments of the population.
  """
  d, rng = 3, np.random.default_rng(0)
  shift = rng.normal(size=d)
  mix = rng.normal(size=(d, d))
  mix = (mix + mix.T) / 2
  gaps, terms = [], []
  for size in (0.08, 0.04) if kind == "mixture" else (0.2, 0.1):
    m, second = size * shift, np.eye(d) + size * mix
    if kind == "gaussian":
      z = rng.normal(size=(200_000, d))
      z -= z.mean(0)
      z = np.linalg.solve(np.linalg.cholesky(np.cov(z.T)), z.T).T
      var = np.full(d, 0.3)
      mu = m + z @ np.linalg.cholesky(second - np.diag(var)).T
      q = Gaussian(jnp.asarray(mu), jnp.full(mu.shape, np.log(0.3)))
    else:
      root = np.linalg.cholesky(second - 0.3 * np.eye(d)) * np.sqrt(d)
      mu = m + np.concatenate([root.T, -root.T])
      mu = np.broadcast_to(mu, (4, 2 * d, d))
      q = Mixture(
        jnp.zeros((4, 2 * d)), jnp.asarray(mu), jnp.full(mu.shape, np.log(0.3))
      )
    terms.append(exact_kl(m, second))
    gaps.append(abs(value(form, q) - terms[-1]))
  assert 3 < terms[0] / terms[1] < 5
  assert gaps[1] < 0.25 * terms[1]
  assert gaps[0] / gaps[1] > 6


@pytest.mark.parametrize("form", FORMS)
def test_a_mixture_of_one_or_of_equal_components_is_a_gaussian(form):
  q = gaussian()
  for k in (1, 3):
    of = functools.partial(jnp.repeat, repeats=k, axis=1)
    logits = mixture(k=k).logits
    same = Mixture(logits, of(q.mu[:, None]), of(q.logvar[:, None]))
    for got, wanted in zip(
      jax.tree.leaves(TERM(same, form)),
      jax.tree.leaves(TERM(q, form)),
      strict=True,
    ):
      np.testing.assert_allclose(got, wanted, rtol=1e-12 if k > 1 else 0)


@pytest.mark.parametrize("form", FORMS)
@ANY
def test_the_order_of_images_and_components_does_not_matter(form, q):
  q = q(b=8)
  order = np.random.default_rng(0).permutation(8)
  moved = jax.tree.map(lambda v: v[order], q)
  np.testing.assert_allclose(value(form, moved), value(form, q), rtol=1e-12)
  if isinstance(q, Mixture):
    moved = jax.tree.map(lambda v: v[:, ::-1], q)
    np.testing.assert_allclose(value(form, moved), value(form, q), rtol=1e-12)


def test_spread_of_components_is_variance_within_images():
  """Two components at +-1 in each latent, equal for all images.

  Not corrected for the batch size, since images do not differ: v is 1 + 0.1.
  """
  mu = jnp.broadcast_to(jnp.asarray([[1.0, 1.0], [-1.0, -1.0]]), (5, 2, 2))
  q = Mixture(jnp.zeros((5, 2)), mu, jnp.full((5, 2, 2), np.log(0.1)))
  head = 0.5 * 2 * (1.1 - 1 - np.log(1.1))
  for form in UNBIASED:
    np.testing.assert_allclose(TERM(q, form)[1]["population/var"], 1.1)
  kl = value("debiased", q)
  np.testing.assert_allclose(kl, head + 0.5 * (1 / 1.1) ** 2, rtol=1e-12)
  np.testing.assert_allclose(
    value("quadratic", q), 0.25 * (2 * 0.1**2 + 2), rtol=1e-12
  )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_enough(form, kind):
  """The value and the gradient, for 64 images with 128 latents."""
  wide = jax.tree.map(lambda v: v[0], perfect(kind, 1, 64, 128))
  narrow = jax.tree.map(lambda v: v.astype(jnp.float32), wide)
  of = jit(jax.value_and_grad(lambda q: population.population_kl(q, form)[0]))
  (kl, slope), (wanted, wanted_slope) = of(narrow), of(wide)
  assert kl.dtype == jnp.float32
  np.testing.assert_allclose(kl, wanted, rtol=1e-4, atol=1e-3)
  for got, right in zip(
    jax.tree.leaves(slope), jax.tree.leaves(wanted_slope), strict=True
  ):
    off = np.max(np.abs(got - right))
    most = 1e-3 if form == "kernel" else 1e-4
    assert off <= most * np.max(np.abs(right))  # both 0, if there is none


# ------------------------------------------------- the kernel


def test_the_kernels_shape():
  """Nine Gaussians sum to sqrt(pi) (1 + r^2 / c)^-1/2, up to a constant.

  That of Gaussians which are wider still, and cancels in the discrepancy.
  """
  r2 = np.geomspace(1e-3, 300, 200)[:, None]
  constant = 2 * np.exp(-7.5 / 2)
  s = population.NODES
  found = (np.sqrt(s) * np.exp(-s - s * r2)).sum(1)
  ratio = (found + constant) * np.sqrt((1 + r2[:, 0]) / np.pi)
  np.testing.assert_allclose(ratio, 1, atol=0.05)


@pytest.mark.parametrize("b", [4, 16, 64])
def test_kernel_is_zero_at_a_perfect_population(b):
  n = 4000 if b < 64 else 1000
  for g in (0.3, 0.95):
    values = each(perfect("gaussian", n, b, 8, g), "kernel")
    mean, error = mean_and_error(values)
    assert abs(mean) < 4 * error
    assert values.std() < 10 / b


def test_kernel_is_the_kl_of_a_small_shift():
  """|m|^2 / 2, with the same batches at both places."""
  q = perfect("gaussian", 400, 64, 8)
  shift = jnp.linspace(-0.2, 0.3, 8)
  moved = q.replace(mu=q.mu + shift[None, None])
  mean, error = mean_and_error(each(moved, "kernel") - each(q, "kernel"))
  wanted = float(jnp.sum(shift**2)) / 2
  assert abs(mean - wanted) < 4 * error + 0.05 * wanted
  assert error < 0.1 * wanted


def test_kernel_sees_more_than_two_moments():
  """Codes at +-0.95 in each latent have the moments of N(0, I)."""
  rng = np.random.default_rng(0)
  sign = rng.choice([-1.0, 1.0], (400, 64, 4))
  q = Gaussian(jnp.asarray(0.95 * sign), jnp.full(sign.shape, np.log(0.0975)))
  mean, error = mean_and_error(each(q, "quadratic"))
  assert abs(mean) < 4 * error
  mean, error = mean_and_error(each(q, "kernel"))
  assert mean > 20 * error


# ------------------------------------------------- the published form


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", [f for f in FORMS if f != "kernel"])
def test_very_large_batches(form, kind):
  """With more pairs of images than an int32 can count.

  `kernel` computes every pair, so there is no such batch.
  """
  n = 70_000
  q = gaussian(n, 2) if kind == "gaussian" else mixture(n, 2, 2)
  with jax.enable_x64(False):
    got = value(form, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), q))
  assert got == pytest.approx(value(form, q), rel=1e-3)


@pytest.mark.parametrize(("images", "wanted"), [(10, 56.5), (256, 2.0)])
def test_finite_sample_bias_of_means(images, wanted):
  got = population.finite_sample_bias(images, 512)
  psi = scipy.special.digamma((images - 1) / 2)
  np.testing.assert_allclose(got, -256 * (psi + np.log(2 / images)), 1e-6)
  assert abs(got - wanted) < 0.05


@pytest.mark.parametrize("images", [4, 10, 64])
def test_excess_is_zero_for_perfect_codes(images):
  """mu from N(0, I): by Monte Carlo; it equals the term minus the bias."""
  mu = np.random.default_rng(0).normal(size=(4000, images, 12))
  q = Gaussian(jnp.asarray(mu), jnp.zeros(mu.shape))
  mean, error = mean_and_error(each(q, "means"))
  bias = population.finite_sample_bias(images, 12)
  assert abs(mean - bias) < 4 * error
  assert error < 0.02 * bias + 0.01
  kl, info = TERM(jax.tree.map(lambda v: v[0], q), "means")
  np.testing.assert_allclose(info["population/kl_excess"], kl - bias)


def test_the_published_terms_are_minimal_at_a_variance_of_two():  # G14
  """`means` and `collapse_penalty` are minimal at var(mu) = sigma^2 = 1."""
  mu = np.random.default_rng(0).normal(size=(64, 3))
  mu = (mu - mu.mean(0)) / mu.std(0)
  mu = jnp.asarray(mu)

  def loss(mu, logvar):
    q = Gaussian(mu, logvar)
    kl, _ = population.population_kl(q, "means")
    return kl + objectives.collapse_penalty(q)

  grads = jax.grad(loss, (0, 1))(mu, jnp.zeros_like(mu))
  for gradient in grads:
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
  q = Gaussian(mu, jnp.zeros_like(mu))
  full, _ = population.population_kl(q, "full")
  np.testing.assert_allclose(full, 1.5 * (2 - 1 - np.log(2)), rtol=1e-5)


# ------------------------------------------------- the edges


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_constant_latents_are_finite(form, kind):
  """All codes equal, in float32: ln 0 without the floor.

  For a mixture, also with weights of exactly 0.
  """
  mu = jnp.full((4, 3), 0.5, jnp.float32)
  logvar = jnp.full((4, 3), -30.0, jnp.float32)
  q = Gaussian(mu, logvar)
  if kind == "mixture":
    two = functools.partial(jnp.stack, axis=1)
    logits = jnp.asarray([[0.0, -200.0]] * 4, jnp.float32)
    q = Mixture(logits, two([mu] * 2), two([logvar] * 2))
  kl, gradient = jit(
    jax.value_and_grad(lambda q: population.population_kl(q, form)[0])
  )(q)
  for leaf in [kl, *jax.tree.leaves(gradient)]:
    assert leaf.dtype == jnp.float32
    assert np.all(np.isfinite(leaf))
  # A barrier if it has a logarithm; else the formula's value.
  if form == "quadratic":
    np.testing.assert_allclose(kl, 0.375 + 0.25 * (9 / 16 - 1.5 + 3), 1e-6)
  elif form == "kernel":
    of = Gaussian(jnp.full((2, 3), 0.5), jnp.full((2, 3), -30.0))
    np.testing.assert_allclose(kl, reference(form, of), rtol=1e-4)
  else:
    assert kl > 15


@pytest.mark.parametrize(
  ("form", "least"),
  [("means", 2), ("full", 2), ("debiased", 4), ("quadratic", 2), ("kernel", 2)],
)
def test_batches_too_small_are_refused(form, least):
  population.check(form, least)
  with pytest.raises(
    UserError, match=rf"batch_size={least - 1}: .*{form}.* {least} or more"
  ):
    population.check(form, least - 1)
  assert np.isfinite(value(form, gaussian(b=least)))


def test_unknown_forms_are_refused():
  with pytest.raises(UserError, match=r"'mean'.* means, full, debiased, quad"):
    population.check("mean", 8)

"""The population term against NumPy, exact KLs and codes that are perfect."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from conftest import jit

from gamix_jax import objective, population
from gamix_jax.errors import UserError
from gamix_jax.posterior import Gaussian, Mixture

TERM = jit(population.population_kl, static_argnums=(2, 3))


def gaussian(b=6, d=3, seed=0):
  rng = np.random.default_rng(seed)
  mu, logvar = rng.normal(0.3, 0.8, (b, d)), rng.normal(-1, 0.5, (b, d))
  return Gaussian(
    jnp.asarray(mu, jnp.float32), jnp.asarray(logvar, jnp.float32)
  )


def mixture(b=6, k=3, d=3, seed=0):
  rng = np.random.default_rng(seed)
  parts = (
    rng.normal(size=(b, k)),
    rng.normal(0.3, 0.8, (b, k, d)),
    rng.normal(-1, 0.5, (b, k, d)),
  )
  return Mixture(*(jnp.asarray(v, jnp.float32) for v in parts))


def moments(q):
  """Mean [d], covariance of the means, mean sigma^2 [d]; float64, np.cov."""
  weights, mu, var = (np.asarray(v, np.float64) for v in q.centres())
  b, _, d = mu.shape
  w = weights.reshape(-1) / b
  mu, var = mu.reshape(-1, d), var.reshape(-1, d)
  between = np.cov(mu.T, aweights=w, ddof=0).reshape(d, d)
  return w @ mu, between, w @ var


def by_hand(form, m, second):
  """The four forms of a mean [d] and a covariance [d, d]."""
  v = np.diag(second)
  if form == "covariance":
    return 0.5 * (v.sum() + m @ m - m.size - np.linalg.slogdet(second)[1])
  kl = 0.5 * np.sum(m**2 + v - 1 - np.log(v))
  if form == "correlation":
    r = second / np.sqrt(np.outer(v, v))
    kl += 0.25 * (np.sum(r**2) - m.size)  # each pair once
  return kl


FORMS = population.FORMS


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("q", [gaussian(), mixture()], ids=["gaussian", "mix"])
def test_forms_against_numpy(form, q):
  m, between, within = moments(q)
  second = between if form == "means" else between + np.diag(within)
  kl, info, memory = TERM(q, {}, form, 0.0)
  np.testing.assert_allclose(kl, by_hand(form, m, second), rtol=1e-5)
  np.testing.assert_allclose(info["population_mean"], m, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(info["population_var"], np.diag(second), rtol=1e-5)
  assert memory == {}


def test_covariance_is_the_kl_of_a_gaussian_population():
  """By Monte Carlo of N(m, S); scipy scores both densities."""
  q = gaussian(b=12, d=3)
  m, between, within = moments(q)
  second = between + np.diag(within)
  p = scipy.stats.multivariate_normal(m, second)
  z = p.rvs(200_000, random_state=0)
  prior = scipy.stats.multivariate_normal(np.zeros(3), np.eye(3))
  ratio = p.logpdf(z) - prior.logpdf(z)
  error = 5 * ratio.std() / np.sqrt(ratio.size)
  assert abs(float(TERM(q, {}, "covariance", 0.0)[0]) - ratio.mean()) < error


def test_correlation_is_covariance_to_second_order():
  """The difference falls as the cube of the correlations, or faster."""
  rng = np.random.default_rng(0)
  z = rng.normal(size=(400, 4))
  z = np.linalg.solve(np.linalg.cholesky(np.cov(z.T, ddof=0)), z.T).T
  mix = rng.normal(size=(4, 4))
  np.fill_diagonal(mix, 0)
  gaps, terms = [], []
  for size in (0.2, 0.1):
    q = Gaussian(
      jnp.asarray(z @ (np.eye(4) + size * mix), jnp.float32),
      jnp.full((400, 4), -12.0),
    )
    covariance, correlation, full = (
      float(TERM(q, {}, form, 0.0)[0])
      for form in ("covariance", "correlation", "full")
    )
    gaps.append(abs(covariance - correlation))
    terms.append(covariance - full)  # the correlations' share, second order
  assert gaps[1] < 0.2 * terms[1]
  assert 3 < terms[0] / terms[1] < 5
  assert gaps[0] / gaps[1] > 6


def test_population_of_a_split_batch_is_another():
  """8 devices of 8 images, each with its own moments: 72.3, not 7.8 nats."""
  rng = np.random.default_rng(0)
  mu = jnp.asarray(rng.normal(size=(64, 512)), jnp.float32)
  q = Gaussian(mu, jnp.zeros_like(mu))
  whole = float(TERM(q, {}, "means", 0.0)[0])
  parts = [jax.tree.map(lambda v, i=i: v[i::8], q) for i in range(8)]
  split = np.mean([TERM(part, {}, "means", 0.0)[0] for part in parts])
  assert abs(whole - 7.8) < 0.5
  assert abs(split - 72.3) < 2


# ---------------------------------------------------------- the offset


OFFSET = jit(population.offset, static_argnums=(0, 1, 2))


def perfect(forms, images, s2, decay):
  """{form: the term's mean, its standard error} of perfect codes; NumPy.

  Their population, read by the form, is N(0, I). s2 is [d].
  """
  rng = np.random.default_rng(0)
  d = s2.size
  steps = int(5 / (1 - decay)) if decay else 1
  sums = {form: [] for form in forms}
  for _ in range(100 if decay else 800):
    mean, second = {}, {}
    for _ in range(steps):
      mu = rng.normal(size=(images, d))
      for kind, codes, within in (
        ("means", mu, 0 * s2),
        ("full", np.sqrt(1 - s2) * mu, s2),
      ):
        raw = codes.T @ codes / images + np.diag(within)
        m = mean.get(kind, np.zeros(d))
        s = second.get(kind, np.eye(d))
        mean[kind] = decay * m + (1 - decay) * codes.mean(0)
        second[kind] = decay * s + (1 - decay) * raw
    for form in forms:
      kind = "means" if form == "means" else "full"
      m = mean[kind]
      sums[form].append(by_hand(form, m, second[kind] - np.outer(m, m)))
  return {
    form: (np.mean(v), np.std(v) / np.sqrt(len(v))) for form, v in sums.items()
  }


def test_offset_of_means_by_its_formula():
  for images, wanted in ((10, 56.5), (256, 2.0)):
    got = OFFSET("means", 0.0, images, jnp.ones(512))
    psi = scipy.special.digamma((images - 1) / 2)
    np.testing.assert_allclose(got, -256 * (psi + np.log(2 / images)), 1e-6)
    assert abs(float(got) - wanted) < 0.05


UNEQUAL = np.linspace(0, 0.95, 12)  # of sigma^2, over the dimensions


@pytest.mark.parametrize(
  ("images", "s2", "decay"),
  [
    (10, 0.0, 0.0),
    (10, 0.3, 0.0),
    (64, 0.0, 0.0),
    (64, 0.3, 0.0),
    (256, 0.05, 0.0),
    (30, UNEQUAL, 0.0),
    (10, 0.3, 0.8),
    (20, 0.05, 0.9),
  ],
)
def test_offset_against_perfect_codes(images, s2, decay):
  """Within 2 %, with a memory 5 %, and 3 standard errors of Monte Carlo."""
  d = 12
  within = np.broadcast_to(s2, (d,)).astype(np.float32)
  forms = list(FORMS)
  if images * (1 + decay) / (1 - decay) < 2 * d:
    forms.remove("covariance")  # refused: nearly singular
  wanted = perfect(forms, images, within, decay)
  for form in forms:
    mean, error = wanted[form]
    got = float(OFFSET(form, decay, images, jnp.asarray(within)))
    share = 0.05 if decay else 0.02
    assert abs(got - mean) < share * mean + 3 * error, form


def test_excess_is_the_term_less_its_offset():
  q = gaussian(b=16)
  for form in FORMS:
    kl, info, _ = TERM(q, {}, form, 0.0)
    within = jnp.asarray(moments(q)[2], jnp.float32)
    wanted = float(kl) - float(OFFSET(form, 0.0, 16, within))
    np.testing.assert_allclose(info["population_kl_excess"], wanted, rtol=1e-4)


# ---------------------------------------------------------- the memory


@pytest.mark.parametrize("form", FORMS)
def test_memory_starts_at_the_prior_and_averages(form):
  """Several steps against the average written out in float64."""
  decay, d = 0.7, 3
  memory = population.init_memory(form, decay, d, jnp.float32)
  mean, second = np.zeros(d), np.eye(d)
  for seed in range(4):
    q = mixture(b=4, seed=seed)
    m, between, within = moments(q)
    raw = between + np.outer(m, m)
    raw = raw if form == "means" else raw + np.diag(within)
    mean = decay * mean + (1 - decay) * m
    second = decay * second + (1 - decay) * raw
    kl, info, memory = TERM(q, memory, form, decay)
    centred = second - np.outer(mean, mean)
    wanted = by_hand(form, mean, centred)
    np.testing.assert_allclose(kl, wanted, rtol=1e-5, atol=5e-6)
    np.testing.assert_allclose(memory["mean"], mean, rtol=1e-5, atol=1e-6)
    kept = memory["second"]
    wanted = second if kept.ndim > 1 else np.diag(second)
    np.testing.assert_allclose(kept, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
      info["population_var"], np.diag(centred), rtol=1e-5
    )


@pytest.mark.parametrize("form", FORMS)
def test_gradient_through_the_memory_has_full_weight(form):
  """dKL(M) / dM at the average, times dm / dtheta of this batch alone.

  By finite differences, in float64 and by hand, of the loss without memory at
  moments moved from the remembered ones by what this batch's moments move.
  """
  decay, q = 0.9, gaussian()
  memory = population.init_memory(form, decay, 3, jnp.float32)
  memory = {
    "mean": memory["mean"] + 0.2,
    "second": memory["second"] * 1.5,
  }
  got = jit(
    jax.grad(lambda q: population.population_kl(q, memory, form, decay)[0])
  )(q)

  def raw(q):
    m, between, within = moments(q)
    second = between + np.outer(m, m)
    return m, second if form == "means" else second + np.diag(within)

  m0, second0 = raw(q)
  old = np.asarray(memory["second"], np.float64)
  old = old if old.ndim > 1 else np.diag(old)
  mean = decay * np.asarray(memory["mean"], np.float64) + (1 - decay) * m0
  second = decay * old + (1 - decay) * second0
  if np.asarray(memory["second"]).ndim == 1:
    second0, second = (np.diag(np.diag(s)) for s in (second0, second))

  def loss(q):
    m, s = raw(q)
    if np.asarray(memory["second"]).ndim == 1:
      s = np.diag(np.diag(s))
    m, s = mean + (m - m0), second + (s - second0)
    return by_hand(form, m, s - np.outer(m, m))

  for name in ("mu", "logvar"):
    for i, j in ((0, 0), (2, 1), (5, 2)):
      values = []
      for sign in (1, -1):
        leaf = np.asarray(getattr(q, name), np.float64).copy()
        leaf[i, j] += sign * 1e-4
        values.append(loss(Wide(q, **{name: leaf})))
      wanted = (values[0] - values[1]) / 2e-4
      np.testing.assert_allclose(
        getattr(got, name)[i, j], wanted, rtol=1e-3, atol=1e-5
      )


class Wide:
  """A Gaussian of float64 NumPy arrays."""

  def __init__(self, q, **changes):
    parts = {"mu": q.mu, "logvar": q.logvar} | changes
    self.mu, self.logvar = (np.asarray(v, np.float64) for v in parts.values())

  def centres(self):
    weights = np.ones((self.mu.shape[0], 1))
    return weights, self.mu[:, None], np.exp(self.logvar)[:, None]


def test_first_step_with_memory_pulls_weakly():
  """The value is near the prior's, 0, whatever the first batch is."""
  q = gaussian()
  memory = population.init_memory("covariance", 0.99, 3, jnp.float32)
  assert float(TERM(q, memory, "covariance", 0.99)[0]) < 0.01
  assert population.init_memory("means", 0.0, 3, jnp.float32) == {}


def test_default_decay():
  """What makes the memory hold four images a dimension."""
  for form in ("means", "full", "correlation"):
    assert population.default_decay(form, 512, 20) == 0
  assert population.default_decay("covariance", 8, 64) == 0
  a = population.default_decay("covariance", 512, 20)
  assert abs(20 * (1 + a) / (1 - a) - 4 * 512) < 1e-6


# ---------------------------------------------------------- the edges


@pytest.mark.parametrize("form", FORMS)
def test_constant_latents_are_finite(form):
  """All codes one: ln 0 without the floor."""
  q = Gaussian(jnp.full((4, 3), 0.5), jnp.full((4, 3), -30.0))
  value, gradient = jit(
    jax.value_and_grad(lambda q: population.population_kl(q, {}, form, 0.0)[0])
  )(q)
  for leaf in [value, *jax.tree.leaves(gradient)]:
    assert np.all(np.isfinite(leaf))
  assert value > 15


def test_refused():
  check = population.check
  with pytest.raises(UserError, match="means, full, correlation, covariance"):
    check("mean", 0.0, 4, 8)
  with pytest.raises(UserError, match=r"memory=1\.0 is not a decay"):
    check("means", 1.0, 4, 8)
  with pytest.raises(UserError, match="2 or more"):
    check("means", 0.0, 4, 1)
  with pytest.raises(UserError, match="use 8 images"):
    check("covariance", 0.0, 4, 7)
  check("covariance", 0.0, 4, 8)
  check("covariance", 0.9, 4, 2)


def test_the_published_terms_rest_at_a_population_of_variance_two():  # G14
  """`means` and `collapse` are least at var(mu) = 1 and sigma^2 = 1."""
  mu = np.random.default_rng(0).normal(size=(64, 3))
  mu = (mu - mu.mean(0)) / mu.std(0)
  mu = jnp.asarray(mu, jnp.float32)

  def loss(mu, logvar):
    q = Gaussian(mu, logvar)
    kl, *_ = population.population_kl(q, {}, "means", 0.0)
    return kl + objective.collapse(q)

  grads = jax.grad(loss, (0, 1))(mu, jnp.zeros_like(mu))
  for gradient in grads:
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
  q = Gaussian(mu, jnp.zeros_like(mu))
  full, *_ = population.population_kl(q, {}, "full", 0.0)
  np.testing.assert_allclose(full, 1.5 * (2 - 1 - np.log(2)), rtol=1e-5)

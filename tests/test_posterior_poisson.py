"""The Poisson posterior against scipy, quadrature and Monte Carlo.

Ids (P1 ...) are the acceptance facts of arXiv:2405.14473's specification.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import alone, elbo, flat, jit, modalities, output, run_of
from test_posterior import KEY

from gamix_jax import build, objectives, posterior
from gamix_jax.errors import UserError
from gamix_jax.posterior import Poisson, Posterior
from gamix_jax.posterior import poisson as module

N = 100_000


def make_posterior(rate, prior=1.0, **kwargs):
  """One image, with one latent per rate."""
  log_rate = jnp.log(jnp.atleast_1d(jnp.asarray(rate, jnp.float32)))
  log_r = jnp.full(log_rate.shape, np.log(prior), jnp.float32)
  return Poisson(log_rate[None], log_r[None], **kwargs)


@pytest.fixture(scope="module")
def relaxed():
  """Samples relaxed counts: (rate, temperature, ramp, arrivals) -> [n]."""

  def draw(rate, temperature, ramp, arrivals, n=N):
    spacings = np.random.default_rng(0).exponential(size=(arrivals, n))
    z = module.relaxed(
      jnp.asarray(spacings, jnp.float32),
      jnp.full(n, rate, jnp.float32),
      jnp.float32(temperature),
      ramp,
    )
    return np.asarray(z, np.float64)

  return draw


@pytest.mark.parametrize("rate", [0.05, 1.0, 6.0])
@pytest.mark.parametrize("t", [1.0, 0.3])
def test_sigmoid_is_biased_as_it_should(relaxed, rate, t):  # P1
  z = relaxed(
    rate,
    t,
    "sigmoid",
    int(scipy.stats.poisson(13 * rate + 1).ppf(1 - 1e-9)) + 5,
  )
  log = np.log1p(np.exp(1 / t))
  mean = rate * t * log
  var = rate * t * (log - 1 / (1 + np.exp(-1 / t)))
  assert abs(z.mean() - mean) < 5 * np.sqrt(var / N) + 1e-4 * rate
  assert abs(z.var() / var - 1) < 0.08


@pytest.mark.parametrize(
  ("ramp", "c"),
  [
    ("linear", 1 / 3),
    ("cubic", 13 / 35),
    ("quintic", 181 / 462),
    ("cosine", 3 / 8),
  ],
)
def test_compact_ramps_are_unbiased(relaxed, ramp, c):  # P2
  rate, t = 3.0, 0.8
  z = relaxed(rate, t, ramp, 30)
  var = rate * (1 - t + 2 * t * c)
  assert abs(z.mean() - rate) < 5 * np.sqrt(var / N)
  assert abs(z.var() / var - 1) < 0.04


@pytest.mark.parametrize("r", [0.02, 0.5, 7.0])
@pytest.mark.parametrize("dr", [0.1, 0.9, 1.0, 1.5, 6.0])
def test_kl_is_the_sum_over_counts(r, dr):  # P3
  k = np.arange(400)
  q, p = scipy.stats.poisson(r * dr), scipy.stats.poisson(r)
  wanted = np.sum(q.pmf(k) * (q.logpmf(k) - p.logpmf(k)))
  got = make_posterior(r * dr, r).kl_divergence(None, None)[0]
  np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-6 * r)


def test_rate_kl_near_one_and_zero():  # P7, P3, P12
  log_y = np.array([0, 1e-6, 1e-4, 1e-3, -1e-2, 0.029, 0.031, -0.031, 0.5, -30])
  exact = 1 + np.exp(log_y) * (log_y - 1)
  exact[:5] = [
    log_y[i] ** 2 / 2 + log_y[i] ** 3 / 3 + log_y[i] ** 4 / 8 for i in range(5)
  ]
  got = np.asarray(module.rate_kl(jnp.asarray(log_y, jnp.float32)))
  np.testing.assert_allclose(got, exact, rtol=3e-4)
  assert got[0] == 0
  gradient = jax.vmap(jax.grad(module.rate_kl))(jnp.asarray(log_y, jnp.float32))
  np.testing.assert_allclose(gradient, log_y * np.exp(log_y), rtol=1e-3)
  # large counts: the KL of Gaussians of equal variance
  r, lam = 1000.0, 1010.0
  np.testing.assert_allclose(
    r * module.rate_kl(jnp.log(jnp.float32(lam / r))),
    (lam - r) ** 2 / 2 / r,
    rtol=0.01,
  )


def test_pathwise_gradient():  # P4
  rate, t, n = 2.0, 0.4, 50_000
  spacings = jnp.asarray(
    np.random.default_rng(1).exponential(size=(60, n)), jnp.float32
  )
  each = lambda s: jax.grad(  # noqa: E731
    lambda r: module.relaxed(s, r, jnp.float32(t), "sigmoid")
  )(jnp.float32(rate))
  g = np.asarray(jit(jax.vmap(each, 1))(spacings), np.float64)
  wanted = t * np.log1p(np.exp(1 / t))
  assert abs(g.mean() - wanted) < 5 * g.std() / np.sqrt(n)


def test_arrivals():  # P5, P11
  assert [module.arrivals_needed(v) for v in (1, 10, np.exp(5), 200)] == [
    8,
    26,
    203,
    263,
  ]
  head = posterior.head("poisson", latent=3)
  features = jnp.ones((2, 4))
  buckets = head.apply(head.init(KEY, features), features).buckets
  assert list(buckets) == sorted(set(buckets))
  # the number chosen at run time suffices for the largest rate
  for rate in np.exp(np.linspace(-3, 5, 60)):
    for reach in (1.05, 2):
      most = rate * reach
      need = most + 4.3 * np.sqrt(most) + 5
      assert need >= module.arrivals_needed(most), rate
  assert buckets[-1] >= module.arrivals_needed(2 * np.exp(5))


@pytest.mark.parametrize("rate", [0.1, 10.0, 100.0])
def test_draws_of_every_bucket(rate):  # P11
  """With little relaxation, the counts' mean and variance equal the rate."""
  q = make_posterior(
    np.full(500, rate), temperature=0.01, buckets=(16, 32, 64, 128, 256)
  )
  z, w = jit(lambda q: q.sample(KEY, 20, step=jnp.int32(9)))(q)
  z = np.asarray(z, np.float64).ravel()
  error = 5 * np.sqrt(rate / z.size)
  assert abs(z.mean() - rate) < error
  assert abs(z.var() / rate - 1) < 0.12 + 0.3 * (rate < 1)
  np.testing.assert_allclose(w, 1 / 20)


def test_evaluation_draws_true_counts():
  q = make_posterior(np.array([0.3, 4.0]), prior=2.0)
  assert isinstance(q, Posterior)
  z, _ = jit(lambda q: q.sample(KEY, 20_000))(q)
  z = np.asarray(z, np.float64)[:, 0]
  np.testing.assert_array_equal(z, np.round(z))
  np.testing.assert_allclose(z.mean(0), [0.3, 4.0], rtol=0.03)
  np.testing.assert_allclose(z.var(0), [0.3, 4.0], rtol=0.05)
  some = jnp.asarray(z[:50, None], jnp.float32)
  for got, rate in ((q.log_prob(some), [0.3, 4.0]), (q.log_prior(some), 2.0)):
    wanted = scipy.stats.poisson(rate).logpmf(z[:50]).sum(-1)
    np.testing.assert_allclose(got[:, 0], wanted, rtol=1e-4, atol=1e-5)


def test_temperature_decreases():
  """1 at step 0, linear until `temperature_steps`, then constant."""
  q = make_posterior(3.0, temperature=0.1, temperature_steps=10)
  sample = jit(lambda q, step: q.sample(KEY, 20, step=step)[0])
  for step, temperature in ((0, 1.0), (5, 0.55), (10, 0.1), (99, 0.1)):
    constant = make_posterior(3.0, temperature=temperature)
    got, wanted = sample(q, step), sample(constant, 99)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_soft_clamp():  # P8
  np.testing.assert_allclose(
    module.soft_cap(jnp.float32(5), 5), 5 - np.log(2), rtol=1e-6
  )
  np.testing.assert_allclose(module.soft_cap(jnp.float32(-4), 5), -4, atol=2e-4)


@pytest.mark.parametrize("level", [100.0, -100.0])
def test_extreme_rates_are_finite(level):
  """The sampler and the KL use the same clamped rate."""
  head = posterior.head("poisson", latent=2)
  features = jnp.ones((3, 4))
  params = head.init(KEY, features)["params"]
  params["log_residual"]["bias"] = jnp.full(2, level)

  def total(params):
    q = head.apply({"params": params}, features)
    z, w = q.sample(KEY, 2, step=jnp.int32(0))
    return jnp.mean(q.kl_divergence(z, w)) + jnp.mean(z)

  value, gradient = jit(jax.value_and_grad(total))(params)
  for leaf in [value, *jax.tree.leaves(gradient)]:
    assert np.all(np.isfinite(leaf))
  q = head.apply({"params": params}, features)
  assert float(q.log_rate.max()) <= 5
  np.testing.assert_allclose(q.mean(), np.exp(q.log_rate), rtol=1e-3, atol=2e-7)


def test_prior_draws_have_the_learned_rates():
  head = posterior.head("poisson", latent=2)
  variables = head.init(KEY, jnp.ones((1, 4)))
  z = np.asarray(head.apply(variables, KEY, 20_000, method="prior_draws"))
  q = head.apply(variables, jnp.ones((1, 4)))
  rate = np.exp(q.log_prior_rate[0])
  np.testing.assert_allclose(z.mean(0), rate, rtol=0.08)
  np.testing.assert_array_equal(z, np.round(z))


def test_the_kl_reaches_only_the_prior_and_the_encoder():
  run = run_of(elbo(flat, posterior__name="poisson"))
  after, _ = run.step(run.state, run.batch, {"kl": 1.0})
  for p, v in jax.tree_util.tree_leaves_with_path(after.vae.opt_state[0].mu):
    path, norm = jax.tree_util.keystr(p), float(jnp.linalg.norm(v.ravel()))
    assert (norm == 0) == ("['decoder']" in path), path


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({}, "use one of elbo"),
    (dict(posterior__components=2), "has one"),
    (dict(posterior__initial_logvar=-1.0), "no variance"),
    (dict(posterior__poisson__ramp="x"), "cubic, linear"),
    (dict(posterior__poisson__temperature=0.0), "> 0"),
    (dict(posterior__poisson__max_log_rate=8.0), "over 7"),
  ],
)
def test_what_does_not_fit_is_refused(changes, words):
  with pytest.raises(UserError, match=words):
    build.train_spec(alone(flat, posterior__name="poisson", **changes))


def test_elbo_is_the_closed_form():
  q = make_posterior(np.array([0.3, 4.0]), prior=2.0)
  x = jnp.zeros((1, 2, 2, 1))
  p = output(x, q, None, jnp.ones((1, 1)), x[None])
  terms, *_ = objectives.ELBO(modalities("l2", (2, 2, 1)))(p, {})
  np.testing.assert_allclose(terms["kl"], q.kl_divergence(None, None)[0])

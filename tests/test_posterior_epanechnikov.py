"""The Epanechnikov kernel against quadrature, scipy and Monte Carlo.

Ids (E1 ...) are the acceptance facts of arXiv:2405.12783's specification.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from conftest import EVAE, alone, flat, jit, modalities, output
from test_posterior import KEY, gaussian

from gamix_jax import build, objectives, posterior
from gamix_jax.errors import UserError
from gamix_jax.posterior import Epanechnikov, EVAEPosterior, Gaussian
from gamix_jax.posterior import epanechnikov as module

B = module.BANDWIDTH
N = 200_000


def cdf(t):
  """The standard kernel's distribution function on [-1, 1]."""
  return 0.5 + 0.75 * t - 0.25 * t**3


def make_posterior(kind, mu, r, **kwargs):
  """One image, with one latent per pair."""
  mu, r = np.atleast_1d(mu), np.atleast_1d(r)
  logvar = np.log(r**2 / 5)
  q = (jnp.asarray(v[None], jnp.float32) for v in (mu, logvar))
  return kind(*q, **kwargs)


def draws(q, n=N):
  z, w = jit(lambda q: q.sample(KEY, n), static_argnums=())(q)
  np.testing.assert_allclose(w, 1 / n)
  return np.asarray(z, np.float64)[:, 0]


def test_quantile_inverts_the_distribution():  # E2
  with jax.enable_x64(True):
    p = np.linspace(1e-9, 1 - 1e-9, 10_001)
    t = np.asarray(module.quantile(jnp.asarray(p)))
  assert np.max(np.abs(cdf(t) - p)) < 1e-12


def test_draws_have_the_distribution_of_a_median_of_three():  # E1
  z = draws(make_posterior(Epanechnikov, 0.7, 1.7))[:, 0]
  t = (z - 0.7) / 1.7
  assert np.abs(t).max() <= 1 + 1e-6
  assert (
    scipy.stats.kstest(t[:20_000], lambda t: cdf(np.clip(t, -1, 1))).pvalue
    > 1e-3
  )
  rng = np.random.default_rng(0)
  median = np.median(rng.uniform(-1, 1, (20_000, 3)), axis=1)
  assert scipy.stats.ks_2samp(t[:20_000], median).pvalue > 1e-3
  assert abs(t.var() - 1 / 5) < 3e-3
  assert abs((t**4).mean() - 3 / 35) < 3e-3


@pytest.mark.parametrize(("mu", "r"), [(0.0, 0.1), (0.7, 1.0), (-2.0, 5.0)])
def test_density_and_kl_against_quadrature(mu, r):  # E3, E4, E5
  q = make_posterior(Epanechnikov, mu, r)

  def density(z):
    z = jnp.asarray(np.reshape(z, (-1, 1, 1)), jnp.float32)
    return np.exp(np.asarray(q.log_prob(z), np.float64))[:, 0]

  z = np.linspace(mu - r, mu + r, 20_001)[1:-1]
  p = density(z)
  total = scipy.integrate.simpson(p, x=z)
  assert abs(total - 1) < 1e-4
  square = scipy.integrate.simpson(p**2, x=z)
  np.testing.assert_allclose(square, 3 / (5 * r), rtol=1e-4)
  # less than a Gaussian or a uniform of this variance has
  sigma = r / np.sqrt(5)
  assert square < 1 / (2 * np.sqrt(3) * sigma)
  assert square < 1 / (2 * np.sqrt(np.pi) * sigma)
  ratio = np.log(p) - scipy.stats.norm.logpdf(z)
  wanted = scipy.integrate.simpson(p * ratio, x=z)
  np.testing.assert_allclose(
    q.kl_divergence(None, None)[0], wanted, rtol=1e-3, atol=1e-3
  )
  outside = np.asarray(q.log_prob(jnp.full((1, 1, 1), mu + 1.01 * r)))
  assert np.all(np.isneginf(outside))


def test_kl_is_the_gaussians_and_a_constant():  # E5, E11
  g = gaussian(b=5, d=3)
  q = Epanechnikov(g.mu, g.logvar)
  gap = q.kl_divergence(None, None) - g.kl_divergence(None, None)
  constant = 0.5 * np.log(2 * np.pi / 5) - 5 / 3 + np.log(3) + 0.5
  np.testing.assert_allclose(gap, 3 * constant, rtol=1e-4)
  assert abs(constant - 0.046165) < 1e-6

  def total(family, mu, logvar):
    return jnp.sum(family(mu, logvar).kl_divergence(None, None))

  for a, b in zip(
    jax.grad(total, (1, 2))(Gaussian, g.mu, g.logvar),
    jax.grad(total, (1, 2))(Epanechnikov, g.mu, g.logvar),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("uniform", [True, False])
def test_algorithm_1(uniform):  # E6, E7, E10
  width, mu, r = 0.1, 0.8, 1.3
  q = make_posterior(EVAEPosterior, mu, r, width=width, uniform=uniform)
  z = draws(q)[:, 0]
  var = B**2 * r**2 / 5 + width**2 / (12 if uniform else 1)
  assert abs(z.mean() - B * mu) < 5 * np.sqrt(var / N)
  assert abs(z.var() / var - 1) < 0.02
  _, mean, variance = q.components()
  np.testing.assert_allclose([mean[0, 0, 0], variance[0, 0, 0]], [B * mu, var])
  # its density integrates to 1, and agrees with a histogram
  edge = 0.06 if uniform else 0.4
  ends = np.linspace(B * (mu - r) - edge, B * (mu + r) + edge, 4_001)
  at = jnp.asarray(ends[:, None, None], jnp.float32)
  p = np.exp(np.asarray(q.log_prob(at), np.float64))[:, 0]
  assert abs(scipy.integrate.simpson(p, x=ends) - 1) < 1e-4
  seen, _ = np.histogram(z, ends[::200], density=True)
  inside = [
    scipy.integrate.simpson(p[i : i + 201], x=ends[i : i + 201])
    for i in range(0, 4_000, 200)
  ]
  np.testing.assert_allclose(
    seen * np.diff(ends[::200]), inside, atol=5 * np.sqrt(0.1 / N)
  )
  assert q.has_finite_elbo != uniform
  if not uniform:
    wanted = scipy.stats.norm.logpdf(0.3, 0, width)
    at = q.log_prior(jnp.full((1, 1, 1), 0.3))
    np.testing.assert_allclose(at, wanted, rtol=1e-5)
    ratio = np.log(p) - scipy.stats.norm.logpdf(ends, 0, width)
    exact = scipy.integrate.simpson(p * ratio, x=ends)
    some = jnp.asarray(z[:50_000, None, None], jnp.float32)
    kl = q.kl_divergence(some, jnp.full((50_000, 1), 1 / 50_000))
    np.testing.assert_allclose(kl, exact, rtol=0.02)
    return
  # most of it is outside the prior's support: KL(q || p) is infinite
  z = draws(make_posterior(EVAEPosterior, 0.0, 1.0, width=width))[:, 0]
  assert np.mean(np.abs(z) > width / 2) > 0.75
  far = q.log_prior(jnp.full((1, 1, 1), 0.06))
  assert np.all(np.isneginf(far))
  np.testing.assert_allclose(q.log_prior(jnp.zeros((1, 1, 1))), np.log(10))


def term(r, width, batch, d):
  q = EVAEPosterior(
    jnp.ones((batch, d)), jnp.full((batch, d), np.log(r**2 / 5)), width
  )
  x = jnp.zeros((batch, 2, 2, 1))
  p = output(x, q, None, jnp.ones((1, batch)), x[None])
  terms, *_ = objectives.EVAE(modalities("l1", (2, 2, 1)))(p, {})
  return float(terms["kernel"])


def test_the_published_regulariser():  # E8
  np.testing.assert_allclose(term(1.0, 0.1, 100, 64), 0.0384, rtol=1e-5)
  np.testing.assert_allclose(term(0.5, 0.1, 100, 64), 0.0768, rtol=1e-5)
  np.testing.assert_allclose(term(1.0, 0.1, 50, 64), 0.0768, rtol=1e-5)


def test_a_point_reconstructs_as_an_autoencoder():
  """r -> 0, B -> 0: the samples are the mean."""
  q = make_posterior(EVAEPosterior, [0.3, -2.0], 1e-6, width=1e-6)
  np.testing.assert_allclose(
    draws(q, 100), B * np.array([[0.3, -2.0]] * 100), atol=1e-5
  )


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (
      dict(EVAE, posterior__epanechnikov__prior="normal"),
      "gamix, elbo, selbo, exact",
    ),
    (dict(EVAE, posterior__name="gaussian"), "prior is set"),
    (dict(posterior__name="epanechnikov", posterior__components=2), "has one"),
    (
      dict(posterior__name="epanechnikov", posterior__epanechnikov__prior="x"),
      "normal, uniform, gaussian",
    ),
    (
      dict(posterior__name="epanechnikov", posterior__epanechnikov__width=0.0),
      "> 0",
    ),
    (
      dict(
        posterior__name="epanechnikov",
        posterior__epanechnikov__prior="uniform",
      ),
      "use one of evae",
    ),
  ],
)
def test_what_does_not_fit_is_refused(changes, words):
  with pytest.raises(UserError, match=words):
    build.train_spec(alone(flat, **changes))


@pytest.mark.parametrize("prior", ["normal", "uniform", "gaussian"])
def test_prior_draws(prior):
  head = posterior.head("epanechnikov", latent=2, epanechnikov={"prior": prior})
  z = np.asarray(head.apply({}, KEY, 50_000, method="prior_draws"))
  std = {"normal": 1.0, "uniform": 0.1 / np.sqrt(12), "gaussian": 0.1}[prior]
  np.testing.assert_allclose(z.std(0), std, rtol=0.02)
  np.testing.assert_allclose(z.mean(0), 0, atol=0.02 * std)
  if prior == "uniform":
    assert np.abs(z).max() <= 0.05

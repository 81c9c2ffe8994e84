"""The terms against scipy's densities, closed forms and Monte Carlo."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from conftest import elbo, jit, modalities, output, small

from gamix_jax import build, objectives, train_metrics
from gamix_jax.errors import UserError
from gamix_jax.likelihood import LIKELIHOODS
from gamix_jax.modality import log_likelihood
from gamix_jax.posterior import Gaussian, Mixture

KINDS = ("l1", "l2", "bernoulli")


def pictures(seed=0, b=3, s=2):
  """Returns x [b, 2, 3, 2] in [-1, 1] and x_hat [s, b, 2, 3, 2]."""
  rng = np.random.default_rng(seed)
  x = rng.uniform(-1, 1, (b, 2, 3, 2)).astype(np.float32)
  return x, rng.normal(size=(s, *x.shape)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_error_is_a_mean_over_elements(kind):
  x, x_hat = pictures()
  p = scipy.special.expit(x_hat.astype(np.float64))
  t = (x.astype(np.float64) + 1) / 2
  each = {
    "l1": np.abs(x - x_hat),
    "l2": (x - x_hat) ** 2,
    "bernoulli": -t * np.log(p) - (1 - t) * np.log1p(-p),
  }[kind]
  image = modalities(kind, x.shape[1:])["image"]
  got = image.error(jnp.asarray(x), jnp.asarray(x_hat))
  assert got.shape == (2, 3)
  np.testing.assert_allclose(got, each.mean((2, 3, 4)), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_log_likelihood_is_a_normalised_density(kind):
  """Scipy's, at the scale that the weight stands for."""
  x, x_hat = pictures()
  n = 2 * 3 * 2
  weight = {"l1": 30.0, "l2": 30.0, "bernoulli": n}[kind]
  if kind == "l1":
    each = scipy.stats.laplace.logpdf(x[None], x_hat, n / weight)
  elif kind == "l2":
    each = scipy.stats.norm.logpdf(x[None], x_hat, np.sqrt(n / weight / 2))
  else:
    x = np.sign(x)
    p = scipy.special.expit(x_hat.astype(np.float64))
    each = scipy.stats.bernoulli.logpmf((x[None] + 1) / 2, p)
  got = log_likelihood(
    modalities(kind, x.shape[1:]),
    {"image": jnp.asarray(x)},
    {"image": jnp.asarray(x_hat)},
    weight,
  )
  np.testing.assert_allclose(got, each.sum((2, 3, 4)), rtol=1e-5)


def test_the_mean_is_an_image():
  logits = jnp.asarray([-50.0, 0.0, 1.0, 50.0])
  p = scipy.special.expit(np.asarray(logits))
  np.testing.assert_allclose(
    LIKELIHOODS["bernoulli"].mean(logits), 2 * p - 1, atol=1e-6
  )
  for kind in ("l1", "l2"):
    assert LIKELIHOODS[kind].mean(logits) is logits


def test_recon_weights_the_samples():
  """Stratum by stratum, then over the batch."""
  x, x_hat = pictures()
  w = np.array([[0.9, 0.5, 0.2], [0.1, 0.5, 0.8]], np.float32)
  each = np.abs(x - x_hat).mean((2, 3, 4))
  p = output(*map(jnp.asarray, (x, 0, 0, w, x_hat)))
  got = objectives.ELBO(modalities("l1", x.shape[1:])).recon(p)
  np.testing.assert_allclose(got, (w * each).sum(0).mean(), rtol=1e-6)


def posteriors():
  rng = np.random.default_rng(0)
  draw = lambda *s: jnp.asarray(rng.normal(size=s), jnp.float32)  # noqa: E731
  return (
    Gaussian(draw(4, 3), draw(4, 3)),
    Mixture(draw(4, 2), draw(4, 2, 3), draw(4, 2, 3)),
  )


def test_collapse_against_monte_carlo():
  """mean_i sum_k pi_ik KL(N(0, sigma_ik^2) || N(0, I)), from samples."""
  rng = np.random.default_rng(0)
  for q in posteriors():
    weights, _, var = (np.asarray(v, np.float64) for v in q.components())
    sigma = np.sqrt(var)
    z = sigma * rng.normal(size=(100_000, *sigma.shape))
    ratio = scipy.stats.norm.logpdf(z, 0, sigma) - scipy.stats.norm.logpdf(z)
    ratio = ratio.sum(-1)
    wanted = np.mean(np.sum(weights * ratio.mean(0), -1))
    error = 5 * ratio.std(0).max() / np.sqrt(z.shape[0])
    assert abs(float(objectives.collapse_penalty(q)) - wanted) < error


def test_objectives_return_their_terms():
  for q in posteriors():
    z = jnp.ones((q.components()[0].shape[1], 4, 3))
    w = q.components()[0].T
    x = jnp.zeros((4, 2, 2, 1))
    p = output(
      x,
      q,
      z,
      w,
      jnp.full((z.shape[0], 4, 2, 2, 1), 0.25),
      x_hat_var={"image": x},
      key=jax.random.key(0),
      params={"decoder": x},
      code_logits=(z[0, :, 0], z[..., 0]),
    )
    for name, row in objectives.OBJECTIVES.items():
      if not row.accepts(type(q)) or row.subsets:
        continue
      own = {"images": 50} if name == "tcvae" else {}
      objective = row(modalities("l1", x.shape[1:]), **own)
      terms, _, state = jax.eval_shape(objective, p, objective.init())
      assert set(terms) == set(row.terms), name
      assert state == objective.init()
      assert all(v.shape == () for v in terms.values())


def test_elbo_is_the_closed_form_of_a_gaussian():
  q = posteriors()[0]
  x = jnp.zeros((4, 2, 2, 1))
  p = output(x, q, None, jnp.ones((1, 4)), x[None])
  terms, *_ = objectives.ELBO(modalities("l1", (2, 2, 1)))(p, {})
  mu, logvar = (np.asarray(v, np.float64) for v in (q.mu, q.logvar))
  each = 0.5 * (np.exp(logvar) + mu**2 - 1 - logvar).sum(-1)
  np.testing.assert_allclose(terms["kl"], each.mean(), rtol=1e-6)


# ---------------------------------------------------------- adversarial


def logits(seed=0):
  rng = np.random.default_rng(seed)
  real = rng.normal(size=(3, 2, 2, 1)).astype(np.float32)
  fake = rng.normal(size=(2, 3, 2, 2, 1)).astype(np.float32)
  w = np.array([[0.9, 0.5, 0.2], [0.1, 0.5, 0.8]], np.float32)
  return real, fake, w


def test_bce_by_hand():
  real, fake, w = logits()
  p_real, p_fake = (
    scipy.special.expit(v.astype(np.float64)) for v in (real, fake)
  )
  got = objectives.ADVERSARIAL["bce"](*map(jnp.asarray, logits()))

  def mean_of(each):
    return np.mean(np.sum(w * each.mean((2, 3, 4)), 0))

  np.testing.assert_allclose(got["real"], -np.log(p_real).mean(), rtol=1e-5)
  np.testing.assert_allclose(
    got["fake"], mean_of(-np.log1p(-p_fake)), rtol=1e-5
  )
  np.testing.assert_allclose(
    got["adversarial"], mean_of(-np.log(p_fake)), rtol=1e-5
  )


def test_hinge_by_hand():
  real, fake, w = logits()
  got = objectives.ADVERSARIAL["hinge"](*map(jnp.asarray, logits()))

  def mean_of(each):
    return np.mean(np.sum(w * each.mean((2, 3, 4)), 0))

  np.testing.assert_allclose(
    got["real"], np.maximum(0, 1 - real).mean(), rtol=1e-5
  )
  np.testing.assert_allclose(
    got["fake"], mean_of(np.maximum(0, 1 + fake)), rtol=1e-5
  )
  np.testing.assert_allclose(got["adversarial"], mean_of(-fake), rtol=1e-5)


@pytest.mark.parametrize("loss", ["bce", "hinge"])
def test_extreme_logits_are_finite(loss):
  for level in (1e4, -1e4):
    real = jnp.full((2, 1, 1, 1), level)
    value, gradient = jit(
      jax.value_and_grad(
        lambda v: sum(
          objectives.ADVERSARIAL[loss](v, v[None], jnp.ones((1, 2))).values()
        )
      )
    )(real)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


def test_discriminator_metrics():
  real, fake, w = logits()
  got = train_metrics.logits(*map(jnp.asarray, logits()))
  np.testing.assert_allclose(got["disc/logits_real"], real.mean(), rtol=1e-5)
  right = np.mean(np.sum(w * (fake < 0).mean((2, 3, 4)), 0))
  np.testing.assert_allclose(
    got["disc/accuracy"], ((real > 0).mean() + right) / 2, rtol=1e-5
  )
  level = np.mean(np.sum(w * fake.mean((2, 3, 4)), 0))
  np.testing.assert_allclose(got["disc/logits_fake"], level, rtol=1e-5)


def test_posterior_metrics():
  """Two active units, half the variances of one component collapsed."""
  mu = np.zeros((4, 2, 4), np.float32)
  mu[:, :, 0] = np.array([-1, 0, 1, 2])[:, None]
  mu[:, :, 1] = np.array([0, 0, 0, 0.5])[:, None]
  mu[:, :, 2] = np.array([0, 0, 0, 0.05])[:, None]
  logvar = np.zeros((4, 2, 4), np.float32)
  logvar[:, 0, :2] = -6
  weights = np.tile([0.25, 0.75], (4, 1))
  q = Mixture(*(jnp.asarray(v) for v in (np.log(weights), mu, logvar)))
  got = train_metrics.posterior(q)
  assert got["posterior/active_units"] == 2
  np.testing.assert_allclose(
    got["posterior/collapsed_fraction"], 0.125, rtol=1e-5
  )
  wanted = 0.25 * (0.5 + 0.5 * np.exp(-6)) + 0.75
  np.testing.assert_allclose(got["posterior/mean_var"], wanted, rtol=1e-5)


# ---------------------------------------------------------- names


def test_names_on_one_side_only_show_both_lists():
  c = small(weights__kl=1.0, weights__collapse_penalty=None)
  with pytest.raises(UserError) as e:
    build.train_spec(c)
  text = str(e.value)
  assert (
    "recon, population_kl, collapse_penalty, adversarial, real, fake;" in text
  )
  given = text.partition("the weights are of ")[2].partition(".\n")[0]
  assert sorted(given.split(", ")) == [
    "adversarial",
    "fake",
    "kl",
    "population_kl",
    "real",
    "recon",
  ]
  assert "--config.weights.collapse_penalty=1 --config.weights.kl=None" in text


def test_weights_of_each_objective():
  spec = build.train_spec(small())
  assert spec.weights.vae == {
    "recon": 5000.0,
    "population_kl": 1.0,
    "collapse_penalty": 0.2,
    "adversarial": 100.0,
  }
  assert spec.weights.disc == {"real": 100.0, "fake": 100.0}
  assert list(build.train_spec(elbo()).weights.vae) == [
    "recon",
    "kl",
    "adversarial",
  ]


def test_unknown_names():
  with pytest.raises(UserError, match="gamix, elbo"):
    objectives.term_names("gamx", "bce")
  with pytest.raises(UserError, match="bce, hinge, none"):
    objectives.term_names("gamix", "wgan")
  with pytest.raises(UserError, match="l1, l2, bernoulli"):
    build.train_spec(small(objective__reconstruction="mse"))


def test_weighted():
  terms = {"a": jnp.asarray(2.0), "b": jnp.asarray(3.0), "unused": jnp.ones(())}
  assert float(objectives.weighted_sum(terms, {"a": 10.0, "b": 0.5})) == 21.5
  assert objectives.weighted_sum(terms, {}) == 0

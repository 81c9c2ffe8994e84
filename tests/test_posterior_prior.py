"""Learned priors: densities, samples, bounds, and that they learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from conftest import elbo, flat, jit, run_of
from test_posterior import KEY, gaussian, mixture

from gamix_jax import build, metrics, step
from gamix_jax.errors import UserError
from gamix_jax.posterior import Gaussian, Mixture, Posterior, prior


def density(p, z):
  """Returns ln p(z) of a prior in float64; z [n, d]."""
  logits, mu, logvar = (
    np.asarray(v[0], np.float64) for v in (p.logits, p.mu, p.logvar)
  )
  each = scipy.stats.norm.logpdf(z[:, None], mu, np.exp(logvar / 2)).sum(-1)
  pi = scipy.special.log_softmax(logits)
  return scipy.special.logsumexp(each + pi, axis=-1)


@pytest.mark.parametrize(
  "q", [gaussian(), mixture()], ids=["gaussian", "mixture"]
)
def test_kl_is_of_the_mixtures_density(q):
  p = jax.tree.map(lambda v: v[:1], mixture(k=2, seed=4))
  both = prior.WithPrior(q, p)
  assert isinstance(both, Posterior)
  z, w = both.sample(KEY, 4)
  z64 = np.asarray(z, np.float64).reshape(-1, 3)
  wanted = density(p, z64).reshape(z.shape[:2])
  np.testing.assert_allclose(both.log_prior(z), wanted, rtol=1e-4, atol=1e-4)
  ratio = np.asarray(q.log_prob(z), np.float64) - wanted
  wanted = (np.asarray(w, np.float64) * ratio).sum(0)
  np.testing.assert_allclose(
    both.kl_divergence(z, w), wanted, rtol=1e-3, atol=1e-3
  )


def test_one_standard_component_is_the_standard_vae():
  q = gaussian()
  p = Mixture(jnp.zeros((1, 1)), jnp.zeros((1, 1, 3)), jnp.zeros((1, 1, 3)))
  both = prior.WithPrior(q, p)
  z, _ = q.sample(KEY, 50_000)
  np.testing.assert_allclose(
    both.log_prior(z[:9]), q.log_prior(z[:9]), rtol=1e-5
  )
  w = jnp.full(z.shape[:2], 1 / 50_000)
  np.testing.assert_allclose(
    both.kl_divergence(z, w), q.kl_divergence(None, None), rtol=0.03
  )


def test_pseudo_inputs_are_a_population():
  """1/C sum_c q(z | u_c), also for mixtures."""
  q = mixture()
  p = prior.vamp_mixture(q)
  z = np.random.default_rng(0).normal(size=(7, 3))
  each = np.asarray(
    q.log_prob(jnp.asarray(z, jnp.float32)[:, None]), np.float64
  )
  wanted = scipy.special.logsumexp(each, axis=1) - np.log(each.shape[1])
  np.testing.assert_allclose(density(p, z), wanted, rtol=1e-4)


def test_draws_have_the_moments_of_the_density():
  p = jax.tree.map(lambda v: v[:1], mixture(k=2, seed=4))
  z = np.asarray(prior.draw(p, KEY, 100_000), np.float64)
  pi = scipy.special.softmax(np.asarray(p.logits[0], np.float64))[:, None]
  mu, var = np.asarray(p.mu[0], np.float64), np.exp(np.asarray(p.logvar[0]))
  mean = (pi * mu).sum(0)
  variance = (pi * (mu**2 + var)).sum(0) - mean**2
  np.testing.assert_allclose(
    z.mean(0), mean, atol=5 * np.sqrt(variance.max() / 1e5)
  )
  np.testing.assert_allclose(z.var(0), variance, rtol=0.05)
  centres = np.asarray(prior.draw(p, KEY, 50, temperature=0.0))
  near = np.abs(centres[:, None] - mu[None]).max(-1).min(1)
  np.testing.assert_allclose(near, 0, atol=1e-6)


@pytest.mark.parametrize("name", ["mixture", "vamp"])
@pytest.mark.parametrize("family", ["gaussian", "mixture"])
def test_the_prior_learns_from_the_kl_alone(name, family):
  c = elbo(flat, prior__name=name, prior__components=3, posterior__name=family)
  run = run_of(c)
  for term, moves in (("kl", True), ("recon", False)):
    after, metrics = run.step(run.state, run.batch, {term: 1.0})
    assert np.isfinite(metrics["vae/kl"])
    moments = after.vae.opt_state[0].mu["prior"]
    for leaf in jax.tree.leaves(moments):
      assert (float(jnp.abs(leaf).max()) > 0) == moves, term
  vae = run.spec.vae.bind(
    {"params": run.state.vae.params, "batch_stats": run.state.vae.batch_stats}
  )
  z = vae.prior_draws(KEY, 6)
  assert z.shape == (6, c.model.latent)
  batch = run.batch | {"step": jnp.int32(0)}
  found = jit(
    lambda b: step.eval_step(
      run.spec, 4, run.state.vae.params, run.state.vae.batch_stats, b
    )
  )(batch)
  # by hand, from the current prior
  q = vae.encode({"image": batch["image"]})
  p = vae.with_prior(q).prior
  z, w = q.sample(jax.random.fold_in(run.spec.key(0), 1), 4)
  z64 = np.asarray(z, np.float64).reshape(-1, c.model.latent)
  log_q = np.asarray(q.log_prob(z), np.float64)
  ratio = log_q - density(p, z64).reshape(z.shape[:2])
  np.testing.assert_allclose(
    found["kl"], (np.asarray(w) * ratio).sum(0), rtol=1e-3, atol=1e-3
  )


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(prior__name="x"), "normal, mixture, vamp"),
    (dict(prior__components=3), "'normal'"),
    (dict(prior__name="vamp", posterior__name="epanechnikov"), "for the post"),
  ],
)
def test_what_does_not_fit_is_refused(changes, words):
  with pytest.raises(UserError, match=words):
    build.train_spec(elbo(flat, **changes))


def test_gamix_has_no_other_prior():
  with pytest.raises(UserError, match="gaussian/gamix"):
    build.train_spec(flat(prior__name="vamp"))


def test_surgery_with_a_learned_prior():
  """Its kl and population_kl refer to that prior: Monte Carlo in NumPy."""
  rng = np.random.default_rng(0)
  n, d = 40, 2
  q = Gaussian(
    jnp.asarray(rng.normal(size=(n, d)), jnp.float32),
    jnp.full((n, d), -2.0),
  )
  p = Mixture(
    jnp.zeros((1, 2)),
    jnp.asarray([[[-1.0, 0.0], [1.0, 0.5]]]),
    jnp.full((1, 2, d), -0.5),
  )
  both = prior.WithPrior(q, p)
  found = metrics.surgery(
    q, jax.random.key(0), draws=500, log_prior=both.log_prior
  )
  z = np.asarray(q.mu)[None] + np.exp(-1.0) * rng.normal(size=(4000, n, d))

  def log_normal(z, mu, logvar):
    each = (z - mu) ** 2 * np.exp(-logvar) + logvar + np.log(2 * np.pi)
    return -0.5 * each.sum(-1)

  log_q = log_normal(z, np.asarray(q.mu), -2.0)
  each = [log_normal(z, np.asarray(p.mu)[0, k], -0.5) for k in (0, 1)]
  kl = np.mean(log_q - np.logaddexp(*each) + np.log(2))
  np.testing.assert_allclose(found["kl"], kl, atol=0.02)
  total = found["mutual_information"] + found["population_kl"]
  np.testing.assert_allclose(found["kl"], total, atol=1e-4)

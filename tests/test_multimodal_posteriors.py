"""The posteriors of several modalities against SciPy and Monte Carlo.

In float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from modality_cases import all_masks
from scipy import special, stats

from gamix_jax.multimodal import RandomComponent, Separate, WithPrivate
from gamix_jax.multimodal.posteriors import EXCLUDED
from gamix_jax.posterior import Gaussian

M, D = 3, 2
MASKS = all_masks(M)[1:]  # not the empty one
B = len(MASKS)
N = 40_000


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def arrays(seed=0, d=D):
  rng = np.random.default_rng(seed)
  there = MASKS[..., None]
  return (
    there * rng.normal(size=(B, M, d)),
    there * rng.normal(-0.7, 0.4, (B, M, d)),
  )


def separate():
  return Separate(*map(jnp.asarray, (*arrays(), MASKS)))


def mixture():
  logits = np.where(MASKS > 0, 0.0, EXCLUDED)
  return RandomComponent(*map(jnp.asarray, (logits, *arrays())))


def private(shared):
  return WithPrivate(shared, *map(jnp.asarray, arrays(1, 1)))


def gaussian():
  mu, logvar = arrays(2)
  return Gaussian(jnp.asarray(mu.sum(1)), jnp.asarray(logvar.sum(1)))


CASES = {
  "separate": separate,
  "random component": mixture,
  "private of a gaussian": lambda: private(gaussian()),
  "private of a mixture": lambda: private(mixture()),
}
EVERY = pytest.mark.parametrize("make", CASES.values(), ids=CASES)


def drawn(q, n=N, seed=0):
  z, w = q.sample(jax.random.key(seed), n)
  np.testing.assert_allclose(np.sum(w, axis=0), 1, rtol=1e-12)
  assert z.shape == (*w.shape, q.mean().shape[-1])
  return np.asarray(z), np.asarray(w)


def assert_mean(values, wanted, limit=5):
  """Asserts that a mean over the first axis is `wanted`, up to its error."""
  error = np.std(values, axis=0) / np.sqrt(len(values))
  off = np.abs(np.mean(values, axis=0) - wanted) / (error + 1e-12)
  assert off.max() < limit, off.max()


@EVERY
def test_moments_are_those_of_draws(make):
  q = make()
  z, _ = drawn(q)
  weights, mu, var = map(np.asarray, q.components())
  mean = (weights[..., None] * mu).sum(1)
  np.testing.assert_allclose(q.mean(), mean, atol=1e-12)
  assert_mean(z, mean)
  spread = (weights[..., None] * (var + (mu - mean[:, None]) ** 2)).sum(1)
  assert_mean((z - mean) ** 2, spread)


@EVERY
def test_kl_is_that_of_the_densities(make):
  """Of q's own density and prior, in closed form or estimated."""
  q = make()
  z, w = q.sample(jax.random.key(3), N)
  each = np.asarray(q.log_prob(z) - q.log_prior(z))
  assert_mean(each, np.asarray(q.kl_divergence(z, w)))
  other, weights = q.sample(jax.random.key(4), N)
  off = np.asarray(q.kl_divergence(other, weights)) - each.mean(0)
  assert np.all(np.abs(off) < 8 * each.std(0) / np.sqrt(N))


@EVERY
def test_standard_noise_can_be_given(make):
  q = make()
  eps = jnp.ones(q.noise_shape(2))
  (z, _), (again, _) = (q.sample(jax.random.key(5), 2, eps) for _ in range(2))
  np.testing.assert_array_equal(z, again)
  shift, _ = q.sample(jax.random.key(5), 2, 1 + eps)
  assert np.any(shift != z)


def test_density_of_separate_latents():
  """That of the observed modalities; of draws too, it integrates to 1."""
  q = separate()
  mu, logvar = arrays()
  z = np.random.default_rng(7).normal(size=(5, B, M, D))
  each = stats.norm.logpdf(z, mu, np.exp(logvar / 2)).sum(-1)
  found = q.log_prob(jnp.asarray(z.reshape(5, B, -1)))
  np.testing.assert_allclose(found, (MASKS * each).sum(-1), rtol=1e-10)
  prior = (MASKS * stats.norm.logpdf(z).sum(-1)).sum(-1)
  found = q.log_prior(jnp.asarray(z.reshape(5, B, -1)))
  np.testing.assert_allclose(found, prior, rtol=1e-10)
  kl = 0.5 * (np.exp(logvar) + mu**2 - 1 - logvar).sum(-1)
  found = q.kl_divergence(*q.sample(jax.random.key(0), 1))
  np.testing.assert_allclose(found, (MASKS * kl).sum(-1), rtol=1e-10)


def test_latents_of_a_missing_modality_are_the_others_mixture():
  """Their distribution, by Kolmogorov-Smirnov, and not a third one's."""
  q, (mu, logvar) = separate(), arrays()
  z, _ = drawn(q, 4_000)
  z = z.reshape(-1, B, M, D)
  for i, mask in enumerate(MASKS):
    seen = np.flatnonzero(mask)
    for m in np.flatnonzero(mask == 0):

      def cdf(t, i=i, seen=seen):
        scale = np.exp(logvar[i, seen, 0] / 2)
        return stats.norm.cdf(t[:, None], mu[i, seen, 0], scale).mean(1)

      assert stats.kstest(z[:, i, m, 0], cdf).pvalue > 1e-4
  # What is drawn for it is not a copy of what is drawn for the other one.
  (row,) = np.flatnonzero((MASKS == [1, 0, 0]).all(1))
  assert not np.any(z[:, row, 0] == z[:, row, 1])


def test_nothing_observed_is_drawn_from_the_prior():
  empty = Separate(*(jnp.zeros(s) for s in ((1, M, D), (1, M, D), (1, M))))
  z, _ = drawn(empty)
  assert_mean(z, 0)
  assert_mean(z**2, 1)
  mean, var = empty.moments()
  np.testing.assert_array_equal(mean, 0)
  np.testing.assert_array_equal(var, 1)


def test_density_of_a_random_component():
  q, (mu, logvar) = mixture(), arrays()
  z = np.random.default_rng(8).normal(size=(4, B, 1, D))
  each = stats.norm.logpdf(z, mu, np.exp(logvar / 2)).sum(-1)
  wanted = special.logsumexp(
    each, axis=-1, b=MASKS / MASKS.sum(1, keepdims=True)
  )
  found = q.log_prob(jnp.asarray(z[:, :, 0]))
  np.testing.assert_allclose(found, wanted, rtol=1e-10)


def test_each_draw_takes_one_component():
  """As often as another, and never one that is excluded."""
  logits, (mu, _) = np.where(MASKS > 0, 0.0, EXCLUDED), arrays()
  narrow = np.full((B, M, D), -40.0)
  q = RandomComponent(*map(jnp.asarray, (logits, mu, narrow)))
  z, w = drawn(q, 6_000)
  assert z.shape == (6_000, B, D)
  assert np.ptp(w) == 0
  for i, mask in enumerate(MASKS):
    near = np.abs(z[:, i, None] - mu[i]).max(-1) < 1e-6
    counts = near.sum(0)
    assert counts.sum() == len(z)
    assert not counts[mask == 0].any()
    seen = counts[mask > 0]
    assert len(seen) == 1 or stats.chisquare(seen).pvalue > 1e-4


def test_private_latents_follow_the_shared_ones():
  q, (mu, logvar) = private(gaussian()), arrays(1, 1)
  z = np.random.default_rng(9).normal(size=(4, B, D + M))
  shared = stats.norm.logpdf(
    z[..., :D], q.shared.mu, np.exp(q.shared.logvar / 2)
  )
  own = stats.norm.logpdf(z[..., D:], mu[..., 0], np.exp(logvar[..., 0] / 2))
  wanted = shared.sum(-1) + own.sum(-1)
  np.testing.assert_allclose(q.log_prob(jnp.asarray(z)), wanted, rtol=1e-10)
  prior = stats.norm.logpdf(z).sum(-1)
  np.testing.assert_allclose(q.log_prior(jnp.asarray(z)), prior, rtol=1e-10)
  # Those of a missing modality have their prior.
  draws, _ = drawn(q)
  missing = draws[..., D:][:, MASKS == 0]
  assert_mean(missing, 0)
  assert_mean(missing**2, 1)

"""MMVM's two regularisers against quadrature, and its limits.

In float64. M1 to M6 are facts of the specification of arXiv:2403.05300. What is
estimated from draws is integrated here: `Separate.sample` is given quadrature
nodes as its noise, which is the same integral for every modality.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import jit
from modality_cases import all_masks, batch, built, leaves, several, variables
from scipy import special, stats

from gamix_jax import step
from gamix_jax.multimodal import Separate, fusion
from gamix_jax.objectives import mmvm, population
from gamix_jax.posterior import Gaussian

KEY = jax.random.key(0)
EPS = np.linspace(-11, 11, 2001)  # nodes for N(0, 1), evenly spaced
WEIGHTS = stats.norm.pdf(EPS) * (EPS[1] - EPS[0])
MU, SIGMA = np.array([-1.0, 0.4, 2.0]), np.array([0.5, 0.8, 1.1])


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def separate(mu, sigma, mask=None):
  """Returns the posteriors of one observation: mu and sigma are [m]."""
  mu, logvar = np.asarray(mu, float), 2 * np.log(np.asarray(sigma, float))
  mask = np.ones(len(mu)) if mask is None else np.asarray(mask, float)
  return fusion.separate(
    *map(jnp.asarray, (mu[None, :, None], logvar[None, :, None], mask[None]))
  )


@jax.jit
def exact(q, alpha=0.0):
  """The integral of what `kl_to_mixture` estimates, one observation."""
  m = q.mu.shape[1]
  eps = jnp.broadcast_to(jnp.asarray(EPS)[:, None, None, None], (2001, 1, m, 1))
  z, _ = q.sample(KEY, len(EPS), eps)
  return jnp.asarray(WEIGHTS) @ mmvm.kl_to_mixture(q, z, alpha)[:, 0]


@jax.jit
def surrogate(q, alpha=0.0):
  return mmvm.pairwise_kl(q, alpha)[0]


EITHER = pytest.mark.parametrize("form", [exact, surrogate])


# ------------------------------------------------------- second opinion


GRID = np.linspace(-14, 16, 60_001)


def logs(mu, sigma):
  """ln q_m on the grid, [m, grid]."""
  return stats.norm.logpdf(GRID, np.c_[mu], np.c_[sigma])


def integral(values):
  return values.sum(-1) * (GRID[1] - GRID[0])


def mixture(mu, sigma, alpha=0.0):
  """ln h on the grid."""
  parts = np.concatenate([logs(mu, sigma), logs([0], [1])])
  m = len(np.c_[mu])
  b = np.append(np.full(m, (1 - alpha) / m), alpha)
  return special.logsumexp(parts, axis=0, b=b[:, None])


def by_grid(mu, sigma, alpha=0.0):
  """sum_m KL(q_m || h)."""
  each = logs(mu, sigma)
  return integral(np.exp(each) * (each - mixture(mu, sigma, alpha))).sum()


def gaussian_kl(m0, s0, m1=0.0, s1=1.0):
  return np.log(s1 / s0) + (s0**2 + (m0 - m1) ** 2) / (2 * s1**2) - 0.5


def pairs(mu, sigma):
  """sum_m of the mean KL(q_m || q_j) over j."""
  every = itertools.product(zip(mu, sigma, strict=True), repeat=2)
  return sum(gaussian_kl(*a, *b) for a, b in every) / len(mu)


def random_cases(n=8):
  rng = np.random.default_rng(0)
  for m in (1, *[3] * n):
    yield rng.normal(0, 1.5, m), np.exp(rng.normal(-0.3, 0.5, m))


# ------------------------------------------------------------- M1 to M6


def test_m1_the_sum_is_m_times_the_jensen_shannon_divergence():
  h = mixture(MU, SIGMA)
  entropies = 0.5 * np.log(2 * np.pi * np.e * SIGMA**2)
  divergence = -integral(np.exp(h) * h) - entropies.mean()
  found = float(exact(separate(MU, SIGMA)))
  assert found == pytest.approx(3 * divergence, abs=1e-8)
  assert found == pytest.approx(by_grid(MU, SIGMA), abs=1e-8)
  # The example of the specification.
  assert found == pytest.approx(1.77, abs=5e-3)
  assert float(surrogate(separate(MU, SIGMA))) == pytest.approx(10.8, abs=0.05)


def test_m2_draws_estimate_it():
  q, n = separate(MU, SIGMA), 100_000
  each = mmvm.kl_to_mixture(q, q.sample(KEY, n)[0])[:, 0]
  off = abs(float(each.mean()) - by_grid(MU, SIGMA))
  assert off < 4 * float(each.std()) / np.sqrt(n)


def test_m3_between_zero_and_the_surrogate_and_m_ln_m():
  for mu, sigma in random_cases():
    q, m = separate(mu, sigma), len(mu)
    found, bound = float(exact(q)), float(surrogate(q))
    assert found == pytest.approx(by_grid(mu, sigma), abs=1e-8)
    assert bound == pytest.approx(pairs(mu, sigma), rel=1e-10)
    assert -1e-9 <= found <= min(bound, m * np.log(m)) + 1e-9
    for alpha in (0.2, 0.7):  # with a share of N(0, I) as well
      found, bound = float(exact(q, alpha)), float(surrogate(q, alpha))
      assert found == pytest.approx(by_grid(mu, sigma, alpha), abs=1e-8)
      assert found <= bound + 1e-9


def test_m4_far_apart_it_saturates_and_the_surrogate_does_not():
  q = separate([0, 50, -50], [1, 1, 1])
  assert float(exact(q)) == pytest.approx(3 * np.log(3), abs=1e-8)
  assert float(surrogate(q)) == pytest.approx(5000, rel=1e-10)


@EITHER
def test_m5_alpha_one_is_independent_vaes(form):
  """The sum of the standard VAE's KLs; with one modality, that VAE."""
  for mu, sigma in random_cases():
    q = separate(mu, sigma)
    wanted = gaussian_kl(mu, sigma).sum()
    assert float(form(q, 1.0)) == pytest.approx(wanted, abs=1e-8)
    assert float(q.kl_divergence(*q.sample(KEY, 1))[0]) == pytest.approx(wanted)


def test_m5_the_prior_as_one_more_component():
  """alpha = 1 / (M + 1): symmetric in N(0, I) and the posteriors."""
  q = separate(MU, SIGMA)
  both = np.append(MU, 0.0), np.append(SIGMA, 1.0)
  h = mixture(*both)
  each = logs(MU, SIGMA)
  wanted = integral(np.exp(each) * (each - h)).sum()
  assert float(exact(q, 0.25)) == pytest.approx(wanted, abs=1e-8)
  every = sum(gaussian_kl(m, s, *both).sum() for m, s in zip(MU, SIGMA))  # noqa: B905
  assert float(surrogate(q, 0.25)) == pytest.approx(every / 4, rel=1e-10)


@EITHER
def test_m5_equal_posteriors_cost_nothing(form):
  assert float(form(separate([1.0] * 3, [0.7] * 3))) == pytest.approx(
    0, abs=1e-10
  )
  assert float(form(separate([3.0], [0.2]))) == pytest.approx(0, abs=1e-10)


def test_m6_the_mixture_is_the_best_common_prior():
  """sum_m KL(q_m || p) = M JS + M KL(h || p), of any Gaussian p.

  A KL does not change with an affine map of z, and one makes p N(0, 1).
  """
  h = mixture(MU, SIGMA)
  for mean, scale in ((0.0, 1.0), (0.3, 1.7), (-2.0, 0.6)):
    mapped = separate((MU - mean) / scale, SIGMA / scale)
    left = float(mapped.kl_divergence(*mapped.sample(KEY, 1))[0])
    rest = integral(np.exp(h) * (h - stats.norm.logpdf(GRID, mean, scale)))
    assert left == pytest.approx(float(exact(mapped)) + 3 * rest, abs=1e-7)
    assert left >= float(exact(mapped))


# --------------------------------------------------- further properties


@EITHER
def test_the_order_of_modalities_does_not_matter(form):
  found = float(form(separate(MU, SIGMA), 0.3))
  for order in itertools.permutations(range(3)):
    q = separate(MU[list(order)], SIGMA[list(order)])
    assert float(form(q, 0.3)) == pytest.approx(found, rel=1e-10)


@EITHER
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_missing_modalities_are_left_out(form, alpha):
  """Even if they are NaN; M is the number of observed ones."""
  for mask in all_masks(3)[1:]:
    there = mask > 0
    other = np.where(there, MU, np.nan), np.where(there, SIGMA, np.nan)
    wanted = float(form(separate(MU[there], SIGMA[there]), alpha))
    assert float(form(separate(*other, mask), alpha)) == pytest.approx(
      wanted, abs=1e-9
    )


@EITHER
@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_gradients(form, alpha):
  """Against central differences of the second opinion, and 0 if missing."""

  def value(mu, sigma, mask):
    return form(
      fusion.separate(
        mu[None, :, None], 2 * jnp.log(sigma)[None, :, None], mask[None]
      ),
      alpha,
    )

  def wanted(mu, sigma):
    if form is exact:
      return by_grid(mu, sigma, alpha)
    return alpha * gaussian_kl(mu, sigma).sum() + (1 - alpha) * pairs(mu, sigma)

  gradient = jax.jit(jax.grad(value, argnums=(0, 1)))
  for mask in all_masks(3):
    args = map(jnp.asarray, (MU, SIGMA, mask))
    of_mu, of_sigma = map(np.asarray, gradient(*args))
    seen = np.flatnonzero(mask)
    np.testing.assert_array_equal(of_mu[mask == 0], 0)
    np.testing.assert_array_equal(of_sigma[mask == 0], 0)
    for i, m in enumerate(seen):
      one = 1e-5 * np.eye(len(seen))[i]
      mu, sigma = MU[seen], SIGMA[seen]
      slope = (wanted(mu + one, sigma) - wanted(mu - one, sigma)) / 2e-5
      assert of_mu[m] == pytest.approx(slope, abs=1e-6)
      slope = (wanted(mu, sigma + one) - wanted(mu, sigma - one)) / 2e-5
      assert of_sigma[m] == pytest.approx(slope, abs=1e-6)


@EITHER
def test_latents_add_up(form):
  """KLs of independent latents add up in the surrogate; h is a mixture."""
  rng = np.random.default_rng(3)
  mu, logvar = rng.normal(size=(2, 1, 3, 2))
  mask = jnp.ones((1, 3))
  q = Separate(jnp.asarray(mu), jnp.asarray(logvar), mask)
  if form is surrogate:
    each = [
      surrogate(separate(mu[0, :, k], np.exp(logvar[0, :, k] / 2)), 0.2)
      for k in range(2)
    ]
    assert float(surrogate(q, 0.2)) == pytest.approx(float(sum(each)))
    return
  z, _ = q.sample(KEY, 50_000)
  found = np.asarray(mmvm.kl_to_mixture(q, z, 0.2))[:, 0]
  points = np.asarray(q.split(z))[:, 0]  # [s, m, l]
  each = stats.norm.logpdf(
    points[:, :, None], mu[0], np.exp(logvar[0] / 2)
  ).sum(-1)
  prior = stats.norm.logpdf(points).sum(-1)
  joined = np.concatenate([each, prior[..., None]], axis=-1)
  h = special.logsumexp(joined, axis=-1, b=[*[0.8 / 3] * 3, 0.2])
  own = np.stack([each[:, m, m] for m in range(3)], axis=1)
  np.testing.assert_allclose(found, (own - h).sum(1), rtol=1e-9)


# ---------------------------------------------------------- the objective


MASK = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 0]], float)


def output_of(c, draws=2):
  """Returns the objective of a config, its state and the model's output."""
  spec, state = built(c)
  x = spec.observations(batch(spec.modalities, MASK))
  run = jit(functools.partial(spec.vae.apply, num_samples=draws))
  return spec.objective, state.objective, run(variables(state), x, KEY)


def test_alpha_falls_from_one_over_its_steps():
  """And is then as configured; the count of steps is part of the state."""
  c = several(
    "mmvm",
    objective__mmvm__estimate="surrogate",
    objective__mmvm__alpha=0.2,
    objective__mmvm__alpha_steps=4,
  )
  objective, state, output = output_of(c)
  seen = []
  for _ in range(6):
    terms, info, state = objective(output, state)
    alpha = float(info["mmvm/alpha"])
    seen.append(alpha)
    wanted = mmvm.pairwise_kl(output.q, alpha).mean()
    assert float(terms["kl"]) == pytest.approx(float(wanted), rel=1e-6)
  np.testing.assert_allclose(seen, [1, 0.8, 0.6, 0.4, 0.2, 0.2], atol=1e-6)
  assert int(state["step"]) == 6


def test_alpha_one_is_the_objective_elbo():
  """Term by term, on the same output; the exact form up to its draws."""
  alone = several("elbo", multimodal__fusion="separate")
  objective, state, output = output_of(alone, 5_000)
  wanted, _, _ = objective(output, state)
  each = np.asarray(mmvm.kl_to_mixture(output.q, output.z, 1.0))
  error = float(np.sqrt(np.sum(each.var(0)) / len(each))) / len(MASK)
  for estimate, limit in (("surrogate", 1e-6), ("exact", 5 * error)):
    c = several(
      "mmvm", objective__mmvm__alpha=1.0, objective__mmvm__estimate=estimate
    )
    spec, of_c = built(c)
    found, _, _ = spec.objective(output, of_c.objective)
    assert float(found["recon"]) == float(wanted["recon"])
    assert float(found["kl"]) == pytest.approx(float(wanted["kl"]), abs=limit)
  assert error < 0.05 * float(wanted["kl"])


def test_exact_is_the_default_and_uses_the_draws():
  objective, state, output = output_of(several("mmvm"))
  terms, info, _ = objective(output, state)
  each = mmvm.kl_to_mixture(output.q, output.z)
  assert float(terms["kl"]) == pytest.approx(float(each.mean()), rel=1e-6)
  assert float(info["mmvm/alpha"]) == 0


def test_population_is_of_each_modality():
  """The sum of the terms of single modalities, without their correlations.

  A missing modality's posterior has the moments of the others' mixture.
  """
  rng = np.random.default_rng(4)
  mask = np.tile(MASK, (4, 1))
  q = fusion.separate(
    *map(jnp.asarray, (*rng.normal(size=(2, 16, 3, 2)), mask))
  )
  z = np.asarray(q.sample(KEY, 20_000)[0]).reshape(-1, 16, 3, 2)
  for form in population.FORMS:
    found, info = mmvm.population_of_each(q, form)
    wanted = 0.0
    mean, var = map(np.asarray, q.moments())
    for m in range(3):
      one = Gaussian(jnp.asarray(mean[:, m]), jnp.log(jnp.asarray(var[:, m])))
      wanted += float(population.population_kl(one, form)[0])
    assert float(found) == pytest.approx(wanted, rel=1e-10)
    assert info["population/mean"].shape == (6,)
  assert np.abs(z.mean(0) - mean).max() < 0.1
  assert np.abs(z.var(0) / var - 1).max() < 0.1


@pytest.mark.parametrize("name", ["mmvm", "mmvm_population"])
@pytest.mark.parametrize("estimate", mmvm.ESTIMATES)
def test_a_step_with_an_empty_row_has_finite_gradients(name, estimate):
  """And what is missing has none: neither in its encoder nor its decoder."""
  c = several(name, objective__mmvm__estimate=estimate)
  spec, state = built(c)
  mask = np.array([[0, 0, 0], [1, 1, 0], [1, 0, 0], [0, 1, 0]] * 2, float)
  rows = batch(spec.modalities, mask)
  found = jit(functools.partial(step.gradients, spec))(state, rows)
  (loss, _), (grads, _), _ = found
  assert np.isfinite(loss)
  assert all(np.isfinite(g).all() for g in leaves(grads))
  of_missing = {k: g for k, g in grads.items() if k.endswith("_c")}
  assert {"encoders_c", "decoders_c"} <= of_missing.keys()
  for part in leaves(of_missing):
    np.testing.assert_array_equal(part, 0)

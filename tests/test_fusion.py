"""Fusion: what holds for all of it, and each formula against NumPy.

In float64. H5 and H6 are facts of the specification of arXiv:2309.00380.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_same, jit
from modality_cases import all_masks, leaves
from scipy import stats

from gamix_jax.multimodal import FUSIONS, Separate, fusion
from gamix_jax.posterior import GaussianHead, MixtureHead

NAMES = ("a", "b", "c", "d")
M, D = len(NAMES), 3
SIZES = dict(zip(NAMES, (5, 2, 4, 3), strict=True))  # of the features
MASKS = all_masks(M)  # one observation for each subset; the first is empty
B = len(MASKS)
# Those of features have a mixture posterior as well.
CASES = [
  *((name, "gaussian") for name in FUSIONS),
  *((n, "mixture") for n, f in FUSIONS.items() if f.of_features),
]
EVERY = pytest.mark.parametrize(
  ("name", "kind"), CASES, ids=[f"{n}-{k}" for n, k in CASES]
)


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def module(name, kind="gaussian", names=NAMES):
  """Returns a fusion with heads of random initial variance."""
  types = dict(dtype=jnp.float64, param_dtype=jnp.float64)
  head = GaussianHead(D, initial_logvar=-1.0, **types)
  if kind == "mixture":
    head = MixtureHead(D, components=2, initial_logvar=-1.0, **types)
  return FUSIONS[name](names, head, width=8, layers=2, heads=2)


def features(seed=0):
  rng = np.random.default_rng(seed)
  return {k: jnp.asarray(rng.normal(size=(B, n))) for k, n in SIZES.items()}


def params_of(one, of):
  """Returns parameters for it, none of which is 0."""
  start = one.init(jax.random.key(0), of, jnp.asarray(MASKS))
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda v: v + 0.3 * rng.normal(size=v.shape), start)


def points(d, seed=5, n=7):
  """Returns points [n, 1, d] at which densities are compared."""
  z = np.random.default_rng(seed).normal(size=(n, 1, d))
  return jnp.broadcast_to(jnp.asarray(z), (n, B, d))


def size(q):
  return M * D if isinstance(q, Separate) else D


def described(q, z):
  """Returns what does not depend on the order of a mixture's components."""
  weights, mu, var = q.components()
  mean = jnp.sum(weights[..., None] * mu, axis=1)
  second = jnp.sum(weights[..., None] * (var + mu**2), axis=1)
  return jnp.concatenate([q.log_prob(z).T, q.mean(), mean, second], axis=1)


# ---------------------------------------------------------- of all


@EVERY
def test_the_order_of_modalities_does_not_matter(name, kind):
  """H5. Separate latents are permuted with their modalities."""
  order = [2, 0, 3, 1]
  one, x = module(name, kind), features()
  params = params_of(one, x)
  q = one.apply(params, x, jnp.asarray(MASKS))
  other = module(name, kind, tuple(NAMES[i] for i in order))
  p = other.apply(params, x, jnp.asarray(MASKS[:, order]))
  if name == "separate":
    for ours, theirs in zip(leaves(q), leaves(p), strict=True):
      np.testing.assert_array_equal(theirs, ours[:, order])
    return
  z = points(D)
  np.testing.assert_allclose(described(p, z), described(q, z), atol=1e-10)
  # And the posteriors differ between observations, so this can fail.
  assert np.ptp(np.asarray(described(q, z)), axis=0).min() > 1e-3


@EVERY
def test_what_a_masked_modality_contains_changes_nothing(name, kind):
  """H5: to the bit, and NaN too."""
  one, x = module(name, kind), features()
  params, mask = params_of(one, x), jnp.asarray(MASKS)
  run = jit(one.apply)
  q = run(params, x, mask)
  for value in (1e3, np.nan):
    other = {
      k: jnp.where(mask[:, i, None] > 0, v, value)
      for i, (k, v) in enumerate(x.items())
    }
    assert_same(run(params, other, mask), q)
  assert all(np.isfinite(v).all() for v in leaves(q))


@EVERY
def test_nothing_observed_is_the_prior(name, kind):
  one, x = module(name, kind), features()
  q = one.apply(params_of(one, x), x, jnp.asarray(MASKS))
  assert not MASKS[0].any()
  for part in q.components()[1:]:
    assert np.ptp(part[0]) == 0
  weights, mu, var = (v[0] for v in q.components())
  assert weights.sum() == pytest.approx(1)
  np.testing.assert_array_equal(mu, 0)
  np.testing.assert_array_equal(var, 1)
  np.testing.assert_array_equal(q.mean()[0], 0)
  if name == "separate":  # its density is of observed modalities only
    return
  z = points(D)
  wanted = stats.norm.logpdf(z[:, 0]).sum(-1)
  np.testing.assert_allclose(q.log_prob(z)[:, 0], wanted, rtol=1e-12)


@EVERY
def test_gradients_are_finite(name, kind):
  """For every subset, the empty one too; 0 for what is masked."""
  one, x = module(name, kind), features()
  params, mask = params_of(one, x), jnp.asarray(MASKS)

  @jit
  def gradient(params, x):
    def loss(params, x):
      q = one.apply(params, x, mask)
      z, w = q.sample(jax.random.key(1), 2)
      kl = q.kl_divergence(z, w)
      return jnp.sum(kl) + jnp.sum(w * q.log_prob(z)) + jnp.sum(q.mean() ** 2)

    return jax.grad(loss, argnums=(0, 1))(params, x)

  of_params, of_x = gradient(params, x)
  for path, g in jax.tree_util.tree_leaves_with_path(of_params):
    assert np.isfinite(g).all(), path
    assert np.any(g), path  # each layer is used
  for i, k in enumerate(NAMES):
    assert np.isfinite(of_x[k]).all()
    np.testing.assert_array_equal(of_x[k][MASKS[:, i] == 0], 0)
    assert np.any(of_x[k][MASKS[:, i] == 1], axis=-1).all()


# ---------------------------------------------------------- formulas


def experts(seed=0):
  """Returns mu and logvar [b, m, d] of the single modalities' Gaussians."""
  rng = np.random.default_rng(seed)
  return rng.normal(size=(B, M, D)), rng.normal(-0.5, 0.7, (B, M, D))


def of(formula, seed=0):
  mu, logvar = experts(seed)
  return formula(*map(jnp.asarray, (mu, logvar, MASKS)))


def rows():
  """Yields index, mu [n, d] and var [n, d] of the observed modalities."""
  mu, logvar = experts()
  for i, mask in enumerate(MASKS):
    if mask.any():
      there = mask > 0
      yield i, mu[i, there], np.exp(logvar[i, there])


def test_average():
  q = of(fusion.average)
  for i, mu, var in rows():
    np.testing.assert_allclose(q.mu[i], mu.mean(0), rtol=1e-12)
    np.testing.assert_allclose(np.exp(q.logvar[i]), var.mean(0), rtol=1e-12)


GRID = np.linspace(-30, 30, 60_001)


def grid_product(mu, var, prior):
  """Mean and variance of the normalised product of Gaussians in one latent."""
  logs = stats.norm.logpdf(GRID[:, None], mu, np.sqrt(var)).sum(1)
  logs += prior * stats.norm.logpdf(GRID)
  density = np.exp(logs - logs.max())
  density /= density.sum()
  mean = density @ GRID
  return mean, density @ (GRID - mean) ** 2


@pytest.mark.parametrize("prior", [False, True])
def test_product_is_the_normalised_product_of_densities(prior):
  q = of(lambda *args: fusion.product(*args, prior=prior))
  for i, mu, var in rows():
    for k in range(D):
      mean, spread = grid_product(mu[:, k], var[:, k], prior)
      assert q.mu[i, k] == pytest.approx(mean, abs=1e-9)
      assert np.exp(q.logvar[i, k]) == pytest.approx(spread, rel=1e-9)


def test_h6_product_is_sum_pooling_of_natural_parameters():
  """And the released code's formula is another one."""
  q = of(fusion.product)
  released = of(fusion.product_as_released)
  off = []
  for i, mu, var in rows():
    first, second = (mu / var).sum(0), (1 / var).sum(0)
    np.testing.assert_allclose(q.mu[i], first / second, rtol=1e-12)
    np.testing.assert_allclose(np.exp(q.logvar[i]), 1 / second, rtol=1e-12)
    as_released = (mu * var).sum(0) / (1 + second)
    np.testing.assert_allclose(released.mu[i], as_released, rtol=1e-12)
    variance = np.exp(released.logvar[i])
    np.testing.assert_allclose(variance, 1 / (1 + second), rtol=1e-12)
    off.append(np.abs(as_released - first / (1 + second)).max())
  assert min(off) > 1e-2


def assert_is_mixture(q, i, mu, var):
  """Asserts that row i of a mixture has these components, equally likely."""
  weights, found_mu, found_var = (np.asarray(v[i]) for v in q.components())
  there = weights > 0
  assert there.sum() == len(mu)
  np.testing.assert_allclose(weights[there], 1 / len(mu), rtol=1e-12)
  ours = np.concatenate([found_mu, found_var], axis=-1)[there]
  theirs = np.concatenate([mu, var], axis=-1)
  ours, theirs = (v[np.lexsort(v.T[::-1])] for v in (ours, theirs))
  np.testing.assert_allclose(ours, theirs, rtol=1e-10)


def test_mixture_of_the_observed_experts():
  q = of(fusion.mixture)
  for i, mu, var in rows():
    assert_is_mixture(q, i, mu, var)


def test_mixture_of_products_of_all_subsets():
  q = of(fusion.mixture_of_products)
  assert q.mu.shape == (B, 2**M - 1, D)
  for i, mu, var in rows():
    found = []
    for n in range(1, len(mu) + 1):
      for chosen in map(list, itertools.combinations(range(len(mu)), n)):
        precision = (1 / var[chosen]).sum(0)
        mean = (mu[chosen] / var[chosen]).sum(0) / precision
        found.append((mean, 1 / precision))
    assert_is_mixture(q, i, *map(np.stack, zip(*found, strict=True)))


def test_separate_keeps_what_each_modality_says():
  mu, logvar = experts()
  q = of(fusion.separate)
  there = MASKS > 0
  np.testing.assert_array_equal(q.mu[there], mu[there])
  np.testing.assert_array_equal(q.logvar[there], logvar[there])
  np.testing.assert_array_equal(q.mask, MASKS)


def test_one_modality_is_its_own_posterior():
  """All formulas but the product with the prior: then it is a standard VAE."""
  mu, logvar = experts()
  alone = np.flatnonzero(MASKS.sum(1) == 1)
  which = MASKS[alone].argmax(1)
  for formula in (
    fusion.average,
    fusion.product,
    fusion.mixture,
    fusion.mixture_of_products,
  ):
    q = of(formula)
    weights, found, var = (np.asarray(v)[alone] for v in q.components())
    mean = (weights[..., None] * found).sum(1)
    np.testing.assert_allclose(mean, mu[alone, which], rtol=1e-10)
    var = (weights[..., None] * var).sum(1)
    wanted = np.exp(logvar[alone, which])
    np.testing.assert_allclose(var, wanted, rtol=1e-10)


def test_attention_uses_relations_between_modalities():
  """Sum pooling does not: it is additive before its outer layers."""
  x = features()
  for name, additive in (("sum_pooling", True), ("attention", False)):
    one = module(name)
    params = params_of(one, x)

    def pooled(mask, one=one, params=params):
      bound = one.bind(params)
      return bound.pooled(bound.embed(x), jnp.broadcast_to(mask, (B, M)))

    both = pooled(jnp.array([1.0, 1.0, 0.0, 0.0]))
    single = [pooled(jnp.eye(M)[i]) for i in range(2)]
    off = float(np.max(np.abs(both - sum(single))))
    assert (off < 1e-10) == additive, (name, off)

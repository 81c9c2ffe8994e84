"""The objectives of random subsets, on models whose likelihood is known.

In float64. H1 to H4 and H7 are facts of the specification of arXiv:2309.00380.

The linear Gaussian model has loadings with orthogonal columns, so that all its
posteriors are diagonal: x_s = W_s z + noise, z ~ N(0, I). Expectations over
diagonal Gaussians of quadratic functions are exact with few quadrature nodes,
which are passed as weighted draws.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import jit
from modality_cases import all_masks, batch, built, nodes, several, variables
from scipy import stats

from gamix_jax import step
from gamix_jax.likelihood import LIKELIHOODS
from gamix_jax.modality import MASK, Modality
from gamix_jax.multimodal import SUBSETS, MultimodalOutput, RandomComponent
from gamix_jax.multimodal import fusion as fusions
from gamix_jax.objectives import TC, Masked, MixtureBound
from gamix_jax.objectives import subsets as objectives
from gamix_jax.posterior import Gaussian, Mixture

D, NOISE = 2, 0.7  # latents, variance of the noise
SIZES = (4, 3, 5)
M = len(SIZES)
ALL = np.ones(M)
SUBSETS_OF_ALL = all_masks(M)
# A likelihood's weight is n / (2 variance).
MODALITIES = {
  f"m{i}": Modality((n,), LIKELIHOODS["l2"], np.float32, n / (2 * NOISE))
  for i, n in enumerate(SIZES)
}
EPS, NODE_WEIGHTS = nodes(5, D)


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def _model(seed=0):
  rng = np.random.default_rng(seed)
  loadings = [
    np.linalg.qr(rng.normal(size=(n, D)))[0] * rng.uniform(0.5, 2, D)
    for n in SIZES
  ]
  z = rng.normal(size=D)
  x = [w @ z + np.sqrt(NOISE) * rng.normal(size=len(w)) for w in loadings]
  return loadings, x


W, X = _model()


def posterior(mask):
  """p(z | x_S): mean and variance, [d] each."""
  precision, first = np.ones(D), np.zeros(D)
  for s in np.flatnonzero(mask):
    precision += (W[s] ** 2).sum(0) / NOISE
    first += W[s].T @ X[s] / NOISE
  return first / precision, 1 / precision


def log_p(mask):
  """ln p(x_S), by the density of the Gaussian x."""
  seen = np.flatnonzero(mask)
  w = np.concatenate([W[s] for s in seen])
  x = np.concatenate([X[s] for s in seen])
  cov = w @ w.T + NOISE * np.eye(len(x))
  return stats.multivariate_normal(np.zeros(len(x)), cov).logpdf(x)


def gaussian(mean, var):
  return Gaussian(jnp.asarray(mean)[None], jnp.log(jnp.asarray(var))[None])


def decoded(z):
  return {
    f"m{i}": jnp.einsum("nd,sbd->sbn", jnp.asarray(w), z)
    for i, w in enumerate(W)
  }


def drawn(q):
  """Returns weighted draws of a Gaussian: quadrature nodes."""
  z, _ = q.sample(jax.random.key(0), len(EPS), jnp.asarray(EPS)[:, None])
  return z, jnp.asarray(NODE_WEIGHTS)[:, None]


def output(q, q_subset, subset, mask=ALL, draw=drawn):
  """Returns what the model does, with these posteriors and exact decoders."""
  (z, w), (z_s, w_s) = draw(q), draw(q_subset)
  x = {f"m{i}": jnp.asarray(v)[None] for i, v in enumerate(X)}
  x[MASK], subset = jnp.asarray(mask)[None], jnp.asarray(subset)[None]
  whole = (x, q, z, w, decoded(z))
  return MultimodalOutput(
    *whole,
    subset=subset,
    q_subset=q_subset,
    z_subset=z_s,
    w_subset=w_s,
    x_hat_subset=decoded(z_s),
  )


def constant(mask):
  """-ln of the densities' normalisers, which `recon` leaves out."""
  return -sum(
    float(m.likelihood.log_normalizer(m.size, m.weight))
    for m, seen in zip(MODALITIES.values(), mask, strict=True)
    if seen
  )


def bound(objective, out):
  """The objective as a bound of ln p(x): minus its terms, all constants."""
  terms, _, _ = objective(out, {})
  return float(-sum(terms.values())) + constant(out.x[MASK][0])


def gaussian_kl(m0, v0, m1=0.0, v1=1.0):
  return 0.5 * np.sum(np.log(v1 / v0) + (v0 + (m0 - m1) ** 2) / v1 - 1)


def elbo(mean, var, mask=ALL):
  """The standard ELBO in closed form."""
  value = -gaussian_kl(mean, var)
  for s in np.flatnonzero(mask):
    square = ((X[s] - W[s] @ mean) ** 2).sum() + ((W[s] ** 2) @ var).sum()
    value -= 0.5 * (SIZES[s] * np.log(2 * np.pi * NOISE) + square / NOISE)
  return value


masked, mixture_bound = Masked(MODALITIES), MixtureBound(MODALITIES)
SUBSET = pytest.mark.parametrize(
  "subset", SUBSETS_OF_ALL, ids=lambda s: "".join(str(int(v)) for v in s)
)


# ------------------------------------------------------------- H1 to H4


def one_draw(q):
  """Returns a single random draw, with the weight 1."""
  return q.sample(jax.random.key(7), 1)


@SUBSET
def test_h1_with_exact_posteriors_masked_is_ln_p(subset):
  """For every S, and for every single draw: the estimate has no variance."""
  q, q_subset = gaussian(*posterior(ALL)), gaussian(*posterior(subset))
  for draw in (drawn, one_draw):
    out = output(q, q_subset, subset, draw=draw)
    assert bound(masked, out) == pytest.approx(log_p(ALL), abs=1e-9)


def test_h1_with_a_modality_missing():
  """Then it is ln p of the observed ones."""
  mask = np.array([1.0, 0.0, 1.0])
  for subset in SUBSETS_OF_ALL[SUBSETS_OF_ALL[:, 1] == 0]:
    q, q_subset = gaussian(*posterior(mask)), gaussian(*posterior(subset))
    out = output(q, q_subset, subset, mask)
    assert bound(masked, out) == pytest.approx(log_p(mask), abs=1e-9)


def some_posterior():
  """Returns mean and variance of a q that is not the exact posterior."""
  mean, var = posterior(ALL)
  return mean + 0.3, 1.4 * var


def test_h2_all_or_nothing_is_the_standard_elbo():
  """S = all, also for the mixture bound; S = {} with q(z | {}) = p(z)."""
  q, wanted = gaussian(*some_posterior()), elbo(*some_posterior())
  whole = output(q, q, ALL)
  assert bound(masked, whole) == pytest.approx(wanted, abs=1e-9)
  assert bound(mixture_bound, whole) == pytest.approx(wanted, abs=1e-9)
  nothing = output(q, gaussian(np.zeros(D), np.ones(D)), 0 * ALL)
  assert bound(masked, nothing) == pytest.approx(wanted, abs=1e-9)
  # And that ELBO is a bound.
  assert wanted < log_p(ALL) - 0.1


def test_h2_term_by_term_on_the_same_draws():
  """With S = all the three differ only in which terms they have."""
  q = gaussian(*some_posterior())
  for draw in (drawn, one_draw):
    out = output(q, q, ALL, draw=draw)
    of_masked, of_mixture, of_tc = (
      o(out, {})[0] for o in (masked, mixture_bound, TC(MODALITIES))
    )
    assert of_masked.keys() == {"recon", "kl", "subset_kl"}
    assert float(of_masked["subset_kl"]) == float(of_tc["subset_kl"]) == 0
    assert float(of_masked["kl"]) == float(of_mixture["kl"])
    for terms in (of_masked, of_tc):
      assert float(terms["recon"]) == pytest.approx(float(of_mixture["recon"]))


@SUBSET
def test_h3_the_gap_of_the_mixture_bound(subset):
  """KL(p(z | x_S) || p(z | x)), never 0 for a proper subset."""
  q, q_subset = gaussian(*posterior(ALL)), gaussian(*posterior(subset))
  gap = log_p(ALL) - bound(mixture_bound, output(q, q_subset, subset))
  wanted = gaussian_kl(*posterior(subset), *posterior(ALL))
  assert gap == pytest.approx(wanted, abs=1e-9)
  assert (gap > 1e-2) == (not subset.all())


def test_h4_masked_is_not_a_bound():
  """By delta^2 / 4 for unit variances; and of the linear model."""
  delta = 2.0
  far, half = (
    gaussian([delta] * D, [1.0] * D),
    gaussian([delta / 2] * D, [1] * D),
  )
  out = output(far, half, np.array([1.0, 0.0, 0.0]))
  terms, _, _ = masked(out, {})
  one_kl = objectives.kl_to_prior(far, *drawn(far))
  excess = one_kl - terms["kl"] - terms["subset_kl"]
  assert float(excess) == pytest.approx(D * delta**2 / 4, abs=1e-9)
  best, subset = -np.inf, np.array([1.0, 0.0, 0.0])
  (m0, v0), (m1, v1) = posterior(subset), posterior(ALL)
  for a in np.linspace(0, 1, 21):  # between the posteriors of S and of all
    precision = (1 - a) / v0 + a / v1
    mean = ((1 - a) * m0 / v0 + a * m1 / v1) / precision
    out = output(gaussian(m1, v1), gaussian(mean, 1 / precision), subset)
    best = max(best, bound(masked, out) - log_p(ALL))
  assert best > 1e-3


def test_tc_has_the_terms_of_its_bound():
  q, subset = some_posterior(), np.array([0.0, 1.0, 1.0])
  out = output(gaussian(*q), gaussian(*posterior(subset)), subset)
  terms, _, _ = TC(MODALITIES)(out, {})
  assert terms.keys() == {"recon", "subset_kl"}
  wanted = gaussian_kl(*q, *posterior(subset))
  assert float(terms["subset_kl"]) == pytest.approx(wanted, abs=1e-9)
  recon = elbo(*q) + gaussian_kl(*q)
  assert constant(ALL) - float(terms["recon"]) == pytest.approx(recon, abs=1e-9)


def test_the_kl_can_be_counted_once_for_each_modality():
  """As the code of arXiv:2403.05300 does; of the observed ones."""
  q = gaussian(*some_posterior())
  each = MixtureBound(MODALITIES, kl_count="per_modality")
  for mask in SUBSETS_OF_ALL[1:]:
    out = output(q, q, mask, mask)
    once, often = (o(out, {})[0] for o in (mixture_bound, each))
    assert float(often["kl"]) == pytest.approx(mask.sum() * float(once["kl"]))
    assert float(once["kl"]) == pytest.approx(gaussian_kl(*some_posterior()))
    assert float(often["recon"]) == float(once["recon"])


# ------------------------------------------------------------ gradients


@pytest.mark.parametrize("objective", [masked, mixture_bound])
def test_the_exact_posterior_has_no_gradient(objective):
  """Of a single draw, since q is a constant in its own density.

  For `masked` that is q(z | x_O): q(z | x_S) learns from draws of the former.
  """
  subset = np.array([1.0, 0.0, 0.0]) if objective is masked else ALL

  def loss(mean, logvar):
    q = Gaussian(mean, logvar)
    other = gaussian(*posterior(subset)) if objective is masked else q
    out = output(q, other, subset, draw=one_draw)
    return sum(objective(out, {})[0].values())

  gradient = jax.grad(loss, argnums=(0, 1))
  exact = gaussian(*posterior(ALL))
  for g in gradient(exact.mu, exact.logvar):
    np.testing.assert_allclose(g, 0, atol=1e-9)
  of_mean, _ = gradient(exact.mu + 0.3, exact.logvar)
  assert np.abs(of_mean).min() > 0.1


def test_mean_gradients_are_those_of_the_closed_forms():
  """Of both KLs, with respect to both posteriors; Gaussian, exact."""
  a, b = some_posterior(), posterior(np.array([1.0, 0.0, 0.0]))
  parts = [
    (jnp.asarray(m)[None], jnp.log(jnp.asarray(v))[None]) for m, v in (a, b)
  ]

  def estimated(one, two):
    q, other = Gaussian(*one), Gaussian(*two)
    out = output(q, other, ALL)
    return objectives.kl_to_prior(q, *drawn(q)), objectives.kl_to_subset(out)

  def closed(one, two):
    (m0, l0), (m1, l1) = one, two
    to_prior = 0.5 * jnp.sum(jnp.exp(l0) + m0**2 - 1 - l0)
    each = l1 - l0 + (jnp.exp(l0) + (m0 - m1) ** 2) / jnp.exp(l1) - 1
    return to_prior, 0.5 * jnp.sum(each)

  for ours, theirs in zip(
    jax.jacrev(estimated, (0, 1))(*parts),
    jax.jacrev(closed, (0, 1))(*parts),
    strict=True,
  ):
    for x, y in zip(
      jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True
    ):
      np.testing.assert_allclose(x, y, atol=1e-9)


def mixtures():
  """Returns a mixture with learned weights, and one with constant ones."""
  rng = np.random.default_rng(2)
  parts = [jnp.asarray(rng.normal(size=(1, 3, *n))) for n in ((), (D,), (D,))]
  parts[2] = parts[2] - 1
  return Mixture(*parts), RandomComponent(0 * parts[0], *parts[1:])


@pytest.mark.parametrize("i", [0, 1], ids=["Mixture", "RandomComponent"])
def test_sticking_the_landing_keeps_the_mean_gradient(i):
  """Of mixtures, by Monte Carlo: with and without q's own parameters."""
  q, n = mixtures()[i], 40_000

  def estimate(q, key, fixed):
    z, w = q.sample(key, 1)
    if fixed:
      return objectives.kl_to_prior(q, z, w)
    return jnp.mean(jnp.sum(w * (q.log_prob(z) - q.log_prior(z)), axis=0))

  found = []
  for fixed in (True, False):
    each = jit(
      jax.vmap(jax.grad(lambda q, k, f=fixed: estimate(q, k, f)), (None, 0))
    )(q, jax.random.split(jax.random.key(int(fixed)), n))
    found.append(
      [(np.mean(v, 0), np.var(v, 0) / n) for v in jax.tree.leaves(each)]
    )
  moved = 0.0
  for k, ((a, var_a), (b, var_b)) in enumerate(zip(*found, strict=True)):
    if k == 0 and i == 1:  # its weights are constants
      continue
    off = np.abs(a - b) / np.sqrt(var_a + var_b + 1e-30)
    assert off.max() < 4.5, (k, off)
    moved = max(moved, np.abs(b).max() / np.sqrt(var_b.max()))
  assert moved > 50  # the gradients are far from 0


# ------------------------------------------------------ random subsets


N = 20_000


def sizes(law, mask, seed=0):
  """Returns the subsets of n observations with this mask, and their sizes."""
  rows = jnp.broadcast_to(jnp.asarray(mask, jnp.float32), (N, len(mask)))
  found = np.asarray(SUBSETS[law](jax.random.key(seed), rows))
  assert found.shape == rows.shape
  assert set(np.unique(found)) <= {0.0, 1.0}
  assert not found[:, np.asarray(mask) == 0].any()
  return found, found.sum(1).astype(int)


@pytest.mark.parametrize("mask", [[1, 1, 1, 1], [1, 0, 1, 1], [0, 1, 0, 0]])
@pytest.mark.parametrize("law", ["uniform_size", "bernoulli"])
def test_h7_the_law_of_sizes(law, mask):
  """Uniform on 0, ..., n, or binomial, n of the observed modalities."""
  found, size = sizes(law, mask)
  n = sum(mask)
  wanted = np.full(n + 1, 1 / (n + 1))
  if law == "bernoulli":
    wanted = stats.binom(n, 0.5).pmf(np.arange(n + 1))
  counts = np.bincount(size, minlength=n + 1)
  assert stats.chisquare(counts, N * wanted).pvalue > 1e-3
  # Subsets of the same size are equally likely.
  for k in range(1, n):
    of_size = found[size == k] @ 2 ** np.arange(len(mask))
    kinds, counts = np.unique(of_size, return_counts=True)
    assert len(kinds) == len(list(itertools.combinations(range(n), k)))
    assert stats.chisquare(counts).pvalue > 1e-3


def test_h7_rows_are_independent():
  found, size = sizes("uniform_size", [1, 1, 1, 1])
  assert abs(np.corrcoef(size[:-1], size[1:])[0, 1]) < 4 / np.sqrt(N)
  again, _ = sizes("uniform_size", [1, 1, 1, 1])
  np.testing.assert_array_equal(found, again)
  other, _ = sizes("uniform_size", [1, 1, 1, 1], seed=1)
  assert np.any(other != found)


def test_all_is_what_is_observed():
  found, _ = sizes("all", [1, 0, 1])
  np.testing.assert_array_equal(found, np.tile([1.0, 0.0, 1.0], (N, 1)))


# ---------------------------------------------------- the model's output


MASKS = all_masks(3)[1:]


def output_of(c, draws=1, seed=0):
  spec, state = built(c)
  x = spec.observations(batch(spec.modalities, MASKS))
  run = jit(functools.partial(spec.vae.apply, num_samples=draws))
  return spec, run(variables(state), x, jax.random.key(seed))


@pytest.mark.parametrize(
  "fusion", [f for f in fusions.FUSIONS if f != "separate"]
)
def test_all_is_the_elbo_of_the_model(fusion):
  """S = all: the same posterior, and the ELBO up to the draws."""
  c = several(
    "mixture_bound", multimodal__fusion=fusion, multimodal__subsets="all"
  )
  spec, out = output_of(c, 4_000)
  np.testing.assert_array_equal(out.subset, MASKS)
  for ours, theirs in zip(
    jax.tree.leaves(out.q), jax.tree.leaves(out.q_subset), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)
  assert np.any(out.z_subset != out.z)  # other draws
  terms, info, _ = spec.objective(out, {})
  assert float(info["subset/size"]) == pytest.approx(MASKS.sum(1).mean())
  plain, _ = built(several("elbo", multimodal__fusion=fusion))
  wanted, _, _ = plain.objective(out, {})
  errors = np.asarray(spec.objective.errors(out))
  ratios = np.asarray(out.q.log_prob(out.z) - out.q.log_prior(out.z))
  for k, each in (("recon", errors), ("kl", ratios)):
    error = np.sqrt(np.sum(np.var(each, axis=0)) / len(each)) / len(MASKS)
    off = abs(float(terms[k]) - float(wanted[k]))
    assert off < 5 * np.sqrt(2) * error, (k, off, error)
    assert error < 0.05 * abs(float(wanted[k]))


def test_a_subset_is_encoded_as_if_the_rest_were_missing():
  """And the draws of S and of all come from different noise."""
  c = several("masked", multimodal__fusion="attention")
  (spec, out), (_, state) = output_of(c, seed=3), built(c)
  x = {**out.x, MASK: out.subset}
  q = spec.vae.apply(variables(state), x, method="encode")
  assert np.any(out.subset != out.x[MASK])
  np.testing.assert_allclose(q.mu, out.q_subset.mu, atol=1e-5)
  empty = np.flatnonzero(~np.any(out.subset, axis=1))
  assert len(empty)
  np.testing.assert_array_equal(out.q_subset.mu[empty], 0)
  eps, of_subset = (
    (z[0] - q.mu) / jnp.exp(q.logvar / 2)
    for z, q in ((out.z, out.q), (out.z_subset, out.q_subset))
  )
  assert np.abs(np.asarray(eps - of_subset)).min() > 1e-6


@pytest.mark.parametrize("objective", ["masked", "mixture_bound", "tc"])
@pytest.mark.parametrize("private", [0, 2])
def test_gradients_are_finite(objective, private):
  """With missing modalities and empty subsets, and reach every parameter."""
  c = several(
    objective, multimodal__fusion="sum_pooling", multimodal__private=private
  )
  spec, state = built(c)
  rows = batch(spec.modalities, all_masks(3))

  def gradients(state, rows):
    return step.gradients(spec, state, rows)

  (loss, _), (grads, _), _ = jit(gradients)(state, rows)
  assert np.isfinite(loss)
  for path, g in jax.tree_util.tree_leaves_with_path(grads):
    assert np.isfinite(g).all(), path
    assert np.any(g), path

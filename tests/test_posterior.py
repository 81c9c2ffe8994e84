"""Posterior families against scipy, quadrature and Monte Carlo."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from conftest import jit, modalities, output

from gamix_jax import objectives, posterior, train_metrics
from gamix_jax.errors import UserError
from gamix_jax.objectives import population
from gamix_jax.posterior import (
  Delta,
  Epanechnikov,
  Gaussian,
  Mixture,
  Poisson,
  Posterior,
  base,
)

KEY = jax.random.key(3)


def gaussian(b=5, d=3, seed=0):
  rng = np.random.default_rng(seed)
  return Gaussian(*jnp.asarray(rng.normal(size=(2, b, d)), jnp.float32))


def mixture(b=5, k=3, d=3, seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda *s: jnp.asarray(rng.normal(size=s), jnp.float32)  # noqa: E731
  return Mixture(draw(b, k), 1.5 * draw(b, k, d), 0.7 * draw(b, k, d) - 1)


FAMILIES = {
  "gaussian": gaussian(),
  "mixture1": mixture(k=1),
  "mixture3": mixture(),
}


def noise(q, n, seed=0):
  """NumPy noise, which needs no compilation."""
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=q.noise_shape(n)), jnp.float32)


@jit
def outputs_of(q, eps):
  """Returns everything a family computes on its samples; eps [n, ...]."""
  z, w = q.sample(KEY, eps.shape[0], eps)
  return {
    "z": z,
    "w": w,
    "log_prob": q.log_prob(z),
    "log_prior": posterior.log_prior(z),
    "one": q.log_prob(z[0]),
    "more": q.log_prob(z[None, :2]),
    "far": q.log_prob(jnp.full(z.shape[1:], 60.0)),
    "mean": q.mean(),
    "centres": q.components(),
    "kl": q.kl_divergence(z, w),
  }


N = 20_000


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
  q = FAMILIES[request.param]
  return q, jax.tree.map(np.asarray, outputs_of(q, noise(q, N)))


def scipy_log_prob(q, z):
  """Returns [s, b] for z [s, b, d], in float64, component by component."""
  weights, mu, var = (np.asarray(v, np.float64) for v in q.components())
  z = np.asarray(z, np.float64)[:, :, None]
  each = scipy.stats.norm.logpdf(z, mu[None], np.sqrt(var)[None]).sum(-1)
  return scipy.special.logsumexp(each + np.log(weights)[None], axis=-1)


def test_protocol_and_log_prob(family):
  q, of = family
  assert isinstance(q, Posterior)
  b, d = 5, 3
  z, w, (weights, mu, _) = of["z"], of["w"], of["centres"]
  s = N * weights.shape[1]
  assert z.shape == (s, b, d)
  assert w.shape == (s, b)
  assert np.prod(q.noise_shape(N)) == s * b * d
  np.testing.assert_allclose(w.sum(0, dtype=np.float64), 1, rtol=1e-5)
  np.testing.assert_allclose(
    of["log_prob"][:50], scipy_log_prob(q, z[:50]), rtol=5e-5, atol=5e-5
  )
  # one z per image, and more leading axes
  np.testing.assert_allclose(of["one"], of["log_prob"][0], rtol=1e-5)
  assert of["more"].shape == (1, 2, b)
  np.testing.assert_allclose(of["more"][0], of["log_prob"][:2], rtol=1e-5)
  # far out, where a sum of densities would be ln 0
  np.testing.assert_allclose(
    of["far"], scipy_log_prob(q, np.full((1, b, d), 60.0))[0], rtol=1e-4
  )
  assert np.all(np.isfinite(of["far"]))
  np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
  np.testing.assert_allclose(
    of["mean"], np.einsum("bk,bkd->bd", weights, mu), rtol=1e-5, atol=1e-6
  )


def test_draws_have_the_moments_of_the_density(family):
  _, of = family
  z, w = of["z"].astype(np.float64), of["w"][..., None].astype(np.float64)
  weights, mu, var = (v.astype(np.float64) for v in of["centres"])
  mean = np.einsum("bk,bkd->bd", weights, mu)
  second = np.einsum("bk,bkd->bd", weights, var + mu**2)
  error = 5 * np.sqrt(second.max() / N)
  np.testing.assert_allclose((w * z).sum(0), mean, atol=error)
  np.testing.assert_allclose((w * z**2).sum(0), second, rtol=0.08, atol=0.05)


def test_kl_against_monte_carlo(family):
  """With scipy's density of the samples; a mixture's kl gets other samples."""
  q, of = family
  ratio = (of["log_prob"] - of["log_prior"]).astype(np.float64)
  estimate = np.sum(of["w"] * ratio, axis=0)
  error = 5 * ratio.std(0) / np.sqrt(N)
  other = outputs_of(q, noise(q, N, 1))["kl"]
  assert np.all(np.abs(estimate - other) < 1.5 * error)


def test_draws_of_a_key():
  q = FAMILIES["mixture3"]
  z, w = q.sample(KEY, 1)
  z1, _ = q.sample(KEY, 1)
  z2, _ = q.sample(jax.random.key(4), 1)
  assert z.shape == (3, 5, 3)
  np.testing.assert_allclose(np.sum(w, 0), 1, rtol=1e-6)
  np.testing.assert_array_equal(z, z1)
  assert np.all(z != z2)


def test_draws_from_given_noise():
  q = mixture(b=2, k=2, d=3)
  eps = jnp.asarray(np.random.default_rng(1).normal(size=q.noise_shape(2)))
  z, w = q.sample(KEY, 2, eps)
  sigma = np.exp(np.asarray(q.logvar) / 2)
  for n in range(2):
    for k in range(2):
      np.testing.assert_allclose(
        z[2 * n + k], q.mu[:, k] + sigma[:, k] * eps[n, :, k], rtol=1e-5
      )
      np.testing.assert_allclose(
        w[2 * n + k], scipy.special.softmax(q.logits, -1)[:, k] / 2, rtol=1e-6
      )


def test_one_component_is_the_gaussian_to_the_bit():
  g = gaussian()
  m = Mixture(jnp.full((5, 1), 0.3), g.mu[:, None], g.logvar[:, None])
  z, w = g.sample(KEY, 3)
  z1, w1 = m.sample(KEY, 3)
  np.testing.assert_array_equal(z, z1)
  np.testing.assert_array_equal(w, w1)
  eps = noise(g, 2)
  of_gaussian, of_mixture = outputs_of(g, eps), outputs_of(m, eps[:, :, None])
  for name, values in of_gaussian.items():
    for a, b in zip(
      jax.tree.leaves(values), jax.tree.leaves(of_mixture[name]), strict=True
    ):
      np.testing.assert_array_equal(a, b, name)


# ---------------------------------------------- the bimodal toy, in 1-D
# p(z) = N(0, 1), p(x | z) = N(z^2, 1/4), x = 1.2; spec 5.6, facts G1 to G6.

PI = np.array([0.5, 0.3, 0.2])
MU = np.array([-1.1, 0.9, 0.1])
SIGMA = np.array([0.35, 0.4, 0.9])
GRID = np.linspace(-9, 9, 40001)
DZ = GRID[1] - GRID[0]


def toy(pi=PI, mu=MU, sigma=SIGMA):
  as_array = lambda v: jnp.asarray(v, jnp.float32)  # noqa: E731
  return Mixture(
    as_array(np.log(pi))[None] + 0.7,  # logits need not be normalised
    as_array(mu)[None, :, None],
    as_array(2 * np.log(sigma))[None, :, None],
  )


def log_q(z, pi=PI, mu=MU, sigma=SIGMA):
  each = scipy.stats.norm.logpdf(z[..., None], mu, sigma)
  return scipy.special.logsumexp(np.log(pi) + each, axis=-1)


def log_joint(z):
  return scipy.stats.norm.logpdf(1.2, z**2, 0.5) + scipy.stats.norm.logpdf(z)


def true_kl(*parameters):
  density = log_q(GRID, *parameters)
  ratio = density - scipy.stats.norm.logpdf(GRID)
  return np.sum(np.exp(density) * ratio) * DZ


def test_stratified_elbo_is_unbiased_with_less_variance_than_ancestral():
  exact = np.sum(np.exp(log_q(GRID)) * (log_joint(GRID) - log_q(GRID))) * DZ
  assert abs(exact + 2.104) < 2e-3  # spec 5.6, fact 3
  q, n = toy(), 100_000
  of = jax.tree.map(np.asarray, outputs_of(q, noise(q, n)))
  ratio = log_joint(of["z"][..., 0]) - of["log_prob"]
  each = (of["w"] * n).astype(np.float64) * ratio
  each = each.reshape(n, 3).sum(1)  # n estimates, a sample from every component
  assert abs(each.mean() - exact) < 5 * each.std() / np.sqrt(n)
  rng = np.random.default_rng(0)
  k = rng.choice(3, n, p=PI)
  a = MU[k] + SIGMA[k] * rng.normal(size=n)
  ancestral = log_joint(a) - log_q(a)
  assert each.var() < ancestral.var() / 3  # lower per decoder call, too


def test_kl_of_the_mixture_is_of_its_own_density():
  """Not the mean of its components' KLs, which is the looser bound (G2)."""
  q = toy()
  estimate = float(outputs_of(q, noise(q, 100_000))["kl"][0])
  exact = true_kl()
  assert abs(exact - 0.2683) < 1e-3  # worked example of spec 5.2
  assert abs(estimate - exact) < 0.02
  components = 0.5 * (SIGMA**2 + MU**2 - 1 - 2 * np.log(SIGMA))
  convex = np.sum(PI * components)
  entropy = -np.sum(PI * np.log(PI))
  assert convex - entropy <= estimate <= convex - 0.3


def test_gradient_of_the_stratified_kl_is_unbiased():
  """Against the quadrature's finite difference, for every parameter."""
  eps = noise(toy(), 100_000)

  def estimate(pi_logits, mu, logvar):
    q = Mixture(pi_logits[None], mu[None, :, None], logvar[None, :, None])
    return q.kl_divergence(*q.sample(KEY, eps.shape[0], eps))[0]

  at = [np.log(PI), MU, 2 * np.log(SIGMA)]

  def exact(pi_logits, mu, logvar):
    return true_kl(scipy.special.softmax(pi_logits), mu, np.exp(logvar / 2))

  got = jit(jax.grad(estimate, (0, 1, 2)))(
    *(jnp.asarray(v, jnp.float32) for v in at)
  )
  for i, gradient in enumerate(got):
    for k in range(3):
      shift = np.zeros(3)
      shift[k] = 1e-4
      up, down = ([*at[:i], at[i] + s, *at[i + 1 :]] for s in (shift, -shift))
      wanted = (exact(*up) - exact(*down)) / 2e-4
      assert abs(gradient[k] - wanted) < 0.02, (i, k)


@pytest.mark.parametrize("pi", [(1.0,), (0.6, 0.4)], ids=["one", "identical"])
def test_equal_components_give_the_gaussians_kl(pi):
  k = len(pi)
  q = toy(np.array(pi), np.full(k, 0.5), np.full(k, 0.7))
  g = Gaussian(q.mu[:, 0], q.logvar[:, 0])
  of = jax.tree.map(np.asarray, outputs_of(q, noise(q, 100_000)))
  each = scipy.stats.norm.logpdf(of["z"][..., 0], 0.5, 0.7)
  np.testing.assert_allclose(of["log_prob"], each, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(of["kl"], g.kl_divergence(None, None), atol=0.01)


def test_bounds_are_in_order_on_random_mixtures():
  """{moments, convex - H(pi)} <= true KL <= convex (spec 5.6, fact 4).

  The true KL is our estimate; that of the moments is the population term of one
  image.
  """
  rng = np.random.default_rng(7)
  # components [k], images [b]: all mixtures at once
  pi = rng.dirichlet(np.ones(3), size=40)
  mu = rng.normal(0, 1.5, size=(40, 3))
  sigma = np.exp(rng.normal(-0.5, 0.5, size=(40, 3)))
  q = Mixture(
    jnp.asarray(np.log(pi), jnp.float32),
    jnp.asarray(mu, jnp.float32)[..., None],
    jnp.asarray(2 * np.log(sigma), jnp.float32)[..., None],
  )
  estimate = np.asarray(outputs_of(q, noise(q, N))["kl"])
  exact = [true_kl(*v) for v in zip(pi, mu, sigma, strict=True)]
  np.testing.assert_allclose(estimate, exact, atol=0.06, rtol=0.03)
  components = 0.5 * (sigma**2 + mu**2 - 1 - 2 * np.log(sigma))
  convex = np.sum(pi * components, 1)
  entropy = -np.sum(pi * np.log(pi), 1)
  moments = jit(jax.vmap(lambda one: population.population_kl(one, "full")[0]))(
    jax.tree.map(lambda v: v[:, None], q)
  )
  for i in range(40):
    assert moments[i] <= exact[i] + 1e-5
    slack = 0.06 + 0.03 * exact[i]
    assert convex[i] - entropy[i] - slack <= estimate[i] <= convex[i] + slack


def test_importance_weighted_bounds_are_in_order():
  """SELBO <= SIWAE_1 <= SIWAE_5 <= ln p(x), with train_metrics.held_out.

  Images of one pixel: `l2` with weight w is Gaussian noise of variance 1 /
  (2w).
  """
  exact = np.log(np.sum(np.exp(log_joint(GRID))) * DZ)
  b = 40_000
  q = toy()
  q = jax.tree.map(lambda v: jnp.broadcast_to(v, (b, *v.shape[1:])), q)
  x = jnp.full((b, 1, 1, 1), 1.2)
  got = {}

  @jit
  def of(q, eps):
    z, w = q.sample(KEY, eps.shape[0], eps)
    x_hat = jnp.square(z)[..., None, None]
    image = modalities("l2", (1, 1, 1))
    p = output(x, q, z, w, x_hat)
    return train_metrics.held_out(p, {"image": x}, image, 2.0)

  for n in (1, 5):
    bounds = of(q, noise(q, n))
    got[n] = {k: float(np.mean(bounds[k])) for k in ("elbo", "iwae", "kl")}
  assert got[1]["elbo"] < got[1]["iwae"] < got[5]["iwae"] < exact
  for value, wanted in [
    (got[1]["elbo"], -2.104),
    (got[5]["elbo"], -2.104),
    (got[1]["iwae"], -1.474),
    (got[5]["iwae"], -1.423),
    (exact, -1.413),
  ]:
    assert abs(value - wanted) < 0.03
  np.testing.assert_allclose(got[5]["kl"], true_kl(), atol=0.01)


def test_the_objective_siwae_is_minus_the_bound():
  """With given noise, against the sum in float64; K = 1 is IWAE."""
  b, t = 4, 3
  for q in (mixture(b=b, k=2, d=1), gaussian(b=b, d=1)):
    eps = noise(q, t)
    z, w = q.sample(KEY, t, eps)
    x = jnp.full((b, 1, 1, 1), 1.2)
    p = output(x, q, z, w, jnp.square(z)[..., None, None])
    siwae = objectives.SIWAE(modalities("l2", (1, 1, 1)), recon_weight=2.0)
    terms, *_ = siwae(p, {})
    values = (np.asarray(v, np.float64) for v in (z, w))
    z64, w64 = values
    weights, mu, var = (np.asarray(v, np.float64) for v in q.components())
    each = scipy.stats.norm.pdf(
      z64[..., None, 0], mu[None, ..., 0], np.sqrt(var)[None, ..., 0]
    )
    density = (weights[None] * each).sum(-1)
    joint = np.exp(-2.0 * (1.2 - z64[..., 0] ** 2) ** 2)
    joint *= scipy.stats.norm.pdf(z64[..., 0])
    bound = np.log((w64 * joint / density).sum(0)).mean()
    total = 2.0 * terms["recon"] + terms["kl"]
    np.testing.assert_allclose(total, -bound, rtol=1e-5)


# ---------------------------------------------- heads


def test_temperature_and_floor_of_the_weights():
  features = jnp.asarray(
    np.random.default_rng(0).normal(size=(5, 4)), "float32"
  )
  of = {}
  for name, section in {
    "plain": {},
    "hot": {"temperature": 2.0},
    "min_weight": {"min_weight": 0.3},
  }.items():
    head = posterior.head("mixture", components=3, latent=2, mixture=section)
    params = head.init(KEY, features)
    params = jax.tree.map(lambda v: 9 * v, params)  # uneven weights
    of[name] = np.asarray(head.apply(params, features).weights(), np.float64)
  wanted = of["plain"] ** 0.5
  wanted /= wanted.sum(1, keepdims=True)
  np.testing.assert_allclose(of["hot"], wanted, rtol=1e-4)
  np.testing.assert_allclose(
    of["min_weight"], 0.7 * of["plain"] + 0.1, rtol=1e-4
  )
  assert of["plain"].min() < 0.01
  for section in (
    {"temperature": 0.0},
    {"min_weight": 1.0},
    {"min_weight": -0.1},
  ):
    with pytest.raises(UserError, match=r"posterior\.mixture"):
      posterior.head("mixture", latent=2, mixture=section)


def test_entropy_and_effective_components():
  pi = np.array([[0.5, 0.5, 1e-30], [0.2, 0.3, 0.5]])
  q = Mixture(
    jnp.asarray(np.log(pi), jnp.float32),
    jnp.zeros((2, 3, 1)),
    jnp.zeros((2, 3, 1)),
  )
  found = train_metrics.posterior(q)
  entropy = scipy.stats.entropy(pi, axis=1)
  np.testing.assert_allclose(
    found["posterior/weights_entropy"], entropy.mean(), rtol=1e-5
  )
  np.testing.assert_allclose(
    found["posterior/effective_components"], np.exp(entropy).mean(), rtol=1e-5
  )
  assert "posterior/weights_entropy" not in train_metrics.posterior(gaussian())


@pytest.mark.parametrize(
  "name", [n for n, h in posterior.POSTERIORS.items() if h.family.has_variance]
)
@pytest.mark.parametrize("level", [100.0, -100.0])
def test_heads_keep_an_extreme_logvar_finite(name, level):
  head = posterior.head(name, components=1, latent=2)
  features = jnp.ones((3, 4))
  params = head.init(KEY, features)["params"]
  params["logvar"]["bias"] = jnp.full(2, level)

  def total(params):
    q = head.apply({"params": params}, features)
    z, w = q.sample(KEY, 2)
    return (
      jnp.mean(q.kl_divergence(z, w)) + jnp.mean(q.log_prob(z)) + jnp.mean(z)
    )

  value, gradient = jit(jax.value_and_grad(total))(params)
  q = head.apply({"params": params}, features)
  edge = base.LOGVAR_RANGE[level > 0]
  np.testing.assert_array_equal(q.logvar, np.full(q.logvar.shape, edge))
  for leaf in [value, *jax.tree.leaves(gradient)]:
    assert np.all(np.isfinite(leaf))


def test_a_point():
  """Every draw is the mean, and its gradient is the mean's."""
  q = Delta(gaussian().mu)
  z, w = q.sample(KEY, 3)
  np.testing.assert_array_equal(z, np.broadcast_to(q.mean(), (3, 5, 3)))
  np.testing.assert_allclose(w, np.full((3, 5), 1 / 3), rtol=1e-6)
  weights, mu, var = q.components()
  np.testing.assert_array_equal(mu[:, 0], q.mu)
  assert np.all(weights == 1) and not np.any(var)
  got = jax.grad(lambda mu: jnp.sum(Delta(mu).sample(KEY, 3)[0] ** 2))(q.mu)
  np.testing.assert_allclose(got, 6 * q.mu, rtol=1e-6)
  with pytest.raises(UserError, match="no variance of its own"):
    posterior.head("delta", components=1, latent=2, initial_logvar=-4.0)


def test_the_kl_of_latents_adds_up():
  """And that of the Gaussian is the KL of each latent alone."""
  rng = np.random.default_rng(0)
  a, b = jnp.asarray(rng.normal(size=(2, 5, 3)), jnp.float32)
  for q in (Gaussian(a, b), Epanechnikov(a, b), Poisson(a, b)):
    each = q.kl_of_latents()
    assert each.shape == (5, 3)
    np.testing.assert_allclose(
      each.sum(-1), q.kl_divergence(None, None), rtol=1e-5
    )
    assert type(q).closed_form_kl
  q = Gaussian(a, b)
  alone = jax.tree.map(lambda v: v[:, 1:2], q)
  np.testing.assert_allclose(
    q.kl_of_latents()[:, 1], alone.kl_divergence(None, None), rtol=1e-5
  )


def test_head_of_bfloat16_has_a_posterior_of_float32():
  head = posterior.head("mixture", components=2, latent=3, dtype=jnp.bfloat16)
  q, variables = head.init_with_output(KEY, jnp.ones((2, 4)))
  assert {v.dtype for v in jax.tree.leaves((q, variables))} == {
    jnp.dtype("float32")
  }
  assert q.mu.shape == (2, 2, 3)
  assert not np.allclose(q.mu[:, 0], q.mu[:, 1])  # components start apart


def test_unknown_family_and_wrong_components():
  with pytest.raises(UserError, match="gaussian, mixture"):
    posterior.head("gauss", components=1, latent=2)
  with pytest.raises(UserError, match=r"posterior\.name=mixture"):
    posterior.head("gaussian", components=2, latent=2)
  with pytest.raises(UserError, match="1 or more"):
    posterior.head("mixture", components=0, latent=2)


def test_the_score_of_the_mixture_vanishes():  # G7
  """E_q d ln q / d(parameters) = 0 stratum by stratum, also for the weights.

  So the gradient of the stratified ELBO stays unbiased if the parameters inside
  ln q are held fixed.
  """
  q = toy()
  n = 20_000
  eps = noise(q, n)
  z, w = jax.lax.stop_gradient(q.sample(KEY, n, eps))

  @jit
  @jax.jacrev
  def score(q):
    each = w * q.log_prob(z) * n  # [n k, b]
    return jnp.mean(each.reshape(20, -1, *each.shape[1:]).sum(1) / n, axis=-1)

  for path, leaf in jax.tree_util.tree_leaves_with_path(score(q)):
    groups = 20 * np.asarray(leaf, np.float64).reshape(20, -1)
    error = groups.std(0, ddof=1) / np.sqrt(20)
    name = jax.tree_util.keystr(path)
    assert np.all(np.abs(groups.mean(0)) < 5 * error + 1e-6), name

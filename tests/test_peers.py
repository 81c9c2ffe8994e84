"""Objectives that pull q(z) to the prior in other ways, against NumPy."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import peer_cases
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from conftest import (
  alone,
  assert_close,
  assert_same,
  elbo,
  images,
  jit,
  modalities,
  moved,
  output,
  run_of,
)
from conftest import flat as flat_config
from peer_cases import RUNS
from program import ANY_LENGTH, SMALL, numbers, rows

from gamix_jax import build, objectives
from gamix_jax.errors import UserError
from gamix_jax.objectives import covariances, draws, tcvae
from gamix_jax.posterior import Delta, Gaussian, Mixture, base

B, D = 6, 3
X = jnp.zeros((B, 2, 2, 1))


def posterior(kind, b=B, d=D, seed=0):
  """A posterior of b images with random parameters."""
  rng = np.random.default_rng(seed)
  draw = lambda *s: jnp.asarray(rng.normal(size=s), jnp.float32)  # noqa: E731
  if kind == "delta":
    return Delta(draw(b, d) + 0.3)
  if kind == "gaussian":
    return Gaussian(draw(b, d) + 0.3, draw(b, d) - 1)
  return Mixture(draw(b, 3), 1.5 * draw(b, 3, d), draw(b, 3, d) - 1)


KINDS = ("delta", "gaussian", "mixture")


@functools.cache
def sampled(kind, n=2):
  """Posterior, draws z, their weights w."""
  q = posterior(kind)
  eps = np.random.default_rng(1).normal(size=q.noise_shape(n))
  draw = jit(q.__class__.sample, static_argnums=2)
  return q, *draw(q, jax.random.key(0), n, jnp.asarray(eps, jnp.float32))


def flat(z, w):
  """Points [m, d], weights [m] that sum to 1, and images [m]; float64."""
  z, w = np.asarray(z, np.float64), np.asarray(w, np.float64)
  s, b, d = z.shape
  return z.reshape(-1, d), w.reshape(-1) / b, np.tile(np.arange(b), s)


def terms_of(objective, kind, **more):
  q, z, w = sampled(kind)

  @jit
  def call(q, z, w, more):
    x_hat = jnp.full((len(z), *X.shape), 0.25)
    of = output(X, q, z, w, x_hat, key=jax.random.key(7), **more)
    return objective(of, objective.init())[:2]

  terms, info = call(q, z, w, more)
  return {k: float(v) for k, v in terms.items()}, info


def made(cls, **fields):
  return cls(modalities("l1", X.shape[1:]), **fields)


# ---------------------------------------------------------- draws


@pytest.mark.parametrize("kind", KINDS)
def test_mmd_by_hand(kind):
  """The three sums of the paper, pair by pair."""
  _, z, w = sampled(kind)
  y = np.random.default_rng(2).normal(size=(B, D))
  points, weights, image = flat(z, w)

  def k(a, b):
    c = 2 * D * np.array([0.1, 0.2, 0.5, 1, 2, 5, 10])
    return np.sum(c / (c + np.sum((a - b) ** 2)))

  own = sum(
    B * weights[i] * B * weights[j] * k(points[i], points[j])
    for i in range(len(points))
    for j in range(len(points))
    if image[i] != image[j]
  )
  prior = sum(k(y[i], y[j]) for i in range(B) for j in range(B) if i != j)
  crossed = sum(
    B * weights[i] * k(points[i], y[j])
    for i in range(len(points))
    for j in range(B)
  )
  wanted = (own + prior) / (B * (B - 1)) - 2 * crossed / B**2
  got = jit(draws.mmd)(z, w, jnp.asarray(y, jnp.float32))
  np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_mmd_is_unbiased():
  """0 on average at a perfect population, in parts of any size."""
  rng = np.random.default_rng(0)
  z, y = jnp.asarray(rng.normal(size=(2, 3_000, 1, 8, D)), jnp.float32)
  w = jnp.ones((1, 8))
  of = jit(jax.vmap(lambda z, y: draws.mmd(z, w[:, : z.shape[1]], y[0])))
  for size in (8, 4):
    got = np.asarray(of(z[:, :, :size], y[:, :, :size]), np.float64)
    assert abs(got.mean()) < 4 * got.std() / np.sqrt(len(got))
  # It sees a population that is too narrow.
  assert np.mean(of(0.7 * z, y)) > 8 * got.std() / np.sqrt(len(got))


@pytest.mark.parametrize("kind", KINDS)
def test_cramer_wold_by_hand(kind):
  _, z, w = sampled(kind)
  points, weights, _ = flat(z, w)
  n, k = len(points), 1 / (2 * D - 3)
  g = (4 / (3 * n)) ** (2 / 5)
  wanted = (1 + g) ** -0.5
  for i in range(n):
    wanted -= 2 * weights[i] * (g + 0.5 + k * points[i] @ points[i]) ** -0.5
    for j in range(n):
      off = points[i] - points[j]
      wanted += weights[i] * weights[j] * (g + k * off @ off) ** -0.5
  got = jit(draws.cramer_wold)(z, w)
  np.testing.assert_allclose(got, wanted, rtol=1e-4)
  terms, _ = terms_of(made(objectives.CWAE), kind)
  np.testing.assert_allclose(terms["cramer_wold"], np.log(wanted), rtol=1e-4)


def test_cramer_wold_is_a_distance_of_smoothed_projections():
  """Its definition, over many directions, for many latents."""
  rng = np.random.default_rng(0)
  n, d = 20, 24
  z = 0.5 * rng.normal(size=(1, n, d)) + 0.3
  g = (4 / (3 * n)) ** (2 / 5)
  a = rng.normal(size=(4_000, d))
  along = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ z[0].T
  pdf = scipy.stats.norm.pdf
  own = pdf(along[:, :, None] - along[:, None], scale=np.sqrt(2 * g)).mean()
  crossed = pdf(along, scale=np.sqrt(1 + 2 * g)).mean()
  wanted = own + pdf(0, scale=np.sqrt(2 + 2 * g)) - 2 * crossed
  got = jit(draws.cramer_wold)(jnp.asarray(z, jnp.float32), jnp.ones((1, n)))
  np.testing.assert_allclose(got / (2 * np.sqrt(np.pi)), wanted, rtol=0.05)


@pytest.mark.parametrize("kind", ["delta", "gaussian"])
def test_sliced_wasserstein_is_the_best_assignment(kind):
  """Of draws to the prior's draws along each direction, found by SciPy."""
  q, z, w = sampled(kind)
  objective = made(objectives.SWAE, directions=4)
  terms, _ = terms_of(objective, kind)
  of_prior, of_directions = jax.random.split(jax.random.key(7))
  y = np.asarray(jax.random.normal(of_prior, (2 * B, D)), np.float64)
  a = np.asarray(jax.random.normal(of_directions, (4, D)), np.float64)
  a /= np.linalg.norm(a, axis=1, keepdims=True)
  points, _, _ = flat(z, w)
  found = []
  for line in a:
    cost = ((points @ line)[:, None] - (y @ line)[None]) ** 2
    found.append(cost[scipy.optimize.linear_sum_assignment(cost)].mean())
  np.testing.assert_allclose(
    terms["sliced_wasserstein"], np.mean(found), rtol=1e-4
  )
  assert not objective.accepts(Mixture)
  assert objective.accepts(type(q))


@pytest.mark.parametrize("kind", KINDS)
def test_sigreg_is_the_integral(kind):
  """Epps-Pulley's statistic in closed form."""
  _, z, w = sampled(kind)
  points, weights, _ = flat(z, w)
  terms, _ = terms_of(made(objectives.SIGReg, directions=4), kind)
  a = np.asarray(jax.random.normal(jax.random.key(7), (4, D)), np.float64)
  a /= np.linalg.norm(a, axis=1, keepdims=True)
  found = []
  for line in a:
    t = points @ line
    pairs = np.exp(-((t[:, None] - t[None]) ** 2) / 2)
    value = np.sqrt(2 * np.pi) * weights @ pairs @ weights
    value -= 2 * np.sqrt(np.pi) * weights @ np.exp(-(t**2) / 4)
    found.append(value + np.sqrt(2 * np.pi / 3))
  np.testing.assert_allclose(terms["sigreg"], B * np.mean(found), rtol=1e-3)


def test_directions_are_uniform_on_the_sphere():
  a = np.asarray(draws.directions(jax.random.key(0), 5_000, 4, jnp.float32))
  np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1, rtol=1e-5)
  np.testing.assert_allclose(a.T @ a / len(a), np.eye(4) / 4, atol=0.02)


# ---------------------------------------------------------- covariances


@pytest.mark.parametrize("kind", KINDS)
def test_covariances_against_samples(kind):
  """Of the means exactly; within posteriors of many draws."""
  q = posterior(kind)
  mean = np.asarray(q.mean(), np.float64)
  for unbiased in (False, True):
    of_means = jit(covariances.covariance_of_means, static_argnums=1)
    np.testing.assert_allclose(
      of_means(q, unbiased),
      np.cov(mean.T, ddof=int(unbiased)),
      rtol=1e-5,
      atol=1e-6,
    )
  z, w = (
    np.asarray(v, np.float64)
    for v in jit(q.__class__.sample, static_argnums=2)(
      q, jax.random.key(0), 10_000
    )
  )
  off = z - mean[None]
  wanted = np.einsum("sb,sbi,sbj->ij", w, off, off) / B
  error = 5 * np.abs(wanted).max() * np.sqrt(3 / 10_000)
  np.testing.assert_allclose(
    jit(covariances.covariance_within)(q), wanted, atol=error
  )


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
@pytest.mark.parametrize("name", ["dip1", "dip2"])
def test_dip_by_hand(name, kind):
  q, z, w = sampled(kind)
  terms, _ = terms_of(made(objectives.OBJECTIVES[name]), kind)
  pi, mu, var = (np.asarray(v, np.float64) for v in q.components())
  mean = np.einsum("bk,bkd->bd", pi, mu)
  c = np.cov(mean.T, ddof=0)
  if name == "dip2":  # E z z^T - E z E z^T of the whole population
    second = np.einsum("bk,bki,bkj->ij", pi, mu, mu) / B
    second += np.diag(np.einsum("bk,bkd->d", pi, var)) / B
    c = second - np.outer(mean.mean(0), mean.mean(0))
  off = c - np.diag(np.diag(c))
  np.testing.assert_allclose(terms["covariance"], np.sum(off**2), rtol=1e-4)
  np.testing.assert_allclose(
    terms["variance"], np.sum((np.diag(c) - 1) ** 2), rtol=1e-4
  )
  kl = float(np.mean(q.kl_divergence(z, w)))
  np.testing.assert_allclose(terms["kl"], kl, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_vicreg_by_hand(kind):
  q, *_ = sampled(kind)
  terms, _ = terms_of(made(objectives.VICReg), kind)
  pi, mu, var = (np.asarray(v, np.float64) for v in q.components())
  mean = np.einsum("bk,bkd->bd", pi, mu)
  c = np.cov(mean.T, ddof=1)
  for i in range(B):
    c += np.cov(mu[i].T, aweights=pi[i], ddof=0) / B if pi.shape[1] > 1 else 0
    c += np.diag(pi[i] @ var[i]) / B
  off = c - np.diag(np.diag(c))
  np.testing.assert_allclose(terms["covariance"], np.sum(off**2) / D, rtol=1e-4)
  hinge = np.maximum(0, 1 - np.sqrt(np.diag(c) + 1e-4))
  np.testing.assert_allclose(terms["variance"], hinge.mean(), atol=1e-5)


# ---------------------------------------------------------- beta-TCVAE


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_tcvae_by_hand(kind):
  """Each draw against every posterior, with the weights of the paper."""
  n, m = 50, B - 1
  q, z, w = sampled(kind)
  pi, mu, var = (np.asarray(v, np.float64) for v in q.components())
  z, w = np.asarray(z, np.float64), np.asarray(w, np.float64)
  weights = np.full((B, B), 1 / m)
  for i in range(B):
    weights[i, m if i < m else m - 1] = (n - m) / (n * m)
    weights[i, i] = 1 / n
  wanted = dict.fromkeys(tcvae.TERMS, 0.0)
  norm = scipy.stats.norm
  for s in range(len(z)):
    for i in range(B):
      each = norm.pdf(z[s, i], mu, np.sqrt(var))  # [j, k, d]
      joint = np.log(weights[i] @ np.sum(pi * each.prod(-1), axis=1))
      marginal = np.einsum("j,jk,jkd->d", weights[i], pi, each)
      product = np.log(marginal).sum()
      own = np.log(np.sum(pi[i] * each[i].prod(-1)))
      share = w[s, i] / B
      wanted["mutual_information"] += share * (own - joint)
      wanted["total_correlation"] += share * (joint - product)
      prior = norm.logpdf(z[s, i]).sum()
      wanted["dimension_kl"] += share * (product - prior)
  terms, _ = terms_of(made(objectives.TCVAE, images=n), kind)
  for name, value in wanted.items():
    np.testing.assert_allclose(terms[name], value, rtol=1e-4, atol=1e-5)
  kl = sum(terms[k] for k in tcvae.TERMS)
  exact = jit(base.kl_by_draws)(q, *sampled(kind)[1:])
  np.testing.assert_allclose(kl, np.mean(exact), rtol=1e-4)


def test_tcvae_needs_the_number_of_images():
  c = alone(flat_config, **peer_cases.changes("tcvae"))
  assert build.train_spec(c).objective.images == 50
  for number in (0, 7):
    c.objective.tcvae.images = number
    with pytest.raises(UserError, match=f"tcvae.images={number}.*=60000"):
      build.train_spec(c)


@pytest.mark.parametrize(
  ("name", "changes", "words"),
  [
    ("cwae", dict(model__latent=1), "needs 2 latents"),
    ("swae", dict(objective__swae__directions=0), "swae.directions=0"),
    ("sigreg", dict(objective__sigreg__directions=0), "sigreg.directions=0"),
    ("aae", dict(objective__aae__layers=0), "aae.layers=0"),
    ("gamix_aae", dict(objective__aae__width=0), "aae.width=0"),
    ("gamix_aae", dict(posterior__name="delta"), "not defined for"),
    ("swae", dict(posterior__name="mixture"), "not defined for"),
    ("dip1", dict(posterior__name="delta"), "not defined for"),
  ],
)
def test_what_is_refused(name, changes, words):
  c = alone(flat_config, **peer_cases.changes(name), **changes)
  with pytest.raises(UserError, match=words):
    build.train_spec(c)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(objective__elbo__free_bits=-1.0), "must be >= 0"),
    (
      dict(objective__elbo__free_bits=0.1, posterior__name="mixture"),
      "closed form",
    ),
    (
      dict(objective__elbo__free_bits=0.1, prior__name="vamp"),
      "closed form",
    ),
  ],
)
def test_free_bits_that_are_refused(changes, words):
  with pytest.raises(UserError, match=words):
    build.train_spec(elbo(flat_config, **changes))


def test_tcvae_of_a_weight_of_zero_has_a_gradient():
  q = posterior("mixture")
  q = q.replace(logits=q.logits.at[:, 0].set(-200.0))

  def total(q):
    z = jnp.zeros((1, B, D))
    return sum(jnp.sum(v) for v in tcvae.log_population(q, z, 50))

  for leaf in jax.tree.leaves(jit(jax.grad(total))(q)):
    assert np.all(np.isfinite(leaf))


# ---------------------------------------------------------- autoencoders


@pytest.mark.parametrize("kind", KINDS)
def test_rae_by_hand(kind):
  _, z, w = sampled(kind)
  rng = np.random.default_rng(0)
  kernel, bias = rng.normal(size=(4, 5)), rng.normal(size=5)
  params = {
    "decoder": {"a": {"kernel": kernel, "bias": bias}},
    "encoder": {"a": {"kernel": 100 * kernel}},
  }
  params = jax.tree.map(jnp.asarray, params)
  terms, _ = terms_of(made(objectives.RAEL2), kind, params=params)
  points, weights, _ = flat(z, w)
  wanted = 0.5 * weights @ np.sum(points**2, axis=1)
  np.testing.assert_allclose(terms["code_norm"], wanted, rtol=1e-5)
  wanted = np.sum(kernel**2) + np.sum(bias**2)
  np.testing.assert_allclose(terms["decoder_norm"], wanted, rtol=1e-5)


def test_free_bits_by_hand():
  """Latents whose mean KL is under the limit cost it, without a gradient."""
  q, z, w = sampled("gaussian")
  mu, logvar = (np.asarray(v, np.float64) for v in (q.mu, q.logvar))
  each = (0.5 * (np.exp(logvar) + mu**2 - 1 - logvar)).mean(0)
  limit = float(np.sort(each)[:2].mean())  # between the first two
  terms, info = terms_of(made(objectives.ELBO, free_bits=limit), "gaussian")
  np.testing.assert_allclose(
    terms["kl"], np.maximum(each, limit).sum(), rtol=1e-5
  )
  assert info["kl/free_latents"] == 1

  def kl(q):
    of = output(X, q, z, w, jnp.zeros((len(z), *X.shape)))
    return made(objectives.ELBO, free_bits=limit)(of, {})[0]["kl"]

  reached = np.asarray(jit(jax.grad(kl))(q).mu).any(0)
  np.testing.assert_array_equal(reached, each > limit)


# ---------------------------------------------------------- whole runs


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_continues_and_is_evaluated(program, tmp_path, name):
  """Three steps at the command line, the last one after a restart."""
  run = tmp_path / "run"

  def done(*flags, module="main"):
    ran = program.forked(*flags, module=f"gamix_jax.{module}")
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""

  flags = [
    *(*SMALL, *ANY_LENGTH, "--config.posterior.name=delta"),
    *(f"--config.objective.name={name}", *RUNS[name]),
    *(f"--config.ramp.{term}=0" for term in ("kl", *tcvae.TERMS)),
    f"--workdir={run}",
  ]
  for steps in (2, 3):
    done(*flags, f"--config.steps={steps}")
  log = [r for r in rows(run) if "vae/loss" in r]
  assert [r["step"] for r in log] == [1, 2, 3]
  terms = objectives.OBJECTIVES[name].terms
  for term in terms:
    assert all(np.isfinite(r[f"vae/{term}"]) for r in log)
  assert log[-1]["nonfinite/total"] == 0
  if objectives.OBJECTIVES[
    name
  ].of_discriminator:  # its discriminator continues, too
    done(*flags[:-1], f"--workdir={tmp_path / 'whole'}", "--config.steps=3")
    whole = [r for r in numbers(tmp_path / "whole") if "vae/loss" in r]
    assert whole == [r for r in numbers(run) if "vae/loss" in r]
  done(
    *(f"--workdir={run}", "--config.eval.images=16", "--config.eval.draws=2"),
    *("--config.eval.features=random", "--config.eval.train_images=16"),
    "--config.eval.bound_images=8",
    module="evaluate",
  )
  found = json.loads((run / "eval" / "metrics.json").read_text())["numbers"]
  assert np.isfinite(found["mae"]["value"])
  deterministic = not any("posterior.name" in flag for flag in RUNS[name])
  assert (found["elbo"]["value"] is None) == deterministic


# ---------------------------------------------------------- adversarial


def test_aae_by_hand():
  """The three terms from logits of SciPy's sigmoid."""
  rng = np.random.default_rng(0)
  real, fake = rng.normal(size=B), rng.normal(size=(6, B))
  logits = (jnp.asarray(v, jnp.float32) for v in (real, fake))
  q, z, w = sampled("mixture")
  of = output(X, q, z, w, jnp.zeros((len(z), *X.shape)))
  of = of.replace(code_logits=tuple(logits))
  objective = made(objectives.AAE)
  terms = objective(of, {})[0] | objective.discriminator_terms(of)
  w = np.asarray(w, np.float64)
  p_real, p_fake = (scipy.special.expit(v) for v in (real, fake))
  wanted = {
    "code_adversarial": np.mean(np.sum(-w * np.log(p_fake), 0)),
    "code_real": np.mean(-np.log(p_real)),
    "code_fake": np.mean(np.sum(-w * np.log1p(-p_fake), 0)),
  }
  for name, value in wanted.items():
    np.testing.assert_allclose(terms[name], value, rtol=1e-5)


@pytest.mark.parametrize("family", ["gaussian", "mixture"])
def test_gamix_aae_has_the_terms_of_both(family):
  """Those of GAMIX with its form of the population, and those of the AAE."""
  rng = np.random.default_rng(1)
  q, z, w = sampled(family)
  of = output(X, q, z, w, jnp.zeros((len(z), *X.shape)))
  logits = [rng.normal(size=B), rng.normal(size=z.shape[:2])]
  of = of.replace(code_logits=tuple(jnp.asarray(v, "f4") for v in logits))
  both = made(objectives.GamixAAE, population="kernel")
  gamix, aae = made(objectives.Gamix, population="kernel"), made(objectives.AAE)
  wanted = gamix(of, {})[0] | {
    "code_adversarial": aae(of, {})[0]["code_adversarial"]
  }
  terms = both(of, {})[0]
  assert terms.keys() == wanted.keys() == set(both.terms)
  assert_close(terms, wanted, rtol=1e-6)
  assert both.discriminator_terms(of) == aae.discriminator_terms(of)
  assert both.additive
  assert not made(objectives.GamixAAE, population="debiased").additive


def test_gamix_aae_reads_the_keys_of_both():
  c = alone(
    flat_config,
    **peer_cases.changes("gamix_aae"),
    objective__population="quadratic",
    objective__aae__width=5,
    objective__aae__layers=3,
  )
  objective = build.train_spec(c).objective
  assert objective.population == "quadratic"
  assert (objective.width, objective.layers) == (5, 3)
  defaults = objectives.GamixAAE.default_weights(1.0)
  assert set(defaults) == {*objective.terms[1:], *objective.of_discriminator}


def aae(**changes):
  return flat_config(**peer_cases.changes("aae"), **changes)


def test_two_discriminators_at_once():
  """That of codes beside that of images; each has its own parameters."""
  c = aae(posterior__name="delta", objective__aae__width=8)
  run = run_of(c)
  image, code = run.state.disc.params.keys() - {"code"}, {"code"}
  assert image and "code" in run.state.disc.params
  for weights, wanted in (
    (dict(real=1, fake=1), image),
    (dict(code_real=1, code_fake=1), code),
  ):
    after, metrics = run.step(run.state, run.batch, weights)
    changed = moved(run.state.disc.params, after.disc.params)
    for path, has_moved in changed.items():
      assert has_moved == any(f"['{k}']" in path for k in wanted), path
    assert_same(run.state.vae.params, after.vae.params)
  assert 0 <= float(metrics["code/accuracy"]) <= 1


def test_the_code_discriminator_learns():
  """It tells wide codes from the prior after some steps."""
  c = alone(
    aae,
    posterior__name="delta",
    objective__aae__width=16,
    data__batch_size=64,
    optim__disc__learning_rate=1e-2,
  )
  run = run_of(c)
  # Codes far from the prior's, and a VAE that does not move.
  params = jax.tree.map(lambda v: v, run.state.vae.params)
  bias = params["posterior"]["mu"]["bias"]
  params["posterior"]["mu"]["bias"] = jnp.full_like(bias, 4.0)
  state = run.state.replace(vae=run.state.vae.replace(params=params))
  weights = dict(code_real=1.0, code_fake=1.0)
  before = after = None
  for t in range(30):
    state, metrics = run.step(state, images(c, t), weights)
    before = before or metrics
    after = metrics
  assert after["disc/loss"] < 0.5 * before["disc/loss"]
  assert after["code/accuracy"] > 0.9


def test_the_code_adversary_has_a_start():
  """As that of images: the codes' term begins when its rival does."""
  c = alone(aae, adversarial__disc_start=3, adversarial__gen_delay=2)
  spec = build.train_spec(c)
  weights = [spec.weights.vae_at(jnp.asarray(t)) for t in range(8)]
  got = [float(w["code_adversarial"]) for w in weights]
  assert got == [0, 0, 0, 0, 0, 1, 1, 1]

"""Validation metrics: images used, samples, the Gaussian's KL."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from conftest import alone, elbo, flat, small, state_of
from program import QUICK, rows

from gamix_jax import build, data, metrics
from gamix_jax.metrics import specs
from gamix_jax.parallel import mesh
from gamix_jax.posterior import EVAEPosterior, Gaussian, Mixture
from gamix_jax.training import loop, validation


@pytest.fixture
def make_validator(monkeypatch):
  """Makes a Validator on 20 held-out synthetic images, and a state.

  `evaluate` replaces the step that evaluates a batch.
  """
  jit = jax.jit
  monkeypatch.setattr(
    validation.jax, "jit", lambda f, **kw: jit(f, compiler_options=QUICK, **kw)
  )

  def make(base=small, evaluate=None, **changes):
    if evaluate is not None:
      monkeypatch.setattr(validation, "eval_step", evaluate)
    c = base(data__source="synthetic:80", **changes)
    spec = build.train_spec(c)
    test = data.open_dataset(c.data, "test", c.seed)
    assert len(test) == 20
    layout = mesh.ShardingPlan(
      mesh.create_mesh(c.data.batch_size), c.mesh.fsdp_min_size
    )
    return validation.Validator(spec, c, layout, test), state_of(spec)

  return make


def pixel_means(spec, draws, params, batch_stats, batch):
  """An `eval_step` whose MAE is the image's mean pixel."""
  del spec, draws, params, batch_stats
  x = batch["image"].astype(jnp.float32).mean(axis=(1, 2, 3))
  z = jnp.stack([x, -x], -1)
  moments = {"mean": z, "var": 0 * z, "valid": batch["valid"]}
  return moments | {"mae": x, "kl": x, "posterior": Gaussian(z, 0 * z)}


@pytest.mark.parametrize("eval_images", [1, 8, 9, 17, 99])
def test_images_used(make_validator, eval_images):
  """At even distances, or all; without the last batch's padding."""
  seen = min(eval_images, 20)
  validator, state = make_validator(
    evaluate=pixel_means, eval_images=eval_images
  )
  c = small(data__source="synthetic:80")
  test = data.open_dataset(c.data, "test", c.seed)
  rows = [i * 19 // max(seen - 1, 1) for i in range(seen)]
  pixels = [test[i]["image"].mean(dtype=np.float64) for i in rows]
  wanted = pytest.approx(np.mean(pixels), rel=1e-5)
  assert validator.numbers(state)["eval/mae"] == wanted


def test_draws(make_validator):
  """With one sample the two bounds are equal; with more they are ordered."""
  one, state = make_validator(eval_draws=1)
  four, _ = make_validator(eval_draws=4)
  a, b = one.numbers(state), four.numbers(state)
  assert a["eval/iwae"] == pytest.approx(a["eval/elbo"], rel=1e-5)
  assert b["eval/iwae"] > b["eval/elbo"] + 1e-3
  for name in a:
    specs.find(name.removeprefix("eval/"))
  # What is not random is equal; the rest is close.
  for name in ("eval/mae", "eval/psnr", "eval/population_kl_gaussian"):
    assert a[name] == pytest.approx(b[name], rel=1e-5)
  assert a["eval/active_units"] == b["eval/active_units"]


def given_posterior(spec, draws, params, batch_stats, batch):
  """An `eval_step` that takes the posterior of all images as its params."""
  del spec, draws, batch_stats
  q = jax.tree.map(
    lambda v: jax.lax.dynamic_slice_in_dim(v, 8 * batch["step"], 8), params
  )
  mean = q.mean()
  metrics = {"mean": mean, "var": 0 * mean, "kl": mean[:, 0]}
  return metrics | {"posterior": q, "valid": batch["valid"]}


def known(validator, state, q):
  """Returns `numbers` of a Validator with `given_posterior`, for q of 20."""

  def padded(v):  # fill the last batch with values that would be visible
    return jnp.concatenate([v, jnp.full_like(v[:4], 77)])

  return validator.numbers(state.replace(ema=jax.tree.map(padded, q)))


@pytest.mark.parametrize("components", [1, 2])
def test_mutual_information_by_monte_carlo(make_validator, components):
  """On the images used, against many samples and scipy's densities."""
  validator, state = make_validator(evaluate=given_posterior, eval_images=17)
  rng = np.random.default_rng(0)
  mu = 2 * rng.normal(size=(20, components, 3)).astype(np.float32)
  logvar = rng.uniform(-2, 0, (20, components, 3)).astype(np.float32)
  q = Mixture(np.zeros((20, components), np.float32), mu, logvar)
  got = known(validator, state, q)["eval/mutual_information"]
  n, draws = 17, 4_000
  sigma = np.exp(logvar[:n].astype(np.float64) / 2)

  def log_density(z):
    """Returns ln q(z | x_i) for every image, [n, m]."""
    each = scipy.stats.norm.logpdf(z, mu[:n, :, None], sigma[:, :, None])
    return scipy.special.logsumexp(each.sum(-1), axis=1) - np.log(components)

  ratios = []
  for i in range(n):
    which = rng.integers(0, components, draws)
    z = mu[i, which] + sigma[i, which] * rng.normal(size=(draws, 3))
    each = log_density(z)
    ratios.append(each[i] - scipy.special.logsumexp(each, axis=0) + np.log(n))
  wanted = np.mean(ratios)
  # One sample per image (and component) allows this error.
  error = np.mean(np.std(ratios, axis=1)) / np.sqrt(n)
  assert abs(got - wanted) < 3 * error < 0.6 * wanted
  assert wanted < np.log(n)


def test_mutual_information_at_its_ends(make_validator):
  """0 for identical codes, ln n for codes far apart, next to active ones."""
  validator, state = make_validator(evaluate=given_posterior)
  mu = np.zeros((20, 2), np.float32)
  silent = known(validator, state, Gaussian(mu, mu))
  assert silent["eval/mutual_information"] == pytest.approx(0, abs=1e-6)
  mu[:, 0] = np.arange(20)
  apart = known(validator, state, Gaussian(mu, np.full_like(mu, -12)))
  assert apart["eval/mutual_information"] == pytest.approx(np.log(20), rel=1e-5)
  assert list(apart)[-3:] == [
    *("eval/kl", "eval/mutual_information", "eval/active_units")
  ]


def test_a_family_without_bounds_has_none(make_validator):
  validator, state = make_validator(evaluate=given_posterior)
  mu = np.zeros((20, 2), np.float32)
  assert "eval/mutual_information" not in known(
    validator, state, EVAEPosterior(mu, mu)
  )
  given = known(validator, state, EVAEPosterior(mu, mu, uniform=False))
  assert given["eval/mutual_information"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["poisson", "vamp", "mixture"])
def test_families_and_priors(make_validator, name):
  """With the model itself: 0 or more, at most ln n, the same every time."""
  changes = {
    "poisson": dict(posterior__name="poisson"),
    "vamp": dict(prior__name="vamp", prior__components=3),
    "mixture": dict(posterior__name="mixture", posterior__components=2),
  }[name]
  validator, state = make_validator(
    flat, **elbo(dict, **alone(dict, **changes))
  )
  first, again = validator.numbers(state), validator.numbers(state)
  assert first == again
  assert -0.5 < first["eval/mutual_information"] <= np.log(20)
  assert first["eval/mutual_information"] < first["eval/kl"] + 1


@pytest.mark.parametrize(
  ("latent", "eval_images", "words"),
  [
    (7, 8, ""),
    (8, 8, "8 images and 8 latents; raise eval_images to 9 or more."),
    (20, 99, "20 images and 20 latents; hold out 21 or more."),
    (20, 16, "hold out 21 or more and raise eval_images to the same number."),
  ],
)
def test_too_few_images_for_the_population_kl(
  make_validator, latent, eval_images, words
):
  """Omitted, not NaN, and one line says why."""
  validator, state = make_validator(
    model__latent=latent, eval_images=eval_images
  )
  assert validator.left_out.endswith(words) and "\n" not in validator.left_out
  assert bool(validator.left_out) == bool(words)
  found = validator.numbers(state)
  assert ("eval/population_kl_gaussian" in found) == (not words)
  assert all(np.isfinite(v) for v in found.values())


def test_no_message_for_a_family_without_population_kl(make_validator):
  validator, state = make_validator(
    elbo,
    **{"model__latent": 8, "eval_images": 8},
    **{"prior__name": "vamp", "prior__components": 2},
  )
  assert validator.left_out == ""
  assert "eval/population_kl_gaussian" not in validator.numbers(state)


def test_training_says_it_once(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(
    jax, "jit", functools.partial(jax.jit, compiler_options=QUICK)
  )
  c = alone(
    flat,
    **{"steps": 2, "eval_every": 1, "eval_images": 4, "eval_draws": 1},
    **{"checkpoint__every": 2, "checkpoint__keep_best": 0},
    data__source="synthetic",
  )
  loop.train(c, str(tmp_path / "run"))
  assert capsys.readouterr().out.count("eval/population_kl_gaussian") == 1
  logged = [row for row in rows(tmp_path / "run") if "eval/kl" in row]
  assert len(logged) == 2
  for row in logged:
    assert "eval/population_kl_gaussian" not in row and None not in row.values()


def test_gaussian_kl_by_monte_carlo():
  rng = np.random.default_rng(0)
  mean = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 3)) * 0.5 + 0.3
  var = rng.uniform(0.1, 0.4, (500, 3))
  each = rng.integers(0, 500, 400_000)
  z = mean[each] + np.sqrt(var[each]) * rng.normal(size=(len(each), 3))
  fitted = scipy.stats.multivariate_normal(z.mean(0), np.cov(z.T))
  prior = scipy.stats.multivariate_normal(np.zeros(3))
  draws = fitted.rvs(400_000, random_state=rng)
  wanted = np.mean(fitted.logpdf(draws) - prior.logpdf(draws))
  assert metrics.population_kl_gaussian(mean, var) == pytest.approx(
    wanted, rel=0.02
  )
  assert np.isnan(metrics.population_kl_gaussian(mean[:3], var[:3]))

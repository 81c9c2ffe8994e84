"""Held-out numbers: over which images, of how many draws, of which Gaussian."""

import functools

import jax
import numpy as np
import pytest
import scipy.stats
from conftest import alone, elbo, flat, small, state_of
from program import QUICK, rows

from gamix_jax import build, data, examine, mesh, metrics, train


@pytest.fixture
def examiner(monkeypatch):
  """An Examiner of synthetic images: 20 held out; and a state."""
  jit = jax.jit
  monkeypatch.setattr(
    examine.jax, "jit", lambda f, **kw: jit(f, compiler_options=QUICK, **kw)
  )

  def make(base=small, **changes):
    c = base(data__source="synthetic:80", **changes)
    recipe = build.recipe(c)
    test = data.open(c.data, "test", c.seed)
    assert len(test) == 20
    layout = mesh.Layout(mesh.make(c.data.batch_size), c.mesh.min_size)
    made = examine.Examiner(recipe, c, layout, test)
    return made, state_of(recipe)

  return make


def looked_at(made, state):
  """What `numbers` makes of a model that says an image's mean pixel."""

  def say(params, batch_stats, batch):
    x = np.asarray(batch["image"], np.float64).mean(axis=(1, 2, 3))
    z = np.stack([x, -x], -1)
    return {"mae": x, "mean": z, "var": 0 * z, "mask": batch["mask"]}

  made._numbers = say
  return made.numbers(state)["eval/mae"]


@pytest.mark.parametrize("eval_images", [1, 8, 9, 17, 99])
def test_images_looked_at(examiner, eval_images):
  """The first so many, or all; of the last batch no filling."""
  seen = min(eval_images, 20)
  made, state = examiner(eval_images=eval_images)
  test = made._dataset
  pixels = [test[i]["image"].mean(dtype=np.float64) for i in range(seen)]
  assert looked_at(made, state) == pytest.approx(np.mean(pixels), rel=1e-6)


def test_draws(examiner):
  """With one draw the two bounds are one; with more they order themselves."""
  one, state = examiner(eval_draws=1)
  four, _ = examiner(eval_draws=4)
  a, b = one.numbers(state), four.numbers(state)
  assert a["eval/iwae"] == pytest.approx(a["eval/elbo"], rel=1e-5)
  assert b["eval/iwae"] > b["eval/elbo"] + 1e-3
  # What is not drawn is the same; what is, is about the same.
  for name in ("eval/mae", "eval/psnr", "eval/population_kl"):
    assert a[name] == pytest.approx(b[name], rel=1e-5)
  assert a["eval/active_units"] == b["eval/active_units"]


@pytest.mark.parametrize(
  ("latent", "eval_images", "words"),
  [
    (7, 8, ""),
    (8, 8, "8 images and 8 latents; raise eval_images to 9 or more."),
    (20, 99, "20 images and 20 latents; hold out 21 or more."),
    (20, 16, "hold out 21 or more and raise eval_images to as many."),
  ],
)
def test_too_few_images_for_the_population_kl(
  examiner, latent, eval_images, words
):
  """It is left out, not NaN, and in one line it is said why."""
  made, state = examiner(model__latent=latent, eval_images=eval_images)
  assert made.left_out.endswith(words) and "\n" not in made.left_out
  assert bool(made.left_out) == bool(words)
  found = made.numbers(state)
  assert ("eval/population_kl" in found) == (not words)
  assert all(np.isfinite(v) for v in found.values())


def test_no_word_where_the_family_has_no_population_kl(examiner):
  made, state = examiner(
    elbo,
    **{"model__latent": 8, "eval_images": 8},
    **{"prior__name": "vamp", "prior__components": 2},
  )
  assert made.left_out == ""
  assert "eval/population_kl" not in made.numbers(state)


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
  train.train(c, str(tmp_path / "run"))
  assert capsys.readouterr().out.count("eval/population_kl") == 1
  logged = [row for row in rows(tmp_path / "run") if "eval/kl" in row]
  assert len(logged) == 2
  for row in logged:
    assert "eval/population_kl" not in row and None not in row.values()


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

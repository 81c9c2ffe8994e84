"""Sources of latents, interpolations, scores and maps."""

import json
import logging
import os
import sys
from functools import partial

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import alone, elbo, flat
from damage import damages

import gamix_jax
from gamix_jax import build, data, inference
from gamix_jax.errors import UserError
from gamix_jax.files import PART
from gamix_jax.inference import samplers, two_stage
from gamix_jax.inference.fitting import ensure_fitted
from gamix_jax.posterior import Gaussian, Mixture, Poisson

pytestmark = pytest.mark.usefixtures("quick")
KEY = jax.random.key(5)
D = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A workdir with steps 5 and 10, a mixture of two and three latents."""
  config = alone(
    flat,
    model__latent=D,
    posterior__name="mixture",
    posterior__components=2,
  )
  spec = build.train_spec(config)
  folder = tmp_path_factory.mktemp("runs") / "run"
  conftest.save_run(
    folder, config, *(conftest.state_of(spec, s) for s in (0, 1))
  )
  return folder


@pytest.fixture(scope="module")
def model(run):
  return gamix_jax.load(run, batch_size=32)


@pytest.fixture(scope="module")
def images():
  rng = np.random.default_rng(0)
  return rng.uniform(-1, 1, (60, 4, 4, 1)).astype("f4")


def learned(prior, **changes):
  config = alone(
    partial(elbo, flat), prior__name=prior, prior__components=3, **changes
  )
  spec = build.train_spec(config)
  state = conftest.state_of(spec)
  vae = {"params": state.ema, "batch_stats": state.vae.batch_stats}
  return inference.Model(config, spec, 0, vae, {})


# ---------------------------------------------------------- pure samplers


def clusters(n=400):
  """Posteriors around (-4, 0) and (4, 0), three to one, with spread 0.5."""
  rng = np.random.default_rng(1)
  mu = rng.normal(size=(n, 2)) * 0.3
  mu[:, 0] += np.where(np.arange(n) % 4 == 0, 4, -4)
  logvar = np.full((n, 2), 2 * np.log(0.4))
  return Gaussian(*(jnp.asarray(v, jnp.float32) for v in (mu, logvar)))


def test_bic_finds_the_clusters():
  found = samplers.fit(clusters(), 0, "bic", {"step": 3})
  assert found.about["components"] == 2 and found.about["step"] == 3
  assert found.about["covariance"] == "full"
  assert found.about["chosen_by"] == "bic"
  z = samplers.draw_gmm(found.gmm, KEY, 4000)
  right = z[:, 0] > 0
  assert abs(right.mean() - 0.25) < 0.03
  # The spread of q(z); the means have only 0.3.
  np.testing.assert_allclose(z[~right].std(0), 0.5, atol=0.06)
  # Shuffled, so that the first ones come from all components.
  assert 10 < right[:100].sum() < 45
  cold = samplers.draw_gmm(found.gmm, KEY, 50, 0.0)
  off = np.abs(cold[:, None] - found.gmm.means_[None]).max(-1).min(-1)
  assert off.max() < 1e-6
  half = samplers.draw_gmm(found.gmm, KEY, 4000, 0.5)
  half_right = half[:, 0] > 0
  np.testing.assert_allclose(half[~half_right].std(0), 0.25, atol=0.03)


@pytest.mark.slow
def test_the_second_vae_finds_the_clusters(monkeypatch):
  monkeypatch.setattr(two_stage, "STEPS", 800)
  found = samplers.fit(clusters(), 0, 1, {}, second_stage=True)
  assert found.about["two_stage_steps"] == 800
  z = two_stage.draw(found.second, KEY, 4000)
  right = z[:, 0] > 0
  assert abs(right.mean() - 0.25) < 0.1
  np.testing.assert_allclose(z[:, 1].std(), 0.5, atol=0.1)
  # Between them, the Gaussian with the same moments has a third of its mass.
  gaussian = samplers.draw_gmm(found.gmm, KEY, 4000)[:, 0]
  assert np.mean(np.abs(z[:, 0]) < 2) < 0.7 * np.mean(np.abs(gaussian) < 2)
  cold = two_stage.draw(found.second, KEY, 5, 0.0)
  assert np.ptp(cold, axis=0).max() < 1e-5
  # The same seed gives the same weights.
  monkeypatch.setattr(two_stage, "STEPS", 2)
  both = [samplers.fit(clusters(), 3, 1, {}, True).second for _ in range(2)]
  conftest.assert_same(*both)


def test_the_bound_of_the_second_vae():
  """Minus the ELBO against scipy's densities, by many draws."""
  rng = np.random.default_rng(0)
  z = jnp.asarray(rng.normal(size=(4, 2)), jnp.float32)
  model = two_stage.SecondStage(2, width=4)
  params = model.init(KEY, z, KEY)
  params["params"]["log_gamma"] = jnp.asarray(-0.7)

  @conftest.jit
  def parts(params, key):
    bound = model.bind(params)
    q = Gaussian(*jnp.split(bound.encoder(z), 2, axis=-1))
    u, _ = q.sample(key, 4_000)
    losses = jax.vmap(lambda k: bound(z, k))(jax.random.split(key, 4_000))
    return q.mu, q.logvar, u, bound.decoder(u), losses

  mu, logvar, u, x, losses = (
    np.asarray(v, np.float64) for v in parts(params, KEY)
  )
  norm = scipy.stats.norm.logpdf
  ratio = norm(np.asarray(z), x, np.exp(-0.35)) + norm(u)
  ratio -= norm(u, mu, np.exp(logvar / 2))
  each = ratio.sum(-1).mean(1)
  error = 5 * (each.std() + losses.std()) / np.sqrt(len(each))
  assert abs(-each.mean() - losses.mean()) < error


def test_covariances_are_full_where_data_allow():
  q = clusters(15)
  assert samplers.fit(q, 0, 3, {}).about["covariance"] == "full"
  assert samplers.fit(q, 0, 4, {}).about["covariance"] == "diag"
  for wrong in (0, 16, "many", 2.5):
    with pytest.raises(UserError, match=f"components={wrong!r}"):
      samplers.fit(q, 0, wrong, {})


def test_population_draws_have_the_populations_moments():
  rng = np.random.default_rng(2)
  logits, mu, logvar = (
    jnp.asarray(rng.normal(size=shape), jnp.float32)
    for shape in ((6, 2), (6, 2, 2), (6, 2, 2))
  )
  q = Mixture(logits, mu, logvar)
  weights, mu, var = (np.asarray(v, np.float64) for v in q.components())
  n = 40_000
  for temperature in (1.0, 0.3):
    z = samplers.draw_population(q, KEY, n, temperature)
    mean = np.einsum("bk,bkd->d", weights, mu) / 6
    square = mu**2 + temperature**2 * var
    second = np.einsum("bk,bkd->d", weights, square) / 6
    error = 5 * np.sqrt(second / n)
    assert (np.abs(z.mean(0) - mean) < error).all()
    np.testing.assert_allclose(z.var(0), second - mean**2, rtol=0.05)
  cold = samplers.draw_population(q, KEY, 200, 0.0)
  centres = mu.reshape(-1, 2)
  off = np.abs(cold[:, None] - centres[None]).max(-1).min(-1)
  assert off.max() < 1e-6


def test_counts_have_a_population_and_no_mixture():
  log_rate = jnp.log(jnp.asarray([[0.5, 3.0], [2.0, 7.0]]))
  q = Poisson(log_rate, jnp.zeros((2, 2)))
  found = samplers.fit(q, 0, 2, {})
  assert found.gmm is None and "components" not in found.about
  with pytest.raises(UserError, match="two_stage=True is for continuous"):
    samplers.fit(q, 0, 2, {}, second_stage=True)
  z = samplers.draw_population(found.population, KEY, 3000)
  assert (z == np.round(z)).all()
  np.testing.assert_allclose(z.mean(0), [1.25, 5.0], rtol=0.06)
  config = alone(partial(elbo, flat), posterior__name="poisson")
  spec = build.train_spec(config)
  vae = conftest.state_of(spec).vae
  vae = {"params": vae.params, "batch_stats": vae.batch_stats}
  counts = inference.Model(config, spec, 0, vae, {})
  with pytest.raises(UserError, match=r"'gmm'.*'poisson'.*prior, population"):
    counts.draw_latents(KEY, 2, source="gmm")
  with pytest.raises(UserError, match=r"use one of prior, population\."):
    counts.check_source("gmm")


# ---------------------------------------------------------- of a model


def test_samplers_are_kept_and_found(run, images, tmp_path, caplog):
  model = gamix_jax.load(run, batch_size=32)
  assert model.fitted is None
  for source in ("population", "gmm"):
    with pytest.raises(UserError, match=rf"'{source}' needs .*fit_samplers"):
      model.sample(KEY, 2, source=source)
  with pytest.raises(UserError, match=r"'population' needs .*fit_samplers"):
    model.anomaly_score(images, "population")
  about = model.fit_samplers(images, components=3)
  assert about["images"] == 60 and about["components"] == 3
  assert model.fitted == about
  kept = run / "samplers" / "ema_10.npz"
  assert [p.name for p in kept.parent.iterdir()] == [kept.name]
  with np.load(kept) as arrays:  # nothing in it is pickled
    assert json.loads(str(arrays["about"]))["which"] == "ema"
    assert all(arrays[k].dtype != object for k in arrays)

  again = gamix_jax.load(run)
  assert again.fitted == about
  for source in ("population", "gmm"):
    z = again.draw_latents(KEY, 7, source=source)
    assert z.shape == (7, D) and z.dtype == np.float32
    np.testing.assert_array_equal(z, model.draw_latents(KEY, 7, source=source))
    np.testing.assert_allclose(
      again.sample(KEY, 7, source=source), model.decode(z), atol=1e-5
    )
  # Scipy's density of the stored mixture.
  mean = np.asarray(again.encode(images).mean(), np.float64)
  with np.load(kept) as arrays:
    names = ("gmm_weights_", "gmm_means_", "gmm_covariances_")
    parts = list(zip(*(arrays[k] for k in names), strict=True))
  density = sum(
    w * scipy.stats.multivariate_normal(m, c).pdf(mean) for w, m, c in parts
  )
  np.testing.assert_allclose(
    again.anomaly_score(images, "population"), -np.log(density), rtol=1e-6
  )
  # Other weights have no fit.
  assert gamix_jax.load(run, "raw").fitted is None
  assert gamix_jax.load(run, step=5).fitted is None
  other = run / "samplers" / "ema_5.npz"
  other.write_bytes(kept.read_bytes())
  with caplog.at_level(logging.WARNING):
    assert gamix_jax.load(run, step=5).fitted is None
  assert "other weights" in caplog.text
  other.write_bytes(kept.read_bytes()[:-40])
  assert gamix_jax.load(run, step=5).fitted is None
  assert "damaged" in caplog.text
  for damaged in damages(kept.read_bytes(), 50):
    other.write_bytes(damaged)
    assert gamix_jax.load(run, step=5).fitted is None
  other.unlink()


def test_the_second_vae_is_kept_and_found(run, images, monkeypatch):
  monkeypatch.setattr(two_stage, "STEPS", 2)
  model = gamix_jax.load(run, "raw", step=5, batch_size=32)
  model.fit_samplers(images, components=2)
  assert "two_stage_steps" not in model.fitted
  with pytest.raises(UserError, match="two_stage=True"):
    model.draw_latents(KEY, 2, source="two_stage")
  fitting = partial(ensure_fitted, model, "two_stage", say=lambda line: None)
  train = [{"image": x, "label": 0} for x in images]
  monkeypatch.setattr(data, "open_dataset", lambda *args: train)
  fitting()  # of as many images and components as before
  about = model.fitted
  assert [about[k] for k in ("images", "components", "two_stage_steps")] == [
    *(60, 2, 2),
  ]
  kept = run / "samplers" / "raw_5.npz"
  written = kept.stat().st_mtime_ns
  fitting()
  assert kept.stat().st_mtime_ns == written
  z = model.draw_latents(KEY, 7, source="two_stage")
  assert z.shape == (7, D) and z.dtype == np.float32
  again = gamix_jax.load(run, "raw", step=5)
  np.testing.assert_array_equal(
    again.draw_latents(KEY, 7, source="two_stage"), z
  )
  assert again.sample(KEY, 2, source="two_stage").shape == (2, 4, 4, 1)
  kept.unlink()


def test_samplers_are_written_whole_or_not_at_all(run, images):
  model = gamix_jax.load(run, "raw", batch_size=32)
  folder = run / "samplers"
  folder.mkdir(exist_ok=True)
  (folder / f"{PART}{os.getpid()}-raw_10.npz").symlink_to("/dev/full")
  with pytest.raises(UserError, match="No space"):
    model.fit_samplers(images, components=1)
  assert not [p.name for p in folder.iterdir() if "raw" in p.name]
  assert model.fitted is None


def test_pseudo_inputs_and_other_sources(model):
  vamp = learned("vamp", model__latent=2)
  z = vamp.draw_latents(KEY, 3000, source="vamp")
  np.testing.assert_array_equal(z, vamp.draw_latents(KEY, 3000))
  prior = vamp.spec.vae.apply(vamp.variables["vae"], method="learned_prior")
  weights, mu, var = (np.asarray(v, np.float64)[0] for v in prior.components())
  mean = weights @ mu
  spread = weights @ (var + mu**2) - mean**2
  np.testing.assert_allclose(z.mean(0), mean, atol=5 * spread.max() ** 0.5 / 50)
  np.testing.assert_allclose(z.var(0), spread, rtol=0.12)
  with pytest.raises(
    UserError, match=r"'vamp'.*'normal'.*prior, population, gmm, two_stage\."
  ):
    model.sample(KEY, 2, source="vamp")
  with pytest.raises(
    UserError, match="'best' must be one of prior, population"
  ):
    model.sample(KEY, 2, source="best")


# ---------------------------------------------------------- ways


def test_spherical_paths_turn_evenly_and_keep_length():
  between = inference.model.latents.between
  a, b = np.array([2.0, 0, 0]), np.array([0, 3.0, 0])
  way = between(a, b, 7, "spherical")
  np.testing.assert_allclose(way[[0, -1]], [a, b], atol=1e-12)
  np.testing.assert_allclose(
    np.linalg.norm(way, axis=1), np.linspace(2, 3, 7), rtol=1e-12
  )
  turned = np.degrees(np.arctan2(way[:, 1], way[:, 0]))
  np.testing.assert_allclose(turned, np.linspace(0, 90, 7), atol=1e-9)
  for other in (2 * a, -a, 0 * a):  # no arc
    np.testing.assert_array_equal(
      between(a, other, 4, "spherical"), np.linspace(a, other, 4)
    )
  with pytest.raises(UserError, match="'curved' must be one of straight"):
    between(a, b, 3, "curved")


def test_interpolate_and_components(model, images):
  q = model.encode(images[:2])
  ends = np.asarray(q.mean(), np.float64)
  z = inference.model.latents.between(*ends, 5, "spherical")
  way = model.interpolate(images[0], images[1], 5, path="spherical")
  np.testing.assert_allclose(way, model.decode(z), atol=1e-5)
  weights, shown = model.components(images[1])
  wanted, mu, _ = q.components()
  np.testing.assert_allclose(weights, wanted[1], rtol=1e-5)
  np.testing.assert_allclose(shown, model.decode(mu[1]), atol=1e-5)
  with pytest.raises(UserError, match="one image; 2 were given"):
    model.components(images[:2])


def test_traverse(model, images):
  q = model.encode(images[3])
  z, w = q.sample(KEY, 20_000)
  z, w = (np.asarray(v, np.float64)[:, 0] for v in (z, w))
  mean = w @ z
  std = np.sqrt(w @ (z - mean) ** 2)  # the mixture's, by samples
  around = partial(inference.model.latents.around, q)
  line = around(1, 2.0, 5)
  np.testing.assert_allclose(line[2], np.asarray(q.mean())[0], rtol=1e-6)
  np.testing.assert_allclose((line[-1] - line[2])[1], 2 * std[1], rtol=0.03)
  assert (line[:, [0, 2]] == line[2, [0, 2]]).all()
  square = around((2, 1), 2.0, 5)
  np.testing.assert_array_equal(square[2], line)
  np.testing.assert_array_equal(square[:, 2], around(2, 2.0, 5))
  shown = model.traverse(images[3], (2, 1), span=2.0, steps=5)
  assert shown.shape == (5, 5, 4, 4, 1)
  np.testing.assert_allclose(shown, model.decode(square), atol=1e-5)
  assert model.traverse(images[3], 0).shape == (7, 4, 4, 1)
  for dims, words in (
    (3, "0 to 2"),
    (-1, "0 to 2"),
    ((0, 0), "two different"),
    ((0, 1, 2), "two different"),
    ((), "two different"),
    (0.5, "one latent"),
    ("0", "one latent"),
  ):
    with pytest.raises(UserError, match=words):
      model.traverse(images[3], dims)
  for wrong in (dict(span=0), dict(span=np.inf), dict(steps=1)):
    with pytest.raises(UserError, match=r"span=.* steps="):
      model.traverse(images[3], 0, **wrong)


# ---------------------------------------------------------- scores, maps


def test_anomaly_score_by_reconstruction(model, images):
  raw = model.decode(model.encode(images).mean(), raw=True)
  wanted = np.abs(images - raw).mean((1, 2, 3))
  found = model.anomaly_score(images)
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  one = model.anomaly_score(images[0])
  np.testing.assert_allclose(one, wanted[:1], rtol=1e-4)
  with pytest.raises(UserError, match="'looks' must be one of reconstruction"):
    model.anomaly_score(images, "looks")


def test_latent_map(model, images, monkeypatch):
  mean = np.asarray(model.encode(images).mean(), np.float64)
  centred = mean - mean.mean(0)
  _, _, axes = np.linalg.svd(centred, full_matrices=False)
  wanted = centred @ axes[:2].T
  found = model.latent_map(images)
  sign = np.sign((found * wanted).sum(0))
  np.testing.assert_allclose(found, sign * wanted, atol=1e-5)
  few = model.latent_map(images[:12], "tsne", seed=3)
  assert few.shape == (12, 2) and np.isfinite(few).all()
  np.testing.assert_array_equal(few, model.latent_map(images[:12], "tsne", 3))
  monkeypatch.setitem(sys.modules, "umap", None)
  for method, n, words in (
    ("umap", 9, "pip install umap-learn"),
    ("lda", 9, "'lda' must be one of pca, tsne, umap"),
    ("pca", 3, "4 images"),
  ):
    with pytest.raises(UserError, match=words):
      model.latent_map(images[:n], method)

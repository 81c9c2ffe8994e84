"""Incomplete images: what is hidden, what depends on it, how it is judged."""

import functools
import itertools

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from conftest import alone, elbo, flat, jit, modalities, output, run_of

import gamix_jax
from gamix_jax import build, metrics, objectives, occlusion, plots, step
from gamix_jax import config as configs
from gamix_jax.errors import UserError
from gamix_jax.evaluate import completions, eval_inputs, settings
from gamix_jax.evaluate.eval_inputs import EvalInputs, Features, Images
from gamix_jax.evaluate.results import Results
from gamix_jax.export import signatures
from gamix_jax.generate import renderers, select_images
from gamix_jax.posterior import Gaussian, Mixture

pytestmark = pytest.mark.usefixtures("quick")
SHAPE = (5, 7, 1)
MIXTURE = dict(
  data__occlude="box", posterior__name="mixture", posterior__components=3
)


def occluded(**changes):
  return alone(functools.partial(elbo, flat), **(MIXTURE | changes))


def hide(x, hidden, value=0.0):
  """As `occlusion.hide`, by slices."""
  x = np.array(x, np.float32)
  for image, (top, left, height, width) in zip(x, hidden, strict=True):
    image[top : top + height, left : left + width] = value
  return x


# ---------------------------------------------------------- rectangles


@pytest.mark.parametrize("kind", ["half", "box"])
def test_every_place_is_equally_likely(kind):
  h, w, _ = SHAPE
  if kind == "half":
    places = [(0, 0, 2, 7), (2, 0, 3, 7), (0, 0, 5, 3), (0, 3, 5, 4)]
  else:
    corners = itertools.product(range(h - 2 + 1), range(w - 3 + 1))
    places = [(*corner, 2, 3) for corner in corners]
  rows = jnp.arange(200 * len(places))
  found = occlusion.draw_rows(kind, jax.random.key(1), rows, SHAPE)
  each, counts = np.unique(np.asarray(found), axis=0, return_counts=True)
  assert sorted(map(tuple, each.tolist())) == sorted(places)
  assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_hidden_pixels_are_grey():
  rng = np.random.default_rng(0)
  x = rng.uniform(-1, 1, (6, *SHAPE)).astype(np.float32)
  key, rows = jax.random.key(0), jnp.arange(6)
  hidden = np.array(occlusion.draw_rows("box", key, rows, SHAPE))
  hidden[0] = 0  # nothing
  np.testing.assert_array_equal(occlusion.hide(x, hidden), hide(x, hidden))
  mask = np.asarray(occlusion.mask(hidden, SHAPE))
  np.testing.assert_array_equal(mask, hide(np.zeros_like(x), hidden, 1.0))


# ---------------------------------------------------------- training


def test_only_the_target_is_whole():
  """Other values of hidden pixels change the error and not the posterior."""
  run = run_of(occluded())
  key = jax.random.fold_in(run.spec.key(run.state.step), step.HIDDEN_KEY)
  hidden = np.asarray(run.spec.occluded(run.batch, key=key)["hidden"])
  x = np.asarray(run.batch["image"])
  outcomes = []
  for value in (-1.0, 1.0):
    batch = {"image": jnp.asarray(hide(x, hidden, value))}
    outcomes.append(run.step(run.state, batch)[1])
  low, high = outcomes
  for name in ("posterior/kl", "posterior/mean_var", "vae/kl"):
    assert low[name] == high[name], name
  assert low["vae/recon"] != high["vae/recon"]
  visible = {"image": jnp.asarray(np.where(hide(x, hidden) == x, -x, x))}
  other = run.step(run.state, visible)[1]
  assert other["posterior/kl"] != low["posterior/kl"]


def test_what_is_hidden_depends_on_seed_and_step():
  spec = build.train_spec(occluded())
  batch = {"image": np.zeros((8, 4, 4, 1), np.uint8)}

  def hidden(seed, at):
    key = jax.random.fold_in(jax.random.key(seed), at)
    return np.asarray(spec.occluded(batch, key=key)["hidden"]).tolist()

  assert hidden(0, 3) == hidden(0, 3)
  assert hidden(0, 3) != hidden(0, 4)
  assert hidden(0, 3) != hidden(1, 3)
  whole = build.train_spec(occluded(data__occlude="none"))
  assert whole.occluded(batch) is batch


def test_rows_of_held_out_images_do_not_depend_on_the_batch():
  spec = build.train_spec(occluded(data__occlude="half"))
  of = {n: {"image": np.zeros((n, 4, 4, 1), np.uint8)} for n in (3, 12)}
  parts = [spec.occluded(of[3], i)["hidden"] for i in range(4)]
  whole = np.asarray(spec.occluded(of[12])["hidden"])
  np.testing.assert_array_equal(np.concatenate(parts), whole)
  np.testing.assert_array_equal(spec.hidden(np.array([7, 2])), whole[[7, 2]])


# ---------------------------------------------------------- inference


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  config = occluded(model__latent=3, data__source="digits")
  folder = tmp_path_factory.mktemp("occluded") / "run"
  state = conftest.state_of(build.train_spec(config))
  conftest.save_run(folder, config, state)
  return folder


@pytest.fixture(scope="module")
def model(folder):
  return gamix_jax.load(folder, batch_size=4)


@pytest.fixture(scope="module")
def images():
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (10, 4, 4, 1)).astype(np.uint8)


def test_a_model_encodes_what_it_sees(model, images):
  hidden = model.hidden(np.arange(10))
  seen = hide(images / 127.5 - 1, hidden)
  np.testing.assert_allclose(model.seen(images), seen, atol=1e-6)
  q, nothing = model.encode(images), np.zeros((10, 4), np.int32)
  conftest.assert_close(q, model.encode(seen, nothing), rtol=1e-5)
  conftest.assert_close(q, model.encode(images, hidden), rtol=1e-5)
  assert not np.allclose(q.mean(), model.encode(images, nothing).mean())
  of_three = jax.tree.map(lambda v: v[:3], q)
  conftest.assert_close(model.encode(images[:3]), of_three, rtol=1e-5)
  for wrong in (nothing[:3], nothing.astype(float), nothing + 4):
    with pytest.raises(UserError, match="hidden has"):
      model.encode(images, wrong)


def test_bounds_are_of_the_whole_image(model, images):
  """ln p(x) of the whole image, with draws of q of the incomplete one."""
  x = images[:2] / np.float32(127.5) - 1
  q = model.encode(x)
  got = model.bounds(x, 3_000)
  z, w = jit(q.sample, static_argnums=1)(jax.random.key(5), 3_000)
  x_hat = model.decode(np.asarray(z), raw=True)
  weight = model.config.weights.recon
  log_p = -weight * np.abs(x - x_hat).mean((2, 3, 4))
  log_p -= 16 * np.log(2 * 16 / weight)
  log_ratio = log_p + scipy.stats.norm.logpdf(z).sum(-1) - q.log_prob(z)
  elbo_ = np.sum(w * log_ratio, axis=0)
  # The weight of `small` is 5,000, so that single draws differ by hundreds.
  np.testing.assert_allclose(got["elbo"], elbo_, rtol=0.02)


@pytest.mark.slow
def test_completions_are_draws(model, images):
  z = np.asarray(model.encode(images).independent(jax.random.key(3), 5))
  got = model.complete(images, 5, key=jax.random.key(3))
  np.testing.assert_array_equal(got, model.decode(z))
  assert model.complete(images[0], 2).shape == (2, *images.shape[1:])
  with pytest.raises(UserError, match="n=0"):
    model.complete(images, 0)


@pytest.mark.slow
def test_an_exported_encoder_hides_nothing(model):
  """Its user has incomplete images."""
  part = signatures.part(model, "encoder")
  x = part.probe(4)["x"]
  conftest.assert_close(part.function(x), part.model(x), rtol=1e-5)


def test_independent_draws_have_the_mixtures_moments():
  rng = np.random.default_rng(0)
  logits, mu = rng.normal(size=(2, 3)), 2 * rng.normal(size=(2, 3, 4))
  q = Mixture(*map(jnp.asarray, (logits, mu, 0.1 * rng.normal(size=mu.shape))))
  n = 40_000
  z = np.asarray(q.independent(jax.random.key(0), n), np.float64)
  var = np.asarray(metrics.total_variance(q))
  off = (z.mean(0) - np.asarray(q.mean())) / np.sqrt(var / n)
  assert np.abs(off).max() < 4.5
  np.testing.assert_allclose(z.var(0), var, rtol=0.05)
  # Draws of different numbers are of different components.
  lag = np.mean((z[1:] - z.mean(0)) * (z[:-1] - z.mean(0)), axis=0) / var
  assert np.abs(lag).max() < 4.5 / np.sqrt(n)
  one = Gaussian(q.mu[:, 0], q.logvar[:, 0])
  z = np.asarray(one.independent(jax.random.key(0), n))
  np.testing.assert_allclose(z.var(0), np.exp(one.logvar), rtol=0.05)


# ---------------------------------------------------------- pictures


@pytest.mark.slow
def test_a_picture_of_completions(folder, model, tmp_path, monkeypatch):
  shown = []
  monkeypatch.setattr(
    plots, "image_grids", lambda path, grids, *words: shown.extend(grids)
  )
  asked = dict(n=2, images=("7", "0"), seed=3)
  renderers.make(str(folder), "completions", str(tmp_path / "a.png"), **asked)
  x, _ = select_images.images(model.config, ("7", "0"))
  drawn = model.complete(x, 2, key=jax.random.key(3))
  assert [g.images.shape for g in shown] == [(1, 7, 4, 4, 1)] * 2
  for i, grid in enumerate(shown):
    whole, seen, *_, first, second = grid.images[0]
    np.testing.assert_allclose(whole, x[i] / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(seen, model.seen(x)[i], atol=1e-6)
    np.testing.assert_allclose([first, second], drawn[:, i], atol=1e-5)
    weights = np.asarray(model.encode(x).components()[0])[i]
    assert list(grid.columns[2:5]) == [f"{v:.2f}" for v in weights]


def test_a_model_of_whole_images_has_no_completions(tmp_path):
  config = occluded(data__occlude="none", data__source="digits")
  state = conftest.state_of(build.train_spec(config))
  conftest.save_run(tmp_path / "run", config, state)
  with pytest.raises(UserError, match=r"data\.occlude=half or box"):
    renderers.make(
      str(tmp_path / "run"),
      "completions",
      str(tmp_path / "a.png"),
      **dict(n=None, images=None, seed=0),
    )


# ---------------------------------------------------------- what is refused


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(data__occlude="left"), "must be one of none, half, box"),
    (
      dict(data__occlude="half", data__modalities=("m0 4x4x1 l1",)),
      "is for images; of several modalities",
    ),
  ],
)
def test_refused(changes, message):
  with pytest.raises(UserError, match=message):
    configs.check(flat(**changes))


# ---------------------------------------------------------- the objective


def test_gamix_with_the_mixtures_likelihood():
  """Against scipy in float64; one draw of one component is `gamix`."""
  rng = np.random.default_rng(0)
  x = rng.uniform(-1, 1, (4, 3, 3, 1))
  x_hat = rng.normal(size=(6, *x.shape))
  w = rng.dirichlet(np.ones(6), 4).T
  shape = modalities("l2", x.shape[1:])
  mixture = objectives.GamixMixture(shape, recon_weight=20.0)
  plain = objectives.Gamix(shape, recon_weight=20.0)
  each = np.square(x - x_hat).mean((2, 3, 4))
  want = -scipy.special.logsumexp(-20 * each, axis=0, b=w).mean() / 20

  def recon(objective, x_hat, w):
    x_hat, w = (jnp.asarray(v, jnp.float32) for v in (x_hat, w))
    return float(objective.recon(output(jnp.asarray(x), None, None, w, x_hat)))

  assert recon(mixture, x_hat, w) == pytest.approx(want, rel=1e-5)
  assert recon(mixture, x_hat, w) < recon(plain, x_hat, w)
  one = x_hat[:1], np.ones((1, 4))
  assert recon(mixture, *one) == pytest.approx(recon(plain, *one), rel=1e-6)


def test_the_population_is_of_the_components_that_were_right():
  """Their shares of the likelihood, in float64; two draws of each component."""
  rng = np.random.default_rng(0)
  x = rng.uniform(-1, 1, (5, 2, 2, 1))
  x_hat = rng.normal(size=(6, *x.shape))
  logits, mu, logvar = (rng.normal(size=(5, 3, *d)) for d in ((), (4,), (4,)))
  q = Mixture(*(jnp.asarray(v, jnp.float32) for v in (logits, mu, logvar)))
  pi = scipy.special.softmax(logits, axis=1)
  w = np.concatenate([pi.T, pi.T]) / 2
  error = np.square(x - x_hat).mean((2, 3, 4))
  share = scipy.special.softmax(np.log(w) - 9 * error, axis=0)
  share = share[:3] + share[3:]
  shape = modalities("l2", x.shape[1:])
  mixture = objectives.GamixMixture(shape, 2, 9.0, population="means")
  arrays = [jnp.asarray(v, jnp.float32) for v in (x, w, x_hat)]
  given = output(arrays[0], q, None, arrays[1], arrays[2])
  terms, _, _ = jit(lambda: mixture(given, {}))()
  mean = np.einsum("kb,bkd->d", share, mu) / 5
  var = np.einsum("kb,bkd->d", share, np.square(mu - mean)) / 5
  kl = 0.5 * np.sum(np.square(mean) + var - 1 - np.log(var))
  assert float(terms["population_kl"]) == pytest.approx(kl, rel=1e-4)
  each = 0.5 * np.sum(np.exp(logvar) - 1 - logvar, axis=-1)
  penalty = np.sum(share.T * each) / 5
  assert float(terms["collapse_penalty"]) == pytest.approx(penalty, rel=1e-4)


def test_only_the_mixtures_likelihood_keeps_two_guesses_apart():
  """Two images look the same to the encoder; two components may guess.

  Under the components' mean error both guess the same and one takes all of the
  weight; under the mixture's likelihood each guesses one of the images.
  """
  x = jnp.asarray([[[[-1.0]]], [[[1.0]]]])
  shape = modalities("l2", (1, 1, 1))

  def fitted(objective):
    def loss(guess):
      logits, values = guess
      shaped = values[:, None, None, None, None]
      x_hat = jnp.broadcast_to(shaped, (2, 2, 1, 1, 1))
      w = jnp.broadcast_to(jax.nn.softmax(logits)[:, None], (2, 2))
      return 20 * objective.recon(output(x, None, None, w, x_hat))

    gradient = jit(jax.grad(loss))
    guess = jnp.zeros(2), jnp.asarray([-0.1, 0.2])
    for _ in range(500):
      guess = jax.tree.map(lambda v, g: v - 0.02 * g, guess, gradient(guess))
    return jax.nn.softmax(guess[0]), guess[1]

  weights, values = fitted(objectives.Gamix(shape, recon_weight=20.0))
  np.testing.assert_allclose(values, [0, 0], atol=0.05)
  weights, values = fitted(objectives.GamixMixture(shape, recon_weight=20.0))
  np.testing.assert_allclose(values, [-1, 1], atol=0.05)
  np.testing.assert_allclose(weights, [0.5, 0.5], atol=0.02)


# ---------------------------------------------------------- judging


def completed(seed=0, s=4, n=3):
  rng = np.random.default_rng(seed)
  x = rng.uniform(-1, 1, (n, *SHAPE))
  hidden = np.zeros((n, *SHAPE[:2], 1))
  for i in range(n):
    hidden[i, : i + 1, 2:4] = 1
  return x, rng.uniform(-1, 1, (s, n, *SHAPE)), hidden


def test_completion_errors():
  x, x_hat, hidden = completed()
  got = metrics.completion_errors(x, x_hat, hidden)
  for i in range(3):
    inside = hidden[i] > 0
    error = np.abs(x_hat[:, i] - x[i])
    each = error[:, inside].mean(axis=1)
    assert got["completion_mae"][i] == pytest.approx(each.mean())
    assert got["completion_mae_best"][i] == pytest.approx(each.min())
    visible = error[:, ~inside].mean()
    assert got["visible_mae"][i] == pytest.approx(visible)


def test_diversity():
  _, x_hat, hidden = completed()
  w = np.random.default_rng(1).dirichlet(np.ones(4), 3).T
  w[:, 2] = [1, 0, 0, 0]
  got = metrics.diversity(x_hat, w, hidden)
  for i in range(2):
    total = pairs = 0
    for a, b in itertools.permutations(range(4), 2):
      both = w[a, i] * w[b, i]
      differ = np.abs(x_hat[a, i] - x_hat[b, i])[hidden[i] > 0].mean()
      total, pairs = total + both * differ, pairs + both
    assert got[i] == pytest.approx(total / pairs)
  assert got[2] == 0


def test_effective_number():
  classes = np.array([[3, 0], [3, 1], [3, 1], [3, 2]])
  w = np.array([[0.25, 0.5], [0.25, 0.1], [0.25, 0.2], [0.25, 0.2]])
  got = metrics.effective_number(classes, w)
  entropy = scipy.stats.entropy([0.5, 0.3, 0.2])
  np.testing.assert_allclose(got, [1, np.exp(entropy)])


class ByBrightness:
  """A classifier: 0 for a dark image, 1 for a bright one."""

  name = "brightness"

  def with_classes(self, x):
    return None, (x.mean((1, 2, 3)) > 0).astype(int)


def test_completions_are_measured(model, images, monkeypatch):
  """Against a loop over images; the same in parts as at once."""
  labels = (np.arange(10) % 2).astype(np.int64)
  eval_settings = settings.base().eval.copy_and_resolve_references()
  eval_settings.completions, eval_settings.bound_images = 6, 9
  inputs = EvalInputs(
    model,
    eval_settings,
    Features(ByBrightness(), {}),
    Images(images, labels, 10),
  )
  monkeypatch.setattr(completions, "CHUNK", 4)
  numbers = Results({})
  completions.measure(inputs, jax.random.key(1), numbers)
  q = model.encode(images)
  hidden = model.hidden(np.arange(10))
  each = {k: [] for k in ("mae", "best", "right", "covers")}
  for start in (0, 4, 8):
    rows = slice(start, min(start + 4, 9))
    own = jax.tree.map(lambda v, rows=rows: v[rows], q)
    key = jax.random.fold_in(jax.random.key(1), start)
    drawn = model.decode(np.asarray(own.independent(key, 6)))
    for j, i in enumerate(range(rows.start, rows.stop)):
      top, left, height, width = hidden[i]
      inside = (slice(top, top + height), slice(left, left + width))
      error = np.abs(drawn[:, j] - (images[i] / 127.5 - 1))
      of_draws = error[:, *inside].mean((1, 2, 3))
      right = (drawn[:, j].mean((1, 2, 3)) > 0) == labels[i]
      each["mae"].append(of_draws.mean())
      each["best"].append(of_draws.min())
      each["right"].append(right.mean())
      each["covers"].append(right.any())
  for name, key in (
    ("completion_mae", "mae"),
    ("completion_mae_best", "best"),
    ("completion_right", "right"),
    ("completion_covers", "covers"),
  ):
    value = numbers.found[name]["value"]
    assert value == pytest.approx(np.mean(each[key]), rel=1e-5), name
  found = numbers.values
  assert 1 <= found["component_classes"] <= 2
  assert found["component_diversity"] > 0
  assert found["completion_diversity"] > 0
  assert numbers.found["completion_mae"]["protocol"] == {
    "images": 9,
    "completions": 6,
  }


@pytest.mark.slow
def test_without_a_classifier_there_are_no_classes(model, images):
  eval_settings = settings.base().eval.copy_and_resolve_references()
  eval_settings.completions = 2
  labels = np.full(10, -1)
  inputs = EvalInputs(
    model, eval_settings, Features(None, {}), Images(images, labels, 10)
  )
  numbers = Results({})
  completions.measure(inputs, jax.random.key(1), numbers)
  for name in ("completion_right", "component_classes"):
    assert numbers.found[name]["value"] is None
  assert numbers.found["visible_mae"]["value"] > 0


def test_components_in_use():
  """Two images with one component each: one an image, two in use."""
  weights = np.array([[1.0, 0, 0], [0, 1, 0]])
  got = metrics.mixture_report(weights, np.ones((2, 3, 4)))
  assert got["effective_components"] == 1
  assert got["components_in_use"] == pytest.approx(2)


def test_images_of_excluded_classes_are_apart():
  config = flat(data__source="digits", data__exclude_labels=(3, 8))
  test = gamix_jax.data.open_dataset(config.data, "test")
  known, unseen = eval_inputs.known_and_unseen(test)
  labels = test.labels()
  assert sorted([*known, *unseen]) == list(range(len(test)))
  assert set(labels[unseen]) == {3, 8}
  assert not set(labels[known]) & {3, 8}
  assert eval_inputs.excluded_names(test) == ["3", "8"]
  spread = eval_inputs.spread_images(test, 20, unseen)
  assert len(spread) == 20
  assert set(spread.labels) == {3, 8}

"""Evaluations on few images, few classes, identical images.

Every metric has a value or a reason why not; report and file always exist.
"""

import json
import math

import numpy as np
import pytest
from conftest import FLAT, elbo, save_run, small, state_of

import gamix_jax
from gamix_jax import build
from gamix_jax.errors import UserError
from gamix_jax.evaluate import eval_inputs, report, run_metrics, settings
from gamix_jax.explore import view
from gamix_jax.generate import renderers

pytestmark = pytest.mark.usefixtures("quick")

QUICK = dict(images=16, train_images=64, bound_images=16, draws=2)


def noise(n, side=8, same=False):
  x = np.random.default_rng(n).integers(0, 256, (n, side, side, 1), np.uint8)
  return np.full_like(x, 99) if same else x


def make(folder, test, train, labels=None, **changes):
  """Writes a workdir of an untrained model on these images."""
  folder.mkdir(parents=True)
  arrays = {"x_train": train, "x_test": test}
  for name in ("train", "test") if labels else ():
    arrays[f"y_{name}"] = np.arange(len(arrays[f"x_{name}"])) % labels
  np.savez(folder / "data.npz", **arrays)
  c = elbo(small, data__image_size=train.shape[1], **changes)
  c.data.source, c.data.cache = f"npz:{folder}/data.npz", "none"
  save_run(folder / "run", c, state_of(build.train_spec(c)))
  return folder / "run"


def judged(run, **own):
  """Returns the results and the report, as the command writes them."""
  e = settings.base()
  e.eval.update(QUICK | own)
  settings.check(e)
  measured = run_metrics.evaluate(eval_inputs.open_run(run, e.eval))
  report.write(run / "eval", measured)
  text = (run / "eval" / "metrics.json").read_text()
  assert "NaN" not in text and "Infinity" not in text
  numbers = json.loads(text)["numbers"]
  for name, number in numbers.items():
    if number["value"] is None:
      assert len(number["reason"]) > 10 and "nan" not in number["reason"], name
    else:
      assert math.isfinite(number["value"]), name
      assert "reason" not in number, name
    assert number.get("error", 0.0) is not None, name
  report_text = (run / "eval" / "report.md").read_text()
  for name, number in numbers.items():
    if number["value"] is None:
      assert (
        f"`{name}`" in report_text
        and number["reason"].rstrip(".") in report_text
      )
  assert ".." not in report_text.replace("../", "")
  return numbers, report_text


def defined(numbers):
  return {k for k, v in numbers.items() if v["value"] is not None}


@pytest.fixture(scope="module")
def all_metrics(tmp_path_factory):
  """Returns the names of all metrics: those of sixteen images."""
  run = make(tmp_path_factory.mktemp("few") / "16", noise(16), noise(40))
  return judged(run)[0]


@pytest.mark.parametrize(
  "n", [1, 4, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3, 8))]
)
def test_few_images(all_metrics, tmp_path, n):
  numbers, report_text = judged(make(tmp_path / "a", noise(n), noise(40)))
  assert set(numbers) == set(all_metrics)
  distances = {k.split("_")[0] for k in defined(numbers)}
  assert ("fd" in distances) == (n >= 2)
  assert ("kd" in distances) == (n >= 3)
  assert ("precision" in distances) == (n >= 6)
  assert ("under 2,048" in report_text) == (n >= 2)  # if there are distances
  assert (numbers["active_units"]["value"] is None) == (n == 1)
  assert ("error" in numbers["mae"]) == (n > 1)
  assert numbers["mutual_information"]["value"] <= math.log(n) + 1e-6
  kl = numbers["population_kl_gaussian"]
  if n <= 4:
    assert "more images than latents" in kl["reason"]
  else:
    assert kl["value"] > 0


def test_samples_that_are_noise(tmp_path):
  """An untrained model's samples are more than flat images have of it."""
  for same in (False, True):
    images = noise(8, same=same), noise(40, same=same)
    _, report_text = judged(make(tmp_path / str(same), *images))
    assert ("Samples (prior) vary more from pixel" in report_text) == same


@pytest.mark.parametrize("train", [1, 9])
def test_few_training_images(all_metrics, tmp_path, train):
  """With one image no sampler is fitted; with few, a single Gaussian."""
  numbers, _ = judged(make(tmp_path / "a", noise(8), noise(train)))
  there = {k for k in all_metrics if "training_images" not in k or train >= 8}
  assert set(numbers) == there
  for source in ("population", "gmm"):
    found = numbers[f"sharpness_{source}"]
    assert (found["value"] is None) == (train == 1)
    if train == 1:
      assert "at least 2 images" in found["reason"]


@pytest.mark.parametrize("labels", [1, 8])
def test_labels(tmp_path, labels):
  """One class is not enough; one image per class."""
  numbers, _ = judged(
    make(tmp_path / "a", noise(1), noise(8), labels),
    sources=("prior",),
    features="random",
  )
  for name in ("linear_probe", "knn", "majority_class"):
    if labels == 1:
      assert "no labels of two classes" in numbers[name]["reason"]
    else:
      assert numbers[name]["value"] in (0, 1)
      assert "error" not in numbers[name]  # a single image


def test_images_that_are_all_the_same(all_metrics, tmp_path):
  train, test = noise(40, same=True), noise(8, same=True)
  numbers, _ = judged(make(tmp_path / "a", test, train))
  assert set(numbers) == set(all_metrics)
  assert numbers["sharpness_images"]["value"] == 0
  assert numbers["active_units"]["value"] == 0
  assert numbers["mae"]["error"] == pytest.approx(0, abs=1e-6)


def test_images_too_small_for_features(tmp_path):
  """Distances have a reason, under the feature's own names."""
  run = make(tmp_path / "a", noise(4, 4), noise(40, 4), **FLAT_NETWORK)
  numbers, report_text = judged(run)
  for name in ("fd_reconstructions", "fd_prior", "kd_gmm", "precision_prior"):
    assert "8x8 or more" in numbers[name]["reason"]
  assert "under 2,048" not in report_text


FLAT_NETWORK = {k: v for k, v in FLAT.items() if k.startswith("model")}


KINDS = {
  "reconstructions": dict(n=None, images=None),
  "traversal": dict(images=None, dims=None, span=20.0, steps=3),
  "components": dict(images=None),
  "samples": dict(n=3),
  "walk": dict(n=1, images=None, steps=2, stops=2, fps=9.0),
}
NEW = dict(
  source="population",
  temperature=1.0,
  seed=0,
  fit_images=None,
  components=None,
)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "same"), [(1, False), (2, True)])
def test_pictures_of_few_images(tmp_path, n, same):
  run = make(
    tmp_path / "a",
    noise(n, same=same),
    noise(6, same=same),
    posterior__name="mixture",
    posterior__components=2,
  )
  for what, asked in KINDS.items():
    out = tmp_path / f"{what}.{'gif' if what == 'walk' else 'png'}"
    new = NEW if what in ("samples", "walk") else {}
    renderers.make(str(run), what, str(out), **asked, **new)
    assert out.stat().st_size > 100
  with pytest.raises(UserError, match="A map needs at least 4 images"):
    renderers.make(
      str(run), "map", f"{tmp_path}/m.png", n=None, method="pca", seed=0
    )


def test_a_map_and_a_page_of_images_that_are_all_the_same(tmp_path):
  run = make(tmp_path / "a", noise(4, same=True), noise(6))
  for method in ("pca", "tsne"):
    out = tmp_path / f"{method}.png"
    renderers.make(str(run), "map", str(out), n=None, method=method, seed=0)
    assert out.stat().st_size > 100
  model = gamix_jax.load(run)
  page = view.View(model, view.held_out(model))
  assert page.map(page.place(page.mu[0])).shape == (640, 640, 3)
  assert np.isfinite(page.at(3, 5)).all()


def test_one_image_is_no_page(tmp_path):
  model = gamix_jax.load(make(tmp_path / "a", noise(1), noise(6)))
  with pytest.raises(UserError, match="needs 2 held-out images"):
    view.View(model, view.held_out(model))


def test_rates(tmp_path):
  """Discrete codes have a sparseness; of one image, in part."""
  numbers, report_text = judged(
    make(tmp_path / "a", noise(1), noise(40), posterior__name="poisson"),
    sources=("prior",),
  )
  assert numbers["population_sparseness"]["value"] > 0
  assert "one image" in numbers["lifetime_sparseness"]["reason"]
  assert "`population_sparseness`" in report_text

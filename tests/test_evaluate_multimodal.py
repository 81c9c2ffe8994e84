"""Judging models of several modalities: against models that are made up.

Blocks are images whose class is where they are bright. An oracle encodes the
class, decodes to images of it, and so has to get the best of every number.
"""

import itertools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from program import assert_refused

from gamix_jax import build, config, data, presets
from gamix_jax.data.linear_gaussian import LinearGaussian
from gamix_jax.errors import UserError
from gamix_jax.evaluate import (
  classifiers,
  multimodal,
  multimodal_inputs,
  settings,
)
from gamix_jax.evaluate import observations as obs
from gamix_jax.evaluate.multimodal import MultimodalRun
from gamix_jax.evaluate.multimodal_inputs import MultimodalInputs
from gamix_jax.metrics import specs
from gamix_jax.multimodal import Separate
from gamix_jax.posterior import Gaussian

CLASSES, SIDE = 4, 8
MODALITIES = (
  *("a 8x8x1 l1", "b 8x8x1 l1"),
  "c 4 categorical",
)
NAMES = ("a", "b", "c")
LABELS = {"train": np.arange(400) % CLASSES, "test": np.arange(120) % CLASSES}


def block_images(labels, rng):
  """Noise, and a bright quarter where the class says."""
  x = rng.integers(0, 60, (len(labels), SIDE, SIDE, 1))
  for i, k in enumerate(labels):
    x[i, 4 * (k // 2) :, 4 * (k % 2) :][:4, :4] += 180
  return x.astype(np.uint8)


def blocks(rest, split, settings, seed):
  """Blocks; `blocks:unlabelled` has no labels, `blocks:other` other classes."""
  labels = LABELS[split]
  rng = np.random.default_rng(split == "test")
  arrays = {k: block_images(labels, rng) for k in ("a", "b")}
  classes = (labels + 1) % CLASSES if rest == "other" else labels
  arrays["c"] = np.eye(CLASSES, dtype=np.float32)[classes]
  known = None if rest == "unlabelled" else labels.astype(np.int32)
  return data.MultimodalArrays(arrays, known)


@pytest.fixture(scope="module", autouse=True)
def source():
  """Not registered: runs would name this module among their extensions."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(data.SOURCES, "blocks", blocks)
    yield


def made_config(source="blocks", modalities=MODALITIES, **changes):
  c = config.base()
  presets.multimodal(c, modalities)
  c.data.source = source
  c.data.batch_size = 8
  c.model.latent = CLASSES
  c.model.encoder_features, c.model.decoder_features = (4, 4), (4, 1)
  c.multimodal.vector_encoder_features = (8,)
  c.multimodal.vector_decoder_features = (8,)
  c.multimodal.width = 8
  c.multimodal.fusion, c.objective.name = "poe", "elbo"
  for key, value in changes.items():
    config.put(c, key.replace("__", "."), value)
  c.weights.kl = 1.0
  return presets.complete(c)


class Oracle:
  """Knows the class of an observation from where it is bright."""

  which, step, default_source = "ema", 7, "prior"
  trained_sizes = (1, 2, 3)

  def __init__(self, c):
    self.config, self.spec = c, build.train_spec(c)
    self.images = block_images(np.arange(CLASSES), np.random.default_rng(9))

  def check_trained(self, sizes):
    if sizes not in self.trained_sizes:
      raise UserError(f"never {sizes}")

  def labels(self, x):
    for name in ("a", "b"):
      if name in x:
        quarter = np.asarray(x[name], float).reshape(-1, 2, 4, 2, 4)
        return quarter.mean((2, 4)).reshape(-1, CLASSES).argmax(1)
    return np.asarray(x["c"]).argmax(1)

  def means(self, x):
    return 9.0 * np.eye(CLASSES)[self.labels(x)]

  def encode(self, x):
    mean = jnp.asarray(self.means(x), jnp.float32)
    return Gaussian(mean, jnp.full_like(mean, -9.0))

  def decode(self, z, *, raw=False):
    k = np.asarray(z)[:, :CLASSES].argmax(1)
    image = self.images[k] / np.float32(127.5) - 1
    classes = np.eye(CLASSES, dtype=np.float32)[k]
    return {"a": image, "b": image, "c": 50 * classes if raw else classes}

  def draw_latents(self, key, n, *, source):
    assert source == self.default_source
    return np.asarray(jax.random.normal(key, (n, CLASSES)))

  def bounds(self, x, draws, key):
    n = len(x["a"])
    return {"elbo": np.arange(n) - 5.0, "iwae": np.arange(n) - 3.0}

  def log_likelihood(self, x, samples, *, given, of, key):
    assert set(x) == {*given, *of}
    return np.full(len(next(iter(x.values()))), -1.0 * len(given))


class Noise(Oracle):
  """Encodes nothing."""

  def means(self, x):
    labels = self.labels(x)
    return np.random.default_rng(len(labels)).normal(
      size=(len(labels), CLASSES)
    )


def inputs_of(model, at_most=10_000, split="test"):
  section = settings.base().eval
  section.classifier_steps = 150  # enough for blocks
  c = model.config
  test = data.open_dataset(c.data, split, 0)
  train = data.open_dataset(c.data, "train", 0)
  rows = obs.chosen(train, 400, 0)
  held_out = obs.chosen(test, at_most, 0)
  found = classifiers.train(
    rows, model.spec.modalities, section, inputs_of.cache
  )
  found.judge(held_out)
  return MultimodalInputs(
    model,
    section,
    found,
    held_out,
    rows,
    split=split,
    sources=multimodal_inputs.true_sources(test, held_out),
  )


@pytest.fixture(autouse=True)
def cached(tmp_path_factory):
  """Classifiers of blocks are trained once."""
  if not hasattr(inputs_of, "cache"):
    inputs_of.cache = tmp_path_factory.mktemp("classifiers")


# ------------------------------------------------------------ observations


def test_by_size():
  found = obs.by_size("abcde", 3, 0)
  assert [len(v) for v in found.values()] == [5, 3, 3, 3, 1]
  assert found[1] == [(k,) for k in "abcde"]
  for size, subsets in found.items():
    assert len(set(subsets)) == len(subsets)
    assert set(subsets) <= set(itertools.combinations("abcde", size))
  assert found == obs.by_size("abcde", 3, 0)
  assert any(found[k] != obs.by_size("abcde", 3, 1)[k] for k in found)
  assert [len(v) for v in obs.by_size("abc", 10, 0).values()] == [3, 3, 1]


def test_observations():
  c = made_config(data__missing_test=0.5)
  dataset = data.open_dataset(c.data, "test", 0)
  rows = obs.chosen(dataset, 50, 3)
  assert len(rows) == 50 and rows.total == 120 and rows.names == NAMES
  assert len(set(rows.index.tolist())) == 50
  batch = dataset.load_batch(rows.index)
  for name in NAMES:
    np.testing.assert_array_equal(rows.x[name], batch[name])
  there = rows.rows_with(["a", "c"])
  assert 0 < len(there) < 50
  assert (rows.mask[there][:, [0, 2]] == 1).all()
  rest = np.setdiff1d(np.arange(50), there)
  assert (rows.mask[rest][:, [0, 2]].sum(1) < 2).all()
  only = rows.only(["c"], there)
  assert list(only) == ["c"] and len(only["c"]) == len(there)
  first = rows.first(7)
  assert len(first) == 7 and (first.labels == rows.labels[:7]).all()
  spread = obs.spread(dataset, 8)
  assert set(spread.labels) == set(range(CLASSES))


def test_classifiers():
  model = Oracle(made_config())
  found = inputs_of(model).classifiers
  assert list(found.of) == list(NAMES) and not found.reasons
  assert {c.accuracy for c in found.of.values()} == {1.0}
  assert found.of["a"].name == "classifier_f64_s0"
  assert found.of["c"].name == ""
  assert found.of["a"].protocol["classifier's steps"] == 150
  test = inputs_of(model).test
  features, classes = found.of["b"].with_features(test.x["b"])
  assert features.shape == (120, 64)
  np.testing.assert_array_equal(classes, test.labels)
  floats = test.x["b"] / 127.5 - 1
  np.testing.assert_array_equal(found.of["b"].classes(floats), classes)


def test_classes_that_are_not_the_labels_have_no_classifier():
  found = inputs_of(Oracle(made_config("blocks:other"))).classifiers
  assert list(found.of) == ["a", "b"]
  assert found.reasons == {"c": "c: its classes are not the labels"}


def test_without_labels_there_are_reasons():
  run = MultimodalRun(inputs_of(Oracle(made_config("blocks:unlabelled"))))
  run.translations()
  run.samples()
  run.probes()
  found = run.numbers.found
  for name in (
    *("coherence_size/1", "coherence_size/2", "joint_coherence"),
    *("linear_probe/a", "linear_probe_size/3"),
  ):
    assert found[name]["value"] is None, name
    reason = found[name]["reason"]
    assert "no labels" in reason or "classifier" in reason, name


# ------------------------------------------------------------ measurements


def test_a_perfect_model_has_the_best_of_every_number():
  run = multimodal.evaluate(inputs_of(Oracle(made_config())))
  values = run.numbers.values
  for pair in ("a->b", "b->c", "c->a", "a+b->c", "b+c->a"):
    assert values[f"coherence/{pair}"] == 1, pair
  names = ["coherence_size/1", "coherence_size/2", "joint_coherence"]
  names += [f"linear_probe/{k}" for k in NAMES]
  names += [f"linear_probe_size/{k}" for k in (1, 2, 3)]
  names += ["accuracy/c", *(f"classifier_accuracy/{k}" for k in NAMES)]
  for name in names:
    assert values[name] == 1, name
  assert values["sample_classes"] == pytest.approx(CLASSES, rel=0.02)
  assert values["majority_class"] == 0.25
  assert values["elbo"] == np.arange(120).mean() - 5
  assert values["iwae"] == np.arange(120).mean() - 3
  assert values["conditional_log_likelihood/a->b"] == -1
  assert values["conditional_log_likelihood/a+c->b"] == -2
  for name in run.numbers.found:
    specs.find(name)
  # As many numbers of pairs as there are.
  pairs = [k for k in values if k.startswith("coherence/")]
  assert len(pairs) == 3 * 2 + 3
  distances = [k for k in values if k.startswith("fd_classifier_f64_s0/")]
  assert len(distances) == 4 + 2  # to an image; samples of two
  assert set(run.shown) == {"reconstructions", "translations", "samples"}
  assert len(run.shown["translations"]) == 2 * 2 + 2  # two images; of classes


def test_errors_are_those_of_numpy():
  """Reconstruction errors and likelihoods, computed here."""
  model = Oracle(made_config(data__missing_test=0.4))
  inputs = inputs_of(model)
  run = MultimodalRun(inputs)
  run.reconstructions()
  test, values = inputs.test, run.numbers.values
  # The oracle looks at "a" first; where that is missing it is all zeros.
  k = model.labels(test.x)
  total = np.zeros(len(test))
  for i, name in enumerate(("a", "b")):
    rows = test.mask[:, i] > 0
    x = test.x[name] / 127.5 - 1
    error = np.abs(x - (model.images[k] / 127.5 - 1)).mean((1, 2, 3))
    assert values[f"mae/{name}"] == pytest.approx(error[rows].mean(), rel=1e-5)
    scale = 64 / 32  # of the noise, with the default weight 64 / 2
    log_prob = -error * 64 / scale - 64 * np.log(2 * scale)
    total += np.where(rows, log_prob, 0)
    found = values[f"reconstruction_log_likelihood/{name}"]
    assert found == pytest.approx(log_prob[rows].mean(), rel=1e-5)
    number = run.numbers.found[f"mae/{name}"]
    assert number["protocol"]["observations"] == rows.sum()
  rows = test.mask[:, 2] > 0
  right = (k == test.labels)[rows]
  assert values["accuracy/c"] == pytest.approx(right.mean())
  total += np.where(test.mask[:, 2] > 0, np.where(k == test.labels, 0, -50), 0)
  found = values["reconstruction_log_likelihood"]
  assert found == pytest.approx(total.mean(), rel=1e-5)
  assert "mae" not in values  # not all modalities have one


def test_mae_of_images_alone():
  run = MultimodalRun(inputs_of(Oracle(made_config(modalities=MODALITIES[:2]))))
  run.reconstructions()
  values = run.numbers.values
  assert values["mae"] == pytest.approx((values["mae/a"] + values["mae/b"]) / 2)


def test_noise_is_near_chance():
  run = MultimodalRun(inputs_of(Noise(made_config())))
  run.translations()
  run.probes()
  values = run.numbers.values
  chance, error = 1 / CLASSES, np.sqrt(3 / 16 / 120)
  names = [k for k in values if k.startswith(("linear_probe", "coherence"))]
  assert len(names) == 3 + 3 + 9 + 2
  for name in names:
    assert abs(values[name] - chance) < 4 * error, name


class SeparateOracle(Oracle):
  """Has the class in the latents of "b" alone."""

  def encode(self, x):
    (name,) = x
    labels = self.labels(x)
    n = len(labels)
    mu = np.random.default_rng(n).normal(size=(n, 3, CLASSES))
    if name == "b":
      mu[:, 1] = 9.0 * np.eye(CLASSES)[labels]
    mask = jnp.broadcast_to(
      jnp.array([float(k == name) for k in NAMES]), (n, 3)
    )
    mu = jnp.asarray(mu, jnp.float32) * mask[..., None]
    return Separate(mu, jnp.full_like(mu, -9.0), mask)


def test_separate_latents_are_probed_one_by_one():
  c = made_config(multimodal__fusion="separate")
  run = MultimodalRun(inputs_of(SeparateOracle(c)))
  run.probes()
  values = run.numbers.values
  assert values["linear_probe/b"] == 1
  for name in ("a", "c"):
    assert abs(values[f"linear_probe/{name}"] - 0.25) < 0.16
  mean = np.mean([values[f"linear_probe/{k}"] for k in NAMES])
  assert values["linear_probe_size/1"] == pytest.approx(mean)
  assert values["linear_probe_size/3"] == pytest.approx(mean)
  assert "linear_probe_size/2" not in run.numbers.found


def test_missing_modalities_are_left_out():
  """Only observations that have what is given are translated and probed."""
  c = made_config(data__missing=0.5, data__missing_test=0.5)
  inputs = inputs_of(Oracle(c))
  run = MultimodalRun(inputs)
  run.translations()
  run.probes()
  found = run.numbers.found
  test, train = inputs.test, inputs.train
  for pair, given in (("a->b", ["a"]), ("a+b->c", ["a", "b"])):
    number = found[f"coherence/{pair}"]
    assert number["value"] == 1
    assert number["protocol"]["observations"] == len(test.rows_with(given)) < 90
  number = found["linear_probe/c"]
  assert number["value"] == 1
  assert number["protocol"]["observations"] == len(test.rows_with(["c"]))
  fitted = number["protocol"]["fitted to observations"]
  assert fitted == len(train.rows_with(["c"])) < 300


def test_a_modality_that_is_never_observed():
  inputs = inputs_of(Oracle(made_config()))
  inputs.test.mask[:, 1] = 0
  run = MultimodalRun(inputs)
  run.reconstructions()
  run.probes()
  run.conditional_bounds()
  found = run.numbers.found
  assert "missing in all" in found["mae/b"]["reason"]
  assert "no observation has all of b" in found["linear_probe/b"]["reason"]
  pair = found["conditional_log_likelihood/a->b"]
  assert "no observation has all of a+b" in pair["reason"]
  assert found["linear_probe/a"]["value"] == 1


def test_subsets_that_were_never_trained_have_a_reason():
  model = Oracle(made_config())
  model.trained_sizes = (2, 3)
  run = MultimodalRun(inputs_of(model, 60))
  run.probes()
  run.translations()
  run.pictures()
  found = run.numbers.found
  for name in ("linear_probe/a", "linear_probe_size/1", "coherence_size/1"):
    assert found[name]["value"] is None and found[name]["reason"] == "never 1"
  for name in ("linear_probe_size/2", "linear_probe_size/3"):
    assert found[name]["value"] > 0.9
  assert found["coherence_size/2"]["value"] == 1
  assert not any(k.startswith("coherence/a->") for k in found)
  assert run.shown == {} and run.strip() == {}


def test_the_training_split_is_not_probed():
  run = MultimodalRun(inputs_of(Oracle(made_config()), split="train"))
  run.probes()
  assert "judge another" in run.numbers.found["linear_probe/a"]["reason"]


def test_mmvm_has_no_joint_likelihood():
  c = made_config(multimodal__fusion="separate", objective__name="mmvm")
  run = MultimodalRun(inputs_of(SeparateOracle(c)))
  run.bounds()
  for name in ("elbo", "iwae"):
    assert "depends on the data" in run.numbers.found[name]["reason"]


def test_samples_of_a_fitted_mixture_say_so():
  class Fitted(Oracle):
    default_source, used = "gmm", None

    def fit_samplers(self, x, *, seed, components):
      self.used = x
      return {
        "images": len(x["a"]),
        "components": components,
        "covariance": "z",
      }

  model = Fitted(made_config())
  run = MultimodalRun(inputs_of(model))
  run.samples()
  number = run.numbers.found["joint_coherence"]
  assert number["value"] == 1
  for key, value in {
    "sampler": "gmm",
    "sampler fitted to observations": 400,
    "components": 10,
    "covariance": "z",
  }.items():
    assert number["protocol"][key] == value
  assert "fd_classifier_f64_s0/gmm->a" in run.numbers.values
  assert set(model.used) == set(NAMES)


# ------------------------------------------------------------ known laws


def test_exact_log_likelihood():
  """The gap of a model whose bound is d below the truth is d."""
  sizes = LinearGaussian().loadings
  entries = tuple(f"{k} {len(w)} l2" for k, w in sizes.items())[:4]
  c = made_config("linear_gaussian", entries, data__missing_test=0.3)
  law = LinearGaussian()

  class Exact(Oracle):
    def bounds(self, x, draws, key):
      mask = np.zeros((len(x["mask"]), 5))
      mask[:, :4] = x["mask"]
      x = {k: x.get(k, np.zeros((len(mask), len(w)))) for k, w in sizes.items()}
      exact = law.log_prob(x, mask)
      return {"elbo": exact - 3, "iwae": exact - 0.5}

  inputs = inputs_of(Exact(c), at_most=200)
  run = MultimodalRun(inputs)
  run.bounds()
  values = run.numbers.values
  assert values["log_likelihood_gap"] == pytest.approx(0.5)
  exact = values["exact_log_likelihood"]
  assert values["iwae"] == pytest.approx(exact - 0.5, rel=1e-6)
  assert run.numbers.found["log_likelihood_gap"]["error"] == pytest.approx(
    0, abs=1e-9
  )
  # -ln p of a standard normal of as many numbers is about what it has to be.
  shown = inputs.test.mask @ np.array([len(w) for w in sizes.values()][:4])
  assert -1.7 < exact / shown.mean() < -1.3


def test_true_sources():
  c = made_config("ivae", ("x 2 l2", "segment 5 categorical"))

  class Knows(Oracle):
    def encode(self, x):
      dataset = data.open_dataset(c.data, "test", 0)
      rows = [
        np.flatnonzero((dataset.source.arrays["x"] == row).all(1))[0]
        for row in x["x"]
      ]
      latents = dataset.source.latents[rows] * [3.0, -2.0]
      other = np.zeros((len(rows), CLASSES - 2))
      mean = jnp.asarray(np.concatenate([other, latents], 1), jnp.float32)
      return Gaussian(mean, jnp.zeros_like(mean))

  run = MultimodalRun(inputs_of(Knows(c)))
  run.true_sources()
  assert run.numbers.values["mcc_strong"] == pytest.approx(1, abs=1e-5)
  assert run.numbers.values["mcc_weak"] == pytest.approx(1, abs=1e-5)
  run = MultimodalRun(inputs_of(Oracle(made_config())))
  run.true_sources()
  assert run.numbers.found == {}


# ------------------------------------------------------------ settings


@pytest.mark.parametrize(
  ("key", "value"),
  [("sources", ("gmm",)), ("features", "random"), ("inception_weights", "x")],
)
def test_settings_of_images_are_refused(key, value):
  given = settings.base()
  settings.check_multimodal(given)
  given.eval[key] = value
  with pytest.raises(UserError, match=rf"eval\.{key}=.*runs of images"):
    settings.check_multimodal(given)


# ------------------------------------------------------------ the command

SMALL = (
  "--config=configs/polydigits.py:tiny",
  "--config.data.modalities=('m0 16x16x3 l1','m1 16x16x3 l1','m2 16x16x3 l1')",
  "--config.eval_every=1000",
  "--config.checkpoint.every=1000",
)
FEW = (
  "--config.eval.images=40",
  "--config.eval.bound_images=16",
  "--config.eval.train_images=200",
  "--config.eval.draws=2",
  "--config.eval.classifier_steps=60",
)


@pytest.fixture(scope="module")
def judged(program, tmp_path_factory):
  """A run of three steps, evaluated: its folder and the output."""
  folder = tmp_path_factory.mktemp("evaluate") / "run"
  flag = f"--workdir={folder}"
  program.done(*SMALL, flag)
  ran = program.run(flag, *FEW, module="gamix_jax.evaluate")
  assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
  return folder, ran.stdout


def test_command(judged):
  folder, output = judged
  found = json.loads((folder / "eval" / "metrics.json").read_text())
  common = found["protocol"]
  for key in ("data", "modalities", "fusion", "missing", "seed", "weights"):
    assert key in common
  assert common["step"] == 3
  names = set(found["numbers"])
  views = [f"m{i}" for i in range(3)]
  for name in views:
    assert {f"mae/{name}", f"linear_probe/{name}"} <= names
  pairs = {f"coherence/{a}->{b}" for a, b in itertools.permutations(views, 2)}
  assert pairs <= names
  assert {f"coherence_size/{k}" for k in (1, 2)} <= names
  assert {"joint_coherence", "iwae", "elbo", "mae"} <= names
  for name, number in found["numbers"].items():
    assert common.items() <= number["protocol"].items(), name
    assert (number["value"] is None) == ("reason" in number), name
    specs.find(name)
  accuracy = [found["numbers"][f"classifier_accuracy/{k}"] for k in views]
  assert min(n["value"] for n in accuracy) > 0.15
  for name in names:
    assert f"{name} " in output
  text = (folder / "eval" / "report.md").read_text()
  titles = re.findall(r"^## (.*)$", text, re.M)
  assert titles == ["Reconstructions", "Translations", "Likelihood", "Labels"]
  for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
    assert (folder / "eval" / picture).stat().st_size > 1000
  assert len(re.findall(r"!\[", text)) == 3


@pytest.mark.slow
def test_results_repeat(judged, program, tmp_path):
  folder, _ = judged
  other = tmp_path / "run"
  shutil.copytree(folder, other)
  shutil.rmtree(other / "eval")
  ran = program.run(f"--workdir={other}", *FEW, module="gamix_jax.evaluate")
  assert ran.returncode == 0, ran.stderr
  first, second = (
    (path / "eval" / "metrics.json").read_text() for path in (folder, other)
  )
  assert first == second


def test_command_refuses(judged, program):
  folder, _ = judged
  flag = f"--workdir={folder}"
  for flags, words in (
    (["--config.eval.features=random"], ["eval.features='random'", "several"]),
    (["--split=both"], ["--split=both", "test, train"]),
  ):
    ran = program.run(flag, *flags, module="gamix_jax.evaluate")
    assert_refused(ran, *words)

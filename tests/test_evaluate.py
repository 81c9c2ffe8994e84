"""The evaluate command: its file, its report, and what it refuses."""

import json
import re
import shlex
import shutil
import subprocess

import numpy as np
import pytest
from program import assert_refused, config_of
from sklearn.metrics import roc_auc_score

import gamix_jax
from gamix_jax import config as configs
from gamix_jax import data
from gamix_jax.errors import UserError
from gamix_jax.evaluate import report, settings
from gamix_jax.evaluate.results import Results
from gamix_jax.metrics import specs

DIGIT = 0  # held out
TRAINING = shlex.split("""
  --config=configs/digits.py --config.steps=250 --config.data.batch_size=32
  --config.data.image_size=12 --config.model.latent=3
  --config.model.encoder_features="(8,8)"
  --config.model.decoder_features="(8,1)"
  --config.model.encoder=resnet --config.model.norm=affine
  --config.posterior.initial_logvar=0 --config.optim.vae.warmup=0
  --config.objective.population=means --config.weights.collapse_penalty=0.1
  --config.weights.population_kl=2 --config.model.bottleneck_channels=2
  --config.optim.vae.learning_rate=1e-2 --config.eval_every=250
  --config.checkpoint.every=250 --config.log_every=250
  --config.data.exclude_labels="(0,)"
""")
FEW = (
  "--config.eval.images=96",
  "--config.eval.bound_images=64",
  "--config.eval.train_images=300",
  "--config.eval.draws=4",
)


def run(program, *flags, devices=1):
  """With default XLA passes: the classifier runs longer than it compiles."""
  count = f"--xla_force_host_platform_device_count={devices}"
  return subprocess.run(
    program.argv(*flags, module="gamix_jax.evaluate"),
    env=program.env() | {"XLA_FLAGS": count},
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.fixture(scope="module")
def judged(program, tmp_path_factory):
  """A run on nine of ten digits, evaluated: its folder and the output."""
  folder = tmp_path_factory.mktemp("evaluate") / "run"
  flag = f"--workdir={folder}"
  program.done(*TRAINING, flag)
  ran = run(program, flag, *FEW)
  assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
  return folder, ran.stdout


@pytest.fixture(scope="module")
def numbers(judged):
  return json.loads((judged[0] / "eval" / "metrics.json").read_text())


@pytest.mark.slow
def test_results_repeat_and_match_on_eight_devices(judged, program, tmp_path):
  """Equal bytes on one device; within 1e-4 on 8 devices, all refitted."""
  folder, _ = judged
  before = (folder / "eval" / "metrics.json").read_text()
  other = tmp_path / "run"
  shutil.copytree(folder, other)
  shutil.rmtree(other / "eval")
  shutil.rmtree(other / "samplers")
  ran = run(program, f"--workdir={folder}", *FEW)
  assert ran.returncode == 0, ran.stderr
  assert (folder / "eval" / "metrics.json").read_text() == before
  ran = run(program, f"--workdir={other}", *FEW, devices=8)
  assert ran.returncode == 0, ran.stderr
  found = json.loads((other / "eval" / "metrics.json").read_text())["numbers"]
  for name, number in json.loads(before)["numbers"].items():
    if number["value"] is not None:
      value = found[name]["value"]
      assert value == pytest.approx(number["value"], rel=1e-4, abs=1e-4), name


def test_numbers_are_those_of_the_model(judged, numbers):
  """Computed separately from the model: errors, bounds, anomaly scores."""
  folder, _ = judged
  found = numbers["numbers"]
  model = gamix_jax.load(folder)
  test = data.open_dataset(model.config.data, "test")
  x = np.stack([test[i]["image"] for i in range(len(test))])
  labels = np.array([test[i]["label"] for i in range(len(test))])
  odd = labels == DIGIT
  score = model.anomaly_score(x, "reconstruction")
  want = roc_auc_score(odd, score)  # on all images, not on 64
  got = found["auroc_reconstruction"]
  assert abs(got["value"] - want) < 4 * got["error"]
  assert got["value"] > 0.6
  assert got["protocol"]["unseen classes"] == ["0"]
  error = np.abs(x[~odd] / 127.5 - 1 - model.reconstruct(x[~odd])).mean()
  assert abs(found["mae"]["value"] - error) < 4 * found["mae"]["error"]
  elbo = model.elbo(x[~odd], 4).mean()
  assert abs(found["elbo"]["value"] - elbo) < 4 * found["elbo"]["error"]
  assert found["elbo"]["value"] < found["iwae"]["value"]
  parts = found["mutual_information"]["value"] + found["population_kl"]["value"]
  assert found["kl"]["value"] == pytest.approx(parts, rel=1e-5)
  assert found["linear_probe"]["value"] > found["majority_class"]["value"] + 0.1


def test_every_number_has_its_protocol(numbers):
  common = numbers["protocol"]
  assert list(numbers["numbers"]) == sorted(numbers["numbers"])
  for key in ("data", "split", "size", "weights", "norm", "seed", "step"):
    assert key in common
  for name, number in numbers["numbers"].items():
    assert common.items() <= number["protocol"].items(), name
    assert (number["value"] is None) == ("reason" in number), name
    if name.startswith(("fd_", "kd_", "precision")):
      for key in ("features", "features, sha256", "images", "pixels"):
        assert key in number["protocol"], (name, key)
    assert not name.startswith(("fid", "kid"))  # it is not Inception
    specs.find(name)


def test_report(judged, numbers):
  folder, output = judged
  text = (folder / "eval" / "report.md").read_text()
  titles = re.findall(r"^## (.*)$", text, re.M)
  # Of compare, of several modalities, of runs with data.occlude.
  others = ("Training", "Translations", "Completions")
  assert titles == [s for s in specs.SECTIONS if s not in others]
  pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
  assert len(pictures) == 6
  for name in pictures:
    assert (folder / "eval" / name).stat().st_size > 500
  assert "under 2,048" in text and "under 2,048" in output
  assert "held out of the training" in text
  mae = numbers["numbers"]["mae"]
  assert report.cell(mae) in text
  assert "Laplace noise of scale 2" in text


@pytest.mark.slow
def test_fewer_images_than_latents(judged, program, tmp_path):
  """Neighbours and a covariance need more: reasons for both, and a report."""
  folder = tmp_path / "run"
  shutil.copytree(judged[0], folder)
  few = ("images=3", "bound_images=3", "train_images=20", "features=random")
  ran = run(
    program, f"--workdir={folder}", *(f"--config.eval.{f}" for f in few)
  )
  assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
  found = json.loads((folder / "eval" / "metrics.json").read_text())["numbers"]
  kl = found["population_kl_gaussian"]
  assert kl["value"] is None
  assert "3 images and 3 latents; raise eval.images to 4" in kl["reason"]
  assert found["precision_prior"]["value"] is None
  text = (folder / "eval" / "report.md").read_text()
  assert kl["reason"] in text and "`training_images`" in text


def test_what_is_not_defined_has_a_reason():
  found = Results({"seed": 0})
  found.add("mae", (float("nan"), 1.0))

  def refuse():
    found.add("elbo", 2.0)
    raise UserError("no bound.")

  found.attempt(["elbo", "iwae"], refuse)
  got = json.loads(found.to_json())["numbers"]
  assert got["mae"]["value"] is None and "nan" in got["mae"]["reason"]
  assert got["elbo"]["value"] == 2 and got["iwae"]["reason"] == "no bound."


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"images": 0}, "eval.images=0"),
    ({"features": "vgg"}, "auto, classifier, random, inception"),
    ({"sources": ("flow",)}, "prior, population, gmm"),
    ({"features": "inception"}, "inception_weights=FILE"),
    ({"features": "random", "inception_weights": "x"}, "is set, but"),
    ({"seed": -1}, "eval.seed=-1"),
  ],
)
def test_settings_refuse(changes, words):
  c = settings.base()
  settings.check(c)
  c.eval.update(changes)
  with pytest.raises(UserError, match=words):
    settings.check(c)


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    ((), ["--workdir is missing"]),
    (("--workdir=none_such",), ["is not a folder"]),
    (("--workdir=x", "--config.eval.imges=3"), ["did you mean", "images"]),
    (("--workdir=x", "--config.eval.images=many"), ["images", "many"]),
  ],
)
def test_mistakes(program, flags, words):
  assert_refused(run(program, *flags), *words)


def test_excluded_labels(tmp_path):
  c = config_of("digits").data
  complete = data.open_dataset(c, "train")
  assert not complete.excluded
  c.exclude_labels = (3, "7")
  c.cache = "none"
  part = data.open_dataset(c, "train")
  kept = [i for i in range(len(complete)) if complete[i]["label"] not in (3, 7)]
  assert len(part) == len(kept)
  for i in (0, 100, len(kept) - 1):
    np.testing.assert_array_equal(part[i]["image"], complete[kept[i]]["image"])
    assert part[i]["label"] == part.labels()[i] == complete[kept[i]]["label"]
  test = data.open_dataset(c, "test")
  assert test.excluded == (3, 7) and {3, 7} <= set(test.labels())
  c.cache = str(tmp_path / "cache")
  for excluded in ((), (3, "7")):
    c.exclude_labels = excluded
    data.open_dataset(c, "train")
  assert len(list((tmp_path / "cache").glob("train-*"))) == 2
  c.cache = "none"
  for label, source, words in (
    (13, "digits", "its classes are 0, 1"),
    (1, "synthetic", "it has none"),
  ):
    c.source, c.exclude_labels = source, (label,)
    with pytest.raises(UserError, match=words):
      data.open_dataset(c, "train")
  with pytest.raises(UserError, match="a tuple of classes"):
    data.open_dataset({**c, "exclude_labels": 3}, "train")
  assert configs.base().data.exclude_labels == ()

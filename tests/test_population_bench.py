"""The population bench: honest splits, one rule of choice, correct tables."""

import dataclasses
import functools
import json
import math
import subprocess
import sys

import jax
import numpy as np
import pytest
import scipy.linalg
from program import QUICK, ROOT, assert_refused
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from benchmarks.population import (
  images,
  judge,
  methods,
  plan,
  report,
  training,
)
from gamix_jax import build, step
from gamix_jax.errors import UserError
from gamix_jax.inference import Model
from gamix_jax.metrics.codes import NEIGHBOURS
from gamix_jax.modality import IMAGE

# From ml_collections, which loads the config files.
LOADING = "ignore:the load_module:DeprecationWarning"
pytestmark = pytest.mark.filterwarnings(LOADING)

PROBLEM = {"source": "digits", "size": 8, "network": "mlp"}
DIGITS = plan.Settings(
  **PROBLEM, batch=64, sweep_epochs=1, epochs=2, judged=150, sources=("gmm",)
)


def digits_config(name="vae", weight=1.0, **changes):
  keys = dict(batch=64, steps=3, images=1221) | changes
  return methods.config_of(name, weight, DIGITS, **keys)


# ----------------------------------------------------------------- methods


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_is_a_config(name):
  """Of both networks; the swept terms have the tried weight, others not."""
  method = methods.METHODS[name]
  assert len(method.weights) in (1, 5)
  assert sorted(set(method.weights)) == list(method.weights)
  for network in methods.NETWORKS:
    first, last = (
      methods.config_of(
        *(name, weight),
        methods.Problem(source="synthetic", size=28, network=network),
        batch=128,
        steps=1950,
        images=50_000,
      )
      for weight in (method.weights[0], method.weights[-1])
    )
    build.train_spec(first)
    changed = {k for k, v in first.weights.items() if v != last.weights[k]}
    moved = len(method.weights) > 1
    assert changed == (set(method.terms) if moved else set())
    assert first.weights.recon == 784  # nats of a Bernoulli image
    if network == "mlp":
      assert first.model.latent == 8
      assert first.model.encoder_features == (200, 200, 200)


def test_the_problem_is_that_of_all_methods():
  """Photographs with a discriminator, and more latents than the preset's."""
  problem = methods.Problem(
    source="synthetic",
    size=64,
    channels=3,
    network="conv",
    latent=96,
    reconstruction="l1",
    adversarial="hinge",
  )
  for name in ("vae", "gamix_debiased", "aae"):
    config = methods.config_of(
      name, 1.0, problem, batch=8, steps=100, images=50
    )
    spec = build.train_spec(config)
    assert spec.image.shape == (64, 64, 3)
    assert config.model.encoder == config.model.decoder == "conv"
    assert config.model.latent == 96
    assert config.weights.recon == 64 * 64 * 3 / 2
    assert config.weights.adversarial > 0
    # That of codes learns from the start, and PatchGAN with it.
    assert config.adversarial.disc_start == (0 if name == "aae" else 50)


@pytest.mark.parametrize("key", ["network", "adversarial", "reconstruction"])
def test_unknown_names(key):
  with pytest.raises(UserError, match=f"--{key}='cnn'"):
    dataclasses.replace(DIGITS, **{key: "cnn"})


def test_settings_of_an_older_folder(tmp_path):
  """They have no channels, latents or likelihood: those of then."""
  DIGITS.check(tmp_path)
  file = tmp_path / plan.PROTOCOL
  settings = json.loads(file.read_text())
  for key in ("channels", "latent", "reconstruction", "adversarial"):
    del settings[key]
  file.write_text(json.dumps(settings))
  DIGITS.check(tmp_path)
  with pytest.raises(UserError, match="other values of latent: 0"):
    dataclasses.replace(DIGITS, latent=3).check(tmp_path)


# ------------------------------------------------------------------ images


def test_validation_is_a_part_of_the_training_split():
  """Compared with scikit-learn's own digits, and with the test split."""
  train, held_out = images.training_parts(digits_config())
  test = images.test_images(digits_config())
  parts = [[x.tobytes() for x in p.x] for p in (train, held_out, test)]
  assert len(parts[1]) == (len(parts[0]) + len(parts[1])) // 6
  together = sorted(b for p in parts for b in p)
  digits = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
  assert together == sorted(x.tobytes() for x in digits)
  again = images.training_parts(digits_config())[1]
  np.testing.assert_array_equal(again.x, held_out.x)
  config = digits_config()
  config.seed = 5
  np.testing.assert_array_equal(images.training_parts(config)[1].x, held_out.x)


def test_too_few_images_to_judge():
  few = images.Images(np.zeros((99, 8, 8, 1), np.uint8), np.zeros(99, int))
  with pytest.raises(UserError, match="there are 99"):
    images.judged(few, 1000)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
  out = tmp_path_factory.mktemp("bench")
  return plan.Bench(DIGITS, out, False, lambda line: None)


def test_sweeps_do_not_read_the_test_split(bench, monkeypatch):
  def read(config):
    raise AssertionError("the test split was read")

  monkeypatch.setattr(plan, "test_images", read)
  bench._judge("sweep")
  for phase in ("final", "batch"):
    with pytest.raises(AssertionError, match="test split"):
      bench._judge(phase)


@pytest.mark.parametrize("stack", [False, True])
def test_all_methods_once_before_any_twice(bench, monkeypatch, stack):
  done = []
  monkeypatch.setattr(bench, "_stack", stack)
  monkeypatch.setattr(bench, "_sweep", lambda name: name == "wae_mmd")
  monkeypatch.setattr(bench, "_weight", lambda name: 3.0)
  monkeypatch.setattr(bench, "_do", done.append)
  bench.methods(["vae", "wae_mmd"], 2)
  found = [[(r.method, r.seed) for r in runs] for runs in done]
  first, second = ("wae_mmd", 0), ("vae", 0)  # what it swept itself is first
  if stack:
    assert found == [[first, ("wae_mmd", 1)], [second, ("vae", 1)]]
  else:
    assert found == [[first], [second], [("wae_mmd", 1)], [("vae", 1)]]


def test_given_weights_are_not_swept(bench, monkeypatch):
  done = []
  monkeypatch.setattr(bench, "_weights", {"wae_mmd": 7.0})
  monkeypatch.setattr(bench, "_do", done.extend)
  bench.methods(["wae_mmd"], 2)
  bench.batches(["wae_mmd"], [8], 1)
  found = [(r.phase, r.weight, r.seed, r.batch) for r in done]
  final = [("final", 7.0, seed, DIGITS.batch) for seed in (0, 1)]
  assert found == [*final, ("batch", 7.0, 0, 8)]


# ---------------------------------------------------------------- training


def test_order_is_of_epochs():
  rows = training.order(10, 3, 7, seed=1)
  assert rows.shape == (7, 3)
  for epoch in (rows[:3], rows[3:6]):
    assert len(set(epoch.ravel())) == 9
  assert set(rows.ravel()) <= set(range(10))
  assert (rows != training.order(10, 3, 7, seed=2)).any()


@pytest.mark.slow
def test_a_program_trains_as_the_step_does(monkeypatch):
  """Two runs side by side; the second against the step, one by one."""
  monkeypatch.setattr(methods, "MLP_WIDTHS", (16,))
  x = images.test_images(digits_config()).x
  specs = []
  for weight, seed in ((0.5, 0), (4.0, 3)):
    config = digits_config("beta_vae", weight)
    config.seed = seed
    specs.append(build.train_spec(config))
  rows = [training.order(len(x), 64, 3, seed) for seed in (0, 3)]
  quick = functools.partial(jax.jit, compiler_options=QUICK)
  with monkeypatch.context() as patch:
    patch.setattr(jax, "jit", quick)
    first, second = training.Trainer(specs[0], x, stack=True)(specs, rows)
    by_steps = training.Trainer(specs[0], x, stack=False, by_steps=True)
    (third,) = by_steps(specs[1:], rows[1:])
  assert first.sec_per_step == second.sec_per_step > 0
  state = quick(functools.partial(step.init, specs[1]))()
  one_step = quick(functools.partial(step.train_step, specs[1]))
  for r in rows[1]:
    state, metrics = one_step(state, {IMAGE: x[r]})
  assert second.skipped == metrics["nonfinite/total"] == 0
  for found in (second, third):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
      found.params,
      jax.device_get(state.ema),
    )
  apart = jax.tree.map(
    lambda a, b: np.abs(a - b).max(),
    *(v.params["encoder"] for v in (first, second)),
  )
  assert max(jax.tree.leaves(apart)) > 1e-3


# ------------------------------------------------------------------- judge


class Thirds:
  """Means of the rows of an image in three parts; official by its own word."""

  official = True

  def __call__(self, x):
    parts = np.array_split(x[..., 0], 3, axis=1)
    return np.stack([p.mean(axis=(1, 2)) for p in parts], axis=1)


def frechet(a, b):
  """By scipy's square root of a matrix."""
  s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
  root = scipy.linalg.sqrtm(s @ t).real
  means = a.mean(axis=0) - b.mean(axis=0)
  return means @ means + np.trace(s + t - 2 * root)


def test_what_is_measured(monkeypatch):
  """Of an untrained model, against numpy and scipy."""
  monkeypatch.setattr(methods, "MLP_WIDTHS", (16,))
  config = digits_config()
  spec = build.train_spec(config)
  state = jax.jit(lambda: step.init(spec), compiler_options=QUICK)()
  vae = {"params": state.ema, "batch_stats": {}}
  model = Model(config, spec, 0, vae, {})
  held_out = images.judged(images.test_images(config), 150)
  own = Thirds()
  of = judge.Judge(own, held_out, held_out, inception=own)
  numbers, _ = of(model, ("prior",), complete=True)
  real = held_out.x / 127.5 - 1

  def in_8_bits(x):
    return np.round((x + 1) * 127.5) / 127.5 - 1

  made = in_8_bits(model.reconstruct(held_out.x))
  assert numbers["mae"] == pytest.approx(np.abs(made - real).mean(), rel=1e-4)
  drawn = model.draw_latents(jax.random.key(judge.SAMPLES_KEY), 150)
  for kind, x in (
    ("reconstructions", made),
    ("prior", in_8_bits(model.decode(drawn))),
  ):
    wanted = frechet(own(x), own(real))
    assert numbers[f"fd_{kind}"] == pytest.approx(wanted, rel=1e-3)
    assert numbers[f"fid_{kind}"] == numbers[f"fd_{kind}"]
  codes = np.asarray(model.encode(held_out.x).mean())
  nearest = KNeighborsClassifier(NEIGHBOURS)
  scaled = (codes - codes.mean(0)) / codes.std(0)
  nearest.fit(scaled, held_out.labels)
  right = np.mean(nearest.predict(scaled) == held_out.labels)
  assert numbers["knn"] == pytest.approx(right)
  assert 0.1 < numbers["linear_probe"] <= 1
  kl = numbers["mutual_information"] + numbers["population_kl"]
  assert numbers["kl"] == pytest.approx(kl)
  short, _ = of(model, ("prior",), complete=False)
  assert set(short) == {"mae", "fd_reconstructions", "fd_prior"}


# ------------------------------------------------------ choice and reports


def result(method, phase, weight, seed=0, batch=128, **numbers):
  run = plan.Run(method, phase, weight, seed, batch, 2)
  found = {"format": plan.FORMAT, **dataclasses.asdict(run), "steps": 10}
  found |= {"train_images": 100, "features": "f", "features_sha256": "abc"}
  return found | {"jax": "1", "device": "cpu", "numbers": numbers}


def write(out, *found):
  for r in found:
    run = plan.Run(**{f.name: r[f.name] for f in dataclasses.fields(plan.Run)})
    folder = out / run.folder
    folder.mkdir(parents=True)
    (folder / plan.RESULT).write_text(json.dumps(r))


def test_the_rule_of_choice(tmp_path):
  """The lowest sum, with the source of samples that a method is meant for."""
  fd = {10.0: (1, 3), 30.0: (2, 1.5), 100.0: (0.5, 3.2), 300.0: (3, 1)}
  for weight, (a, b) in fd.items():
    assert plan.choose(tmp_path, "wae_mmd", 1) is None
    numbers = dict(fd_reconstructions=a, fd_prior=b)
    write(tmp_path, result("wae_mmd", "sweep", weight, **numbers))
  last = dict(fd_reconstructions=4, fd_prior=4)
  write(tmp_path, result("wae_mmd", "sweep", 1000.0, **last))
  # Weights that are not tried any more and final runs choose nothing.
  best = dict(fd_reconstructions=0, fd_prior=0)
  write(tmp_path, result("wae_mmd", "sweep", 7.0, **best))
  write(tmp_path, result("wae_mmd", "final", 10.0, **best))
  assert plan.choose(tmp_path, "wae_mmd", 1) == 30
  for i, weight in enumerate(methods.METHODS["rae_l2"].weights):
    own = dict(fd_reconstructions=1, fd_prior=5 - i, fd_gmm=i + 1)
    write(tmp_path, result("rae_l2", "sweep", weight, **own))
  assert (
    plan.choose(tmp_path, "rae_l2", 1) == methods.METHODS["rae_l2"].weights[0]
  )


def test_the_choice_of_several_seeds(tmp_path):
  """The lowest mean sum; a sweep with a run missing chooses nothing."""
  tried = methods.METHODS["wae_mmd"].weights
  sums = {10.0: (1, 9), 30.0: (4, 5), 100.0: (8, 1.5), 300.0: (6, 6)}
  for weight in tried[::-1]:
    for seed, total in enumerate(sums.get(weight, (7, 7))):
      assert plan.choose(tmp_path, "wae_mmd", 2) is None
      numbers = dict(fd_reconstructions=0.5, fd_prior=total - 0.5)
      found = result("wae_mmd", "sweep", weight, seed=seed, **numbers)
      write(tmp_path, found)
  assert plan.choose(tmp_path, "wae_mmd", 1) == 10
  assert plan.choose(tmp_path, "wae_mmd", 2) == 30
  assert plan.choose(tmp_path, "wae_mmd", 3) is None
  table = report._sweep_table(list(plan.results(tmp_path)))
  assert "30: 0.500 ± 0.000 + 4.000 ± 0.500" in table


def test_a_sweep_of_several_seeds(bench, monkeypatch):
  """Every weight with every seed; final runs have the chosen weight."""
  done = []
  settings = dataclasses.replace(DIGITS, sweep_seeds=2)
  monkeypatch.setattr(bench, "_settings", settings)
  monkeypatch.setattr(bench, "_do", lambda runs: done.extend(runs) or True)
  assert bench._sweep("rae_l2")
  assert {(r.weight, r.seed) for r in done} == {
    (w, seed) for w in methods.METHODS["rae_l2"].weights for seed in (0, 1)
  }


def test_another_weight_is_refused(tmp_path):
  """Tables average all final runs of a method; a sweep has several weights."""
  DIGITS.check(tmp_path)
  for phase, weight in (("sweep", 7.0), ("final", 1.0)):
    write(tmp_path, result("vae", phase, weight))
  for weights in ({"vae": 3.0}, {"ae": 0.0, "vae": 7.0}):
    with pytest.raises(UserError, match="vae with the weight 1, not"):
      plan.Bench(DIGITS, tmp_path, False, print, weights=weights)
  plan.Bench(DIGITS, tmp_path, False, print, weights={"vae": 1.0})


def test_ties_are_within_two_standard_errors():
  rng = np.random.default_rng(0)
  base = rng.normal(size=5)
  error = np.std(base, ddof=1) / math.sqrt(5)
  of_difference = math.sqrt(2) * error
  values = {
    "best": base,
    "near": base + 1.99 * of_difference,
    "far": base + 2.01 * of_difference,
  }
  values = {k: v.tolist() for k, v in values.items()}
  assert report.tied(values) == {"best", "near"}
  assert report.tied({"a": [1.0], "b": [1.0], "c": [1.1]}) == {"a", "b"}
  assert report.tied({"a": []}) == set()


def test_tables_are_of_the_results(tmp_path):
  with pytest.raises(UserError, match="no finished runs"):
    report.write(tmp_path)
  DIGITS.check(tmp_path)
  rng = np.random.default_rng(1)
  values = {}
  for m in ("vae", "wae_mmd"):
    for seed in range(3):
      numbers = dict(zip(report.DISTANCES, rng.uniform(1, 2, 5), strict=True))
      numbers |= {f"{k}_prior": 0.25 for k in report.SHARES}
      values[m, seed] = numbers["fd_prior"]
      write(tmp_path, result(m, "final", 10.0, seed, **numbers))
  for batch in (8, 32):
    for seed in range(2):
      numbers = dict(fd_reconstructions=batch / 10, fd_prior=seed + 1.0)
      write(tmp_path, result("sigreg", "batch", 3.0, seed, batch, **numbers))
  text = report.write(tmp_path)
  assert text == (tmp_path / "table.md").read_text()
  for m in ("vae", "wae_mmd"):
    own = np.array([values[m, seed] for seed in range(3)])
    shown = f"{own.mean():.3f}"
    error = f"± {own.std(ddof=1) / math.sqrt(3):.3f}"
    (line,) = (
      x for x in text.splitlines() if f"`{m}`" in x and "0.25" not in x
    )
    assert shown in line
    assert error in line
    assert ("(at the end)" in line) == (m == "wae_mmd")
  assert "| `sigreg` | fd, prior | 1.500 ± 0.500 | 1.500 ± 0.500 |" in text
  rows = (tmp_path / "runs.csv").read_text().splitlines()
  assert len(rows) == 1 + 6 + 4
  assert (tmp_path / "batches.png").stat().st_size > 10_000


def test_other_settings_are_refused(tmp_path):
  DIGITS.check(tmp_path)
  DIGITS.check(tmp_path)
  with pytest.raises(UserError, match=r"other values of epochs: 2"):
    dataclasses.replace(DIGITS, epochs=3).check(tmp_path)


# ------------------------------------------------------------- the command


def run(program, *flags):
  return program.forked(*flags, module="benchmarks.population")


@pytest.mark.slow
def test_the_command(program, tmp_path):
  """It sweeps and finishes; the same command and --report repeat nothing."""
  flags = ("--tiny", "--methods=rae_l2", "--sources=gmm", f"--out={tmp_path}")
  ran = run(program, *flags)
  assert ran.returncode == 0, ran.stderr
  found = list(plan.results(tmp_path))
  assert sorted(r["phase"] for r in found) == ["final"] * 2 + ["sweep"] * 5
  for r in found:
    assert r["weights"]["code_norm"] == r["weight"]
    assert r["weights"]["decoder_norm"] == pytest.approx(r["weight"] / 1000)
    assert np.isfinite(list(r["numbers"].values())).all()
    assert ("coverage_prior" in r["numbers"]) == (r["phase"] == "final")
  chosen = plan.choose(tmp_path, "rae_l2", 1)
  assert {r["weight"] for r in found if r["phase"] == "final"} == {chosen}
  assert (tmp_path / "table.md").read_text() in ran.stdout
  for again in (flags, ("--report", f"--out={tmp_path}")):
    second = run(program, *again)
    assert second.returncode == 0, second.stderr
    assert "ms a step" not in second.stdout
    assert (tmp_path / "table.md").read_text() in second.stdout


def test_another_process_is_left_alone(bench):
  """A method that another process has locked is not swept here."""
  lock = bench.out / "vae"
  code = (
    "import sys; from pathlib import Path; from gamix_jax.files import Lock\n"
    "folder = Path(sys.argv[1]); folder.mkdir()\n"
    "with Lock(folder) as lock:\n"
    "  lock.acquire(); print('locked', flush=True); sys.stdin.read()"
  )
  argv = [sys.executable, "-c", code, str(lock)]
  pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
  with subprocess.Popen(argv, cwd=ROOT, **pipes) as other:
    assert other.stdout.readline() == "locked\n"
    assert not bench._sweep("vae")
    other.stdin.close()
    assert other.wait() == 0
  assert list(plan.results(bench.out)) == []


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    ((), ("--source",)),
    (("--source=digits", "--methods=vea"), ("--methods", "vae")),
    (("--source=digits", "--batches=1"), ("--batches=1", "2 or more")),
    (("--source=digits", "--epochs=0"), ("--epochs=0",)),
    (("--source=digits", "--sources=vamp"), ("--sources", "gmm")),
    (
      ("--methods=vae,ae", "--weights=1", "--tiny"),
      ("--weights=1", "2 methods vae,ae"),
    ),
    (
      ("--tiny", "--methods=vae", "--weights=-1"),
      ("--weights=-1", "0 or more"),
    ),
    (("--tiny", "--methods=vae", "--weights=x"), ("--weights=x", "a number")),
  ],
)
def test_wrong_flags(program, flags, words):
  assert_refused(run(program, *flags), *words)

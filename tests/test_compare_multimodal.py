"""Comparisons of models of several modalities: specs, figures, the command."""

import csv
import io
import itertools
import json
import re

import numpy as np
import pytest
from PIL import Image
from program import ROOT, assert_refused, config_of

from gamix_jax import config, data, objectives, plots, presets
from gamix_jax.compare import evaluate_run, loop, multimodal_report, report
from gamix_jax.compare.families import family_config, folder_name
from gamix_jax.errors import UserError
from gamix_jax.evaluate import settings
from gamix_jax.multimodal import FUSIONS

# ------------------------------------------------------------ families


def polydigits(**weights):
  """Three views, with some weights; none but recon's by default."""
  c = config_of("polydigits")
  c.data.modalities = c.data.modalities[:3]
  for name in c.weights:
    c.weights[name] = weights.get(name)
  c.weights.recon = 1.0
  return c


def given(c):
  return {k: v for k, v in c.weights.items() if v is not None and k != "recon"}


SPECS = {
  "separate/elbo": ({"kl": 2}, {}),
  "avg/elbo": ({"kl": 2}, {}),
  "poe/elbo": ({"kl": 2}, {}),
  "moe/elbo@kl=0.5": ({"kl": 0.5}, {}),
  "mopoe/elbo": ({"kl": 2}, {}),
  "separate/mmvm:surrogate": (
    {"kl": 2},
    {"objective.mmvm.estimate": "surrogate"},
  ),
  "separate/mmvm:exact": ({"kl": 2}, {"objective.mmvm.estimate": "exact"}),
  "separate/mmvm_population:means@population_kl=3": (
    {"kl": 2, "population_kl": 3, "collapse_penalty": 0.2},
    {"objective.population": "means"},
  ),
  "separate/gamix:full": (
    {"population_kl": 1, "collapse_penalty": 0.2},
    {"objective.population": "full"},
  ),
  "sum_pooling/masked:uniform_size": (
    {"kl": 2, "subset_kl": 2},
    {"multimodal.subsets": "uniform_size"},
  ),
  "sum_pooling/masked:bernoulli@kl=3": (
    {"kl": 3, "subset_kl": 3},
    {"multimodal.subsets": "bernoulli"},
  ),
  "sum_pooling/masked@kl=3@subset_kl=5": ({"kl": 3, "subset_kl": 5}, {}),
  "attention:4/masked": (
    {"kl": 2, "subset_kl": 2},
    {"posterior.name": "mixture", "posterior.components": 4},
  ),
  "attention/tc": ({"subset_kl": 2}, {"posterior.components": 1}),
  "poe/tc@subset_kl=7": ({"subset_kl": 7}, {}),
  "poe_as_released/mixture_bound:bernoulli": (
    {"kl": 2},
    {"multimodal.subsets": "bernoulli"},
  ),
}


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
def test_family_config(spec):
  """Weights, the variant, and nothing else; a beta of 2 in the config."""
  weights, changed = SPECS[spec]
  c = polydigits(kl=2)
  before = config.to_json(c)
  got = family_config(c, spec)
  assert config.to_json(c) == before
  assert given(got) == weights
  fusion, objective = re.match(r"(\w+).*?/(\w+)", spec).groups()
  assert (got.multimodal.fusion, got.objective.name) == (fusion, objective)
  for key, value in changed.items():
    assert config.get(got, key) == value
  may_differ = {"multimodal.fusion", "objective.name", *changed}
  for key in config.differences(c, got):
    assert key.startswith("weights.") or key in may_differ, key


def test_the_configs_own_subset_weight_stays():
  c = polydigits(kl=2, subset_kl=0.5)
  assert given(family_config(c, "attention/masked@kl=4")) == {
    "kl": 4,
    "subset_kl": 0.5,
  }
  assert given(family_config(c, "attention/tc")) == {"subset_kl": 0.5}


def test_without_a_beta_it_is_1():
  c = polydigits()
  assert given(family_config(c, "poe/masked")) == {"kl": 1, "subset_kl": 1}
  assert given(family_config(c, "poe/tc")) == {"subset_kl": 1}


def test_components_and_private_latents_of_the_config():
  c = polydigits()
  c.multimodal.fusion, c.multimodal.private = "attention", 2
  c.posterior.name, c.posterior.components = "mixture", 3
  c.posterior.mixture.min_weight = 0.1
  same = family_config(c, "attention/masked")
  assert (same.posterior.name, same.posterior.components) == ("mixture", 3)
  assert (same.posterior.mixture.min_weight, same.multimodal.private) == (
    0.1,
    2,
  )
  for spec in ("sum_pooling/masked", "attention:1/masked", "poe/elbo"):
    got = family_config(c, spec)
    assert (got.posterior.name, got.posterior.components) == ("gaussian", 1)
    assert got.posterior.mixture.min_weight == 0
    assert got.multimodal.private == 2
  assert family_config(c, "separate/elbo").multimodal.private == 0


WRONG = {
  "": ("fusion[:components]/objective[:variant]", "separate", "mmvm"),
  "poe": ("fusion[:components]", *FUSIONS),
  "gaussian/elbo": ("multimodal.fusion='gaussian' must be one of", *FUSIONS),
  "poe/elbow": ("objective.name='elbow'", *objectives.OBJECTIVES),
  "poe/elbo:exact": ("objective 'elbo' has no variant", ":exact"),
  "separate/mmvm:mean": ("'mean'", "exact", "surrogate"),
  "separate/mmvm_population:exact": ("'exact'", "means", "debiased"),
  "attention/masked:some": ("'some'", "uniform_size", "bernoulli", "all"),
  "poe:2/elbo": ("'poe' combines Gaussians", "sum_pooling, attention"),
  "attention:0/masked": ("posterior.components=0",),
  "moe/mmvm": ("is not defined for multimodal.fusion='moe'",),
  "separate/masked": ("is not defined for multimodal.fusion='separate'",),
  "separate/tc": ("is not defined for multimodal.fusion='separate'",),
  "attention:4/gamix:no": ("'no'",),
  "poe/elbo@subset_kl=1": ("@subset_kl=1", "no such term", "recon, kl"),
  "poe/tc@kl=1": ("@kl=1", "no such term", "recon, subset_kl"),
  "poe/elbo@kl=-1": ("must be a finite number >= 0",),
  "poe/elbo@kl=1@kl=2": ("@kl=2", "already"),
}


@pytest.mark.parametrize("spec", WRONG)
def test_wrong_families(spec):
  with pytest.raises(UserError) as e:
    family_config(polydigits(), spec)
  text = str(e.value)
  assert text.startswith(f"--families={spec}: ")
  for word in WRONG[spec]:
    assert word in text


@pytest.mark.parametrize(
  ("fusion", "goal"), list(itertools.product(FUSIONS, objectives.OBJECTIVES))
)
def test_every_pair_is_built_or_refused(fusion, goal):
  spec = f"{fusion}/{goal}"
  try:
    got = family_config(polydigits(), spec)
  except UserError as e:
    assert str(e).startswith(f"--families={spec}: ")
  else:
    assert set(objectives.OBJECTIVES[goal].terms) <= {"recon", *given(got)}
    assert (fusion == "separate") or "mmvm" not in goal


def test_every_objective_for_several_modalities_has_a_family():
  for goal, kind in objectives.OBJECTIVES.items():
    if kind.subsets or "mmvm" in goal:
      fusion = "poe" if kind.subsets else "separate"
      assert family_config(polydigits(), f"{fusion}/{goal}")


def test_folder_names_are_safe_and_distinct():
  names = {folder_name(spec) for spec in SPECS}
  assert len(names) == len(SPECS)
  for name in names:
    assert re.fullmatch(r"[a-z][a-z0-9_.+-]*", name), name


def test_plan_of_small_modalities(tmp_path):
  """Features of whole images need 8x8; these are vectors."""
  c = config_of("linear_gaussian")
  runs = loop.planned(c, ["poe/elbo", "sum_pooling/masked"], 2, tmp_path)
  assert len({folder for folder, _ in runs.values()}) == 4
  (fingerprint,) = {own.data.fingerprint for _, own in runs.values()}
  assert fingerprint


def test_documented_specs_fit():
  text = (ROOT / "docs" / "multimodal.md").read_text()
  (families,) = re.findall(r"--families=(\S+)", text)
  for spec in families.split(","):
    family_config(config_of("polydigits"), spec)


# ------------------------------------------------------------ the fronts


def made_up(specs, numbers):
  c = polydigits()
  runs = {(s, k): (None, family_config(c, s)) for s in specs for k in (0, 1)}
  done = {
    (s, k): {"numbers": {n: 10.0 * i + j + k for j, n in enumerate(numbers)}}
    for i, s in enumerate(specs)
    for k in (0, 1)
  }
  return c, runs, done


def test_front_panels():
  """A line of points that differ in beta only; other weights are another."""
  specs = [
    *("poe/elbo@kl=2", "poe/elbo", "separate/mmvm_population@population_kl=3"),
    *("separate/mmvm_population@kl=2@population_kl=3", "poe/tc@subset_kl=4"),
    "separate/mmvm_population@population_kl=9@kl=2",
    "poe/masked@kl=2@subset_kl=3",
  ]
  numbers = ["mae", "linear_probe_size/1", "coherence_size/1"]
  c, runs, done = made_up(specs, numbers)
  done[specs[1], 0] = done[specs[1], 1] = None
  del done[specs[0], 0]["numbers"]["coherence_size/1"]
  del done[specs[0], 1]["numbers"]["coherence_size/1"]
  panels, xlabel = multimodal_report.front_panels(c, runs, done, specs)
  assert "absolute error" in xlabel
  probe, coherence = panels.values()
  assert [(p.line, p.label) for p in probe] == [
    ("poe/elbo", "2"),
    ("separate/mmvm_population@population_kl=3", "1"),
    ("separate/mmvm_population@population_kl=3", "2"),
    ("poe/tc", "4"),
    ("separate/mmvm_population@population_kl=9", "2"),
    ("poe/masked", "2, 3"),
  ]
  assert (probe[1].x, probe[1].y) == ([20, 21], [21, 22])
  assert [p.line for p in coherence] == [p.line for p in probe][1:]
  assert next(iter(panels)).startswith("linear probe of the latents")


def test_front_of_other_modalities_is_against_the_likelihood():
  c = config_of("mnist_label")
  specs = ["poe/elbo", "moe/elbo"]
  numbers = ["reconstruction_log_likelihood", "joint_coherence"]
  _, runs, done = made_up(specs, numbers)
  panels, xlabel = multimodal_report.front_panels(c, runs, done, specs)
  assert "log-likelihood" in xlabel and len(panels) == 1


def test_fronts_drawn(tmp_path, monkeypatch):
  """Colours are those of the lines in every panel; means and deviations."""
  drawn = []
  kept = plots.save
  monkeypatch.setattr(
    plots, "save", lambda fig, path: (drawn.append(fig), kept(fig, path))
  )
  lines = [f"line {i}" for i in range(12)]
  points = [
    plots.Point(line, f"{k}", [0.1 * i + k, 0.1 * i + k + 0.2], [i, i + 1])
    for i, line in enumerate(lines)
    for k in (0, 1)
  ]
  panels = {"first": points, "second": points[4:], "third": points[:2]}
  plots.fronts(tmp_path / "front.png", panels, "x of all")
  with Image.open(tmp_path / "front.png") as image:
    assert image.format == "PNG" and min(image.size) > 500
  (fig,) = drawn
  *axes, last = fig.axes
  assert not last.get_visible()
  assert [ax.get_title() for ax in axes] == list(panels)
  assert {ax.get_xlabel() for ax in axes} == {"x of all"}
  styles = {}
  for ax, own in zip(axes, panels.values(), strict=True):
    wanted = list(dict.fromkeys(p.line for p in own))
    assert [c.get_label() for c in ax.containers] == wanted
    for container in ax.containers:
      line = container[0]
      style = line.get_color(), line.get_marker()
      assert styles.setdefault(container.get_label(), style) == style
      means = [
        (np.mean(p.x), np.mean(p.y))
        for p in own
        if p.line == container.get_label()
      ]
      np.testing.assert_allclose(line.get_xydata(), means)
  assert len(set(styles.values())) == 12
  (legend,) = fig.legends
  assert [t.get_text() for t in legend.get_texts()] == lines


def test_comparison_without_images(tmp_path):
  panels = {"E": {"a": [1.0, 2.0], "b": []}}
  plots.comparison(tmp_path / "compare.png", ["a", "b"], panels, {}, {})
  with Image.open(tmp_path / "compare.png") as image:
    assert image.format == "PNG"


# ------------------------------------------------------------ comparisons


def quarters(rest, split, settings, seed):
  """Two views of 16x16 whose class is the quarter that is bright."""
  n = {"train": 300, "test": 60}[split]
  rng = np.random.default_rng(n)
  labels = (np.arange(n) % 4).astype(np.int32)
  arrays = {}
  for name in ("a", "b"):
    x = rng.integers(0, 60, (n, 16, 16, 1))
    for i, k in enumerate(labels):
      x[i, 8 * (k // 2) :, 8 * (k % 2) :][:8, :8] += 180
    arrays[name] = x.astype(np.uint8)
  return data.MultimodalArrays(arrays, labels)


@pytest.fixture(scope="module", autouse=True)
def source():
  """Not registered: runs would name this module among their extensions."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(data.SOURCES, "quarters", quarters)
    yield


FAMILIES = ("separate/mmvm:exact", "poe/elbo@kl=0.5")


def quarters_config():
  c = config.base()
  presets.multimodal(c, ("a 16x16x1 l1", "b 16x16x1 l1"))
  c.data.source, c.data.batch_size = "quarters", 8
  c.steps = c.log_every = c.eval_every = c.checkpoint.every = 2
  c.model.latent = 3
  c.model.encoder_features, c.model.decoder_features = (4, 4), (4, 1)
  c.eval_images, c.eval_draws = 40, 2
  c.weights.kl = 1.0
  return c


@pytest.fixture(scope="module")
def compared(tmp_path_factory, quick):
  """A finished comparison of `FAMILIES`, one seed."""
  path = tmp_path_factory.mktemp("compared") / "all"
  kept = settings.base

  def few_steps():
    c = kept()
    c.eval.classifier_steps = 60
    return c

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(settings, "base", few_steps)
    loop.compare(quarters_config(), FAMILIES, 1, path)
    yield path


def read(folder):
  text = (folder / report.CSV).read_text()
  return list(csv.DictReader(io.StringIO(text)))


def test_numbers(compared):
  rows = read(compared)
  assert [r["family"] for r in rows] == list(FAMILIES)
  everywhere = {
    *("mae", "mae/a", "psnr/b", "reconstruction_log_likelihood"),
    *("linear_probe/a", "linear_probe_size/1", "linear_probe_size/2"),
    *("coherence_size/1", "joint_coherence", "sample_classes"),
    *("classifier_accuracy/a", "sec_per_step"),
  }
  for row in rows:
    assert all(np.isfinite(float(row[k])) for k in everywhere)
    assert bool(row["iwae"]) == ("elbo" in row["family"])
    assert "coherence/a->b" not in row  # only their means
    assert float(row["mae"]) == pytest.approx(
      (float(row["mae/a"]) + float(row["mae/b"])) / 2, rel=1e-5
    )
  assert len({row["classifier_accuracy/a"] for row in rows}) == 1
  assert float(rows[0]["classifier_accuracy/a"]) > 0.9


def test_report(compared):
  text = (compared / report.TABLE).read_text()
  for words in (
    "Data: quarters; modalities a 16x16x1 l1, b 16x16x1 l1; 300 training and "
    "60 held-out observations.",
    "Evaluation: averaged weights, 40 held-out observations",
    "classifiers classifier_f64_s0, with held-out accuracy a ",
    "`separate/mmvm:exact`: weights recon 1, kl 1; exact; alpha 0, reached "
    "after 0 steps; samples from gmm; parameters ",
    "`poe/elbo@kl=0.5`: weights recon 1, kl 0.5; samples from prior; ",
    "![](compare.png)",
    "![](front.png)",
  ):
    assert words in text, words
  sizes = re.findall(r"`poe/elbo@kl=0.5`.*parameters (.*)\.", text)[0]
  assert re.sub(r"[\d,]+", "N", sizes) == "decoders N encoders N fusion N"
  for name in ("compare.png", "front.png"):
    with Image.open(compared / name) as image:
      assert image.format == "PNG" and min(image.size) > 300
  (kept,) = {p.parent for p in compared.rglob("classifier-*")}
  assert kept == compared


@pytest.mark.slow
def test_again_trains_nothing_and_a_lost_result_comes_back(compared, capsys):
  before = (compared / report.CSV).read_bytes()
  loop.compare(quarters_config(), FAMILIES, 1, compared)
  assert "Parameters" not in capsys.readouterr().out
  run = compared / folder_name(FAMILIES[0]) / "seed0"
  result = json.loads((run / evaluate_run.RESULTS).read_text())
  assert set(result["pictures"]) == {evaluate_run.STRIP, evaluate_run.ORIGINALS}
  (run / evaluate_run.RESULTS).unlink()
  loop.compare(quarters_config(), FAMILIES, 1, compared)
  printed = capsys.readouterr().out
  assert "Continuing at step 2" in printed
  assert printed.count("[1/2]") == 1 and "[2/2]" not in printed
  assert (compared / report.CSV).read_bytes() == before


def test_a_damaged_result_is_not_used(compared):
  run = compared / folder_name(FAMILIES[1]) / "seed0"
  c = config.read(run / "config.json")
  path = run / evaluate_run.RESULTS
  good = path.read_text()
  assert evaluate_run.finished(run, c)
  for key in ("pictures", "protocol"):
    found = json.loads(good)
    del found[key]
    path.write_text(json.dumps(found))
    assert evaluate_run.finished(run, c) is None, key
  path.write_text(good)
  strip = run / evaluate_run.STRIP
  picture = strip.read_bytes()
  strip.unlink()
  assert evaluate_run.finished(run, c) is None
  strip.write_bytes(picture)
  assert evaluate_run.finished(run, c)


# ------------------------------------------------------------ the command


@pytest.mark.parametrize(
  ("name", "families", "wanted"),
  [
    (
      "linear_gaussian",
      "sum_pooling/masked,poe_as_released/mixture_bound",
      {"exact_log_likelihood", "log_likelihood_gap", "iwae"},
    ),
    pytest.param(
      *("ivae", "attention:2/masked", {"mcc_weak", "mcc_strong"}),
      marks=pytest.mark.slow,
    ),
  ],
)
def test_command_without_images(program, tmp_path, name, families, wanted):
  flags = [
    f"--config=configs/{name}.py:tiny",
    f"--families={families}",
    "--seeds=1",
    "--config.eval_images=50",
    f"--workdir={tmp_path / 'all'}",
  ]
  ran = program.run(*flags, module="gamix_jax.compare")
  assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
  rows = read(tmp_path / "all")
  assert [r["family"] for r in rows] == families.split(",")
  for row in rows:
    assert all(np.isfinite(float(row[k])) for k in wanted)
  if "log_likelihood_gap" in wanted:
    (exact,) = {float(r["exact_log_likelihood"]) for r in rows}
    for row in rows:
      gap = exact - float(row["iwae"])
      assert float(row["log_likelihood_gap"]) == pytest.approx(gap, rel=1e-4)
  assert (tmp_path / "all" / report.FIGURE).is_file()


def test_command_refuses(program, tmp_path):
  flags = ["--config=configs/ivae.py:tiny", f"--workdir={tmp_path / 'all'}"]
  for families, words in (
    ("gaussian/elbo", ["--families=gaussian/elbo", *FUSIONS]),
    ("poe/mmvm", ["--families=poe/mmvm", "is not defined for"]),
  ):
    ran = program.run(
      *flags, f"--families={families}", module="gamix_jax.compare"
    )
    assert_refused(ran, *words)
  assert not (tmp_path / "all").exists()

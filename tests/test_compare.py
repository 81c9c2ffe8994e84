"""Comparisons: specs to configs, results to tables, the complete command.

Checked against NumPy's mean and standard deviation, the evaluations in the
training log, and the parameter counts printed there.
"""

import csv
import io
import itertools
import json
import re
import shutil
import subprocess

import jax
import numpy as np
import pytest
import scipy.linalg
from damage import damages
from PIL import Image
from program import ROOT, SMALL, assert_refused, config_of
from program import rows as log_of

from gamix_jax import config, data, objectives, plots, presets
from gamix_jax.compare import evaluate_run, report
from gamix_jax.compare.families import family_config, folder_name
from gamix_jax.compare.loop import planned
from gamix_jax.errors import UserError
from gamix_jax.evaluate import eval_inputs, run_metrics, settings
from gamix_jax.files import PART
from gamix_jax.posterior import POSTERIORS

# ------------------------------------------------------------ families

ADVERSARIAL = {"adversarial", "real", "fake"}


def complete_config():
  """A config without a preset: gamix on digits, with an adversarial part."""
  c = presets.complete(config_of("digits"))
  c.preset = ""
  c.adversarial.loss = "hinge"
  c.weights.update(
    population_kl=10, collapse_penalty=1, adversarial=2, real=1, fake=1
  )
  for term in c.ramp:
    c.ramp[term] = 0
  return c


def given(c):
  return {k: v for k, v in c.weights.items() if v is not None}


@pytest.mark.parametrize(
  ("spec", "weights", "rest"),
  [
    ("gaussian/elbo", {"kl": 1}, ("gaussian", 1, "kernel", "normal")),
    (
      "gaussian/gamix:means",
      {"population_kl": 10, "collapse_penalty": 1},
      ("gaussian", 1, "means", "normal"),
    ),
    (
      "gaussian/gamix",
      {"population_kl": 10, "collapse_penalty": 1},
      ("gaussian", 1, "kernel", "normal"),
    ),
    (
      "mixture:4/gamix:quadratic",
      {"population_kl": 10, "collapse_penalty": 1},
      ("mixture", 4, "quadratic", "normal"),
    ),
    ("mixture:4/selbo", {"kl": 1}, ("mixture", 4, "kernel", "normal")),
    ("mixture:2/siwae", {"kl": 1}, ("mixture", 2, "kernel", "normal")),
    (
      "epanechnikov/evae",
      {"kernel": 1},
      ("epanechnikov", 1, "kernel", "uniform"),
    ),
    (
      "epanechnikov/elbo",
      {"kl": 1},
      ("epanechnikov", 1, "kernel", "normal"),
    ),
  ],
)
def test_family_config(spec, weights, rest):
  c = complete_config()
  before = config.to_json(c)
  got = family_config(c, spec)
  assert config.to_json(c) == before
  shared = {k: v for k, v in given(c).items() if k in ADVERSARIAL | {"recon"}}
  assert given(got) == pytest.approx(shared | weights, rel=0.01)
  own = got.posterior
  found = (own.name, own.components, got.objective.population)
  assert (*found, own.epanechnikov.prior) == rest
  # Everything else equals the shared config.
  for key in config.differences(c, got):
    sections = ("posterior.", "objective.", "weights.", "ramp.")
    assert key.startswith(sections), key


def with_networks(goal):
  """Returns the config with the networks that an objective needs."""
  c = complete_config()
  c.objective.tcvae.images = 1_000
  if goal == "exact":
    c.model.decoder, c.objective.reconstruction = "linear", "l2"
    c.model.upsample_gain = 1.0  # nothing is upsampled
  return c


@pytest.mark.parametrize(
  ("name", "goal"), list(itertools.product(POSTERIORS, objectives.OBJECTIVES))
)
def test_every_pair_is_built_or_refused(name, goal):
  """All combinations of the tables: built, or refused with the spec named."""
  try:
    got = family_config(with_networks(goal), f"{name}/{goal}")
  except UserError as e:
    assert str(e).startswith(f"--families={name}/{goal}: ")
    kind = objectives.OBJECTIVES[goal]
    why = "for several modalities" if kind.subsets else "is not defined for"
    assert why in str(e)
  else:
    assert set(objectives.OBJECTIVES[goal].terms) <= set(given(got))


def test_every_objective_has_a_family():
  """Those for several modalities are in test_compare_multimodal."""
  for goal, kind in objectives.OBJECTIVES.items():
    if kind.subsets or "mmvm" in goal:
      continue
    fits = 0
    for name in POSTERIORS:
      try:
        family_config(with_networks(goal), f"{name}/{goal}")
      except UserError:
        continue
      fits += 1
    assert fits, goal


def test_weights_come_back_from_an_elbo_config():
  """A config without gamix's weights gets those of base(); its own kl stays."""
  c = complete_config()
  c.weights.update(population_kl=None, collapse_penalty=None, kl=0.5)
  assert family_config(c, "gaussian/elbo").weights.kl == 0.5
  got = family_config(c, "gaussian/gamix")
  assert (got.weights.population_kl, got.weights.collapse_penalty) == (1.0, 0.2)
  assert got.weights.kl is None


def test_other_families_keys_are_dropped():
  """A mixture's min_weight does not prevent building the Gaussian."""
  c = complete_config()
  c.posterior.name, c.posterior.components = "mixture", 3
  c.posterior.mixture.min_weight = 0.1
  assert family_config(c, "mixture/selbo").posterior.components == 3
  assert family_config(c, "mixture/selbo").posterior.mixture.min_weight == 0.1
  got = family_config(c, "gaussian/elbo").posterior
  assert (got.components, got.mixture.min_weight) == (1, 0.0)


def test_ramps_move_to_the_replacing_term():
  c = complete_config()
  c.ramp.population_kl, c.ramp.collapse_penalty, c.ramp.adversarial = 7, 300, 5
  for spec, wanted in {
    "gaussian/gamix": dict(
      population_kl=7, collapse_penalty=300, adversarial=5
    ),
    "gaussian/elbo": dict(kl=300, adversarial=5),
    "epanechnikov/evae": dict(kernel=300, adversarial=5),
    "mixture:2/siwae": dict(adversarial=5),
  }.items():
    got = family_config(c, spec).ramp
    assert {k: v for k, v in got.items() if v} == wanted, spec


def test_poisson_of_a_config_with_an_initial_variance():
  """The family has no initial variance, so it refuses the key."""
  c = complete_config()
  c.posterior.initial_logvar = -4.0
  assert family_config(c, "gaussian/elbo").posterior.initial_logvar == -4
  assert family_config(c, "poisson/elbo").posterior.initial_logvar == 0


WRONG = {
  "": ("posterior[:components]/objective[:population]", "gaussian, mixture"),
  "gaussian": ("posterior[:components]", *objectives.OBJECTIVES),
  "gauss/elbo": ("posterior.name='gauss' must be one of", *POSTERIORS),
  "gaussian/elbow": (
    "objective.name='elbow' must be one of",
    *objectives.OBJECTIVES,
  ),
  "gaussian/gamix:mean": ("'mean'", "means", "full", "quadratic"),
  "gaussian/elbo:means": ("has no population", "gamix"),
  "gaussian:4/elbo": ("posterior.components=4", "has one"),
  "mixture:0/selbo": ("posterior.components=0",),
  "gaussian/evae": ("is not defined for", "elbo"),
  "mixture:-1/selbo": ("posterior[:components]",),
  "gaussian/elbo@": ("[@term=weight...]",),
  "gaussian/elbo@kl": ("[@term=weight...]",),
  "gaussian/elbo@kl=1 ": ("[@term=weight...]",),
  "gaussian/elbo@kl=a/b": ("[@term=weight...]",),
  "gaussian/elbo@collapse_penalty=1": (
    "@collapse_penalty=1",
    "no such term",
    "recon, kl, adversarial",
  ),
  "gaussian/gamix@kl=1": ("'gamix'", "population_kl, collapse_penalty"),
  "gaussian/elbo@kl=-1": ("@kl=-1", "must be a finite number >= 0"),
  "gaussian/elbo@kl=much": ("@kl=much", "must be a finite number >= 0"),
  "gaussian/elbo@kl=nan": ("must be a finite number >= 0",),
  "gaussian/elbo@kl=inf": ("must be a finite number >= 0",),
  "gaussian/elbo@kl=1@kl=2": ("@kl=2", "already"),
  "mixture:2/siwae@kl=2": ("weights.kl=2.0", "siwae"),
}


@pytest.mark.parametrize("spec", WRONG)
def test_wrong_families(spec):
  with pytest.raises(UserError) as e:
    family_config(complete_config(), spec)
  text = str(e.value)
  assert text.startswith(f"--families={spec}: ")
  assert text.count("\n") < 2
  for word in WRONG[spec]:
    assert word in text


@pytest.mark.parametrize("make", [complete_config, lambda: config_of("digits")])
def test_weights_of_a_spec(make):
  """Only the given weights differ from the spec without them."""
  for spec, weights in {
    "gaussian/elbo@kl=0.5": {"kl": 0.5},
    "gaussian/elbo@recon=1e2@kl=0": {"recon": 100, "kl": 0},
    "gaussian/gamix:debiased@population_kl=20@collapse_penalty=.2": {
      "population_kl": 20,
      "collapse_penalty": 0.2,
    },
    "mixture:4/gamix:full@collapse_penalty=2.5e-3": {
      "collapse_penalty": 0.0025
    },
  }.items():
    c = make()
    before = config.to_json(c)
    bare = family_config(c, spec.partition("@")[0])
    changed = config.differences(bare, family_config(c, spec))
    assert {k: v for k, (_, v) in changed.items()} == {
      f"weights.{k}": v for k, v in weights.items()
    }
    assert config.to_json(c) == before


def test_weights_of_the_discriminators_terms():
  """Only existing terms, for a loss that the preset may choose."""
  spec = "gaussian/elbo@adversarial=7@fake=2"
  assert family_config(complete_config(), spec).weights.adversarial == 7
  with pytest.raises(UserError, match=r"loss='none' has no such"):
    family_config(config_of("digits"), spec)
  c = config_of("digits")
  c.preset = "base"
  got = family_config(c, spec)
  assert (got.adversarial.loss, got.weights.adversarial) == ("hinge", 7)
  assert (got.weights.fake, got.weights.real) == (2, 1)


def test_presets_complete_each_family():
  """As that objective's own config would be completed."""
  for name, goal in [
    ("gaussian", "elbo"),
    ("gaussian", "gamix"),
    ("mixture", "siwae"),
    ("poisson", "elbo"),
  ]:
    alone = config_of("digits")
    alone.posterior.name, alone.objective.name = name, goal
    got = family_config(config_of("digits"), f"{name}/{goal}")
    assert config.differences(presets.complete(alone), got) == {}


def test_a_presets_config_keeps_what_is_given():
  c = config_of("digits")
  c.weights.update(recon=99, kl=0.25, collapse_penalty=0.75)
  c.ramp.collapse_penalty = 40
  elbo = family_config(c, "gaussian/elbo")
  assert given(elbo) == {"recon": 99, "kl": 0.25}
  assert {k: v for k, v in elbo.ramp.items() if v} == {"kl": 40}
  gamix = family_config(c, "gaussian/gamix")
  of_file = c.preset_weights.population_kl
  wanted = {"recon": 99, "collapse_penalty": 0.75, "population_kl": of_file}
  assert given(gamix) == wanted
  assert {k: v for k, v in gamix.ramp.items() if v} == {"collapse_penalty": 40}


def test_folder_names_are_safe_and_distinct():
  specs = [
    *("gaussian/elbo", "gaussian/elbo@kl=1", "gaussian/elbo@kl=1.0"),
    *("gaussian/elbo@kl=1e-3", "gaussian/elbo@kl=1e+3", "gaussian/elbo@kl=13"),
    *(
      "gaussian/gamix@collapse_penalty=1",
      "gaussian/gamix:means@collapse_penalty=1",
    ),
    "gaussian/gamix@population_kl=1@collapse_penalty=2",
    "gaussian/gamix@collapse_penalty=2@population_kl=1",
    *("mixture:2/gamix", "mixture/gamix@recon=2"),
  ]
  for spec in specs:
    family_config(complete_config(), spec)
  names = {folder_name(spec) for spec in specs}
  assert len(names) == len(specs)
  for name in names:
    assert re.fullmatch(r"[a-z][a-z0-9_.+-]*", name), name


def test_plan(tmp_path):
  c = complete_config()
  specs = ["gaussian/elbo", "mixture:4/gamix:quadratic"]
  runs = planned(c, specs, 2, tmp_path)
  assert list(runs) == [(s, seed) for seed in (0, 1) for s in specs]
  folders = {folder for folder, _ in runs.values()}
  assert len(folders) == 4
  folder, one = runs[specs[1], 1]
  assert folder == tmp_path / "mixture-4_gamix-quadratic" / "seed1"
  assert one.seed == 1
  with pytest.raises(UserError, match="gaussian/elbo twice"):
    planned(c, [specs[0]] * 2, 1, tmp_path)
  c.data.image_size = 4
  with pytest.raises(UserError, match="8x8"):
    planned(c, specs, 1, tmp_path)
  assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------ tables


@pytest.mark.parametrize(
  ("values", "text"),
  [
    ([], "-"),
    ([0.5], "0.5000"),
    ([3.0, 3.0], "3 ± 0"),
    ([1.0, 2.0], "1.500 ± 0.707"),
    ([-1234.5678, -1200.1], "-1217 ± 24"),
    ([123456.0, 123458.5], "123457 ± 2"),
    ([0.00471, 0.00473], "0.004720 ± 0.000014"),
    ([1e-9, 3e-9], "2.000e-09 ± 1.414e-09"),
    ([0.0, 0.0], "0 ± 0"),
    ([-1.0, 1.0], "0.000 ± 1.414"),
  ],
)
def test_cell(values, text):
  assert report.cell(values) == text


def test_spread_is_numpys():
  values = list(np.random.default_rng(0).normal(3, 2, 7))
  mean, sd = report.spread(values)
  assert mean == pytest.approx(np.mean(values), rel=1e-12)
  assert sd == pytest.approx(np.std(values, ddof=1), rel=1e-12)
  assert report.spread([2.0]) == (2.0, None)


def result(**numbers):
  return {"numbers": numbers}


MADE_UP = {
  ("a/x", 0): result(elbo=-10.0, mae=0.1),
  ("b/y", 0): result(mae=0.3),
  ("a/x", 1): result(elbo=-12.0, mae=0.2),
  ("b/y", 1): None,
}


def test_table_of_made_up_results():
  names = ["elbo", "mae"]
  assert report.table(names, MADE_UP, ["a/x", "b/y"]) == (
    "|  | a/x | b/y |\n"
    "| --- | ---: | ---: |\n"
    "| ELBO ↑ | -11.00 ± 1.41 | - |\n"
    "| absolute error ↓ | 0.1500 ± 0.0707 | 0.3000 |\n"
    "| seeds | 2 of 2 | 1 of 2 |\n"
  )
  assert report.to_csv(names, MADE_UP, ["a/x", "b/y"]) == (
    "family,seed,elbo,mae\na/x,0,-10.0,0.1\na/x,1,-12.0,0.2\nb/y,0,,0.3\n"
  )


def test_noise_is_not_taken_for_sharpness():
  done = {
    ("a/x", 0): result(sharpness_images=0.02, sharpness_prior=0.01),
    ("a/x", 1): result(sharpness_images=0.02, sharpness_prior=0.06),
    ("b/y", 0): result(sharpness_images=0.02, sharpness_prior=0.021),
    ("b/y", 1): result(sharpness_images=0.02, sharpness_gmm=0.06),
    ("c/z", 0): None,
  }
  lines = list(report.noisy_families(["a/x", "b/y", "c/z"], done))
  assert [line.split(" vary")[0] for line in lines] == [
    "Warning: `a/x`: Samples (prior)",
    "Warning: `b/y`: Samples (gmm)",
  ]
  assert "sharpness 0.035 against 0.02" in lines[0]


def test_seconds_per_step(tmp_path):
  """The first row includes compiling; the median is that of the others.

  Batch 8 at 16, 32, 80 images/s: median 32.
  """
  speed = "speed/images_per_second"
  rows = [{"step": 1, speed: 0.1}, {"step": 1, "eval/mae": 1.0}]
  rows += [{"step": 2, speed: v} for v in (16.0, 80.0, 32.0)]
  log = tmp_path / "metrics.jsonl"
  log.write_text("".join(json.dumps(r) + "\n" for r in rows))
  assert evaluate_run._seconds_per_step(tmp_path, 8) == 0.25
  log.write_text(json.dumps(rows[0]) + "\n")
  assert evaluate_run._seconds_per_step(tmp_path, 8) == pytest.approx(80)


def test_finished(tmp_path):
  """Only with this config; a key newer than the results does not count."""
  c = complete_config()
  assert evaluate_run.finished(tmp_path, c) is None
  path = tmp_path / evaluate_run.RESULTS
  values = json.loads(config.to_json(c))
  del values["ramp.collapse_penalty"]
  found = {"format": evaluate_run.FORMAT, "config": values}
  found["numbers"] = {"mae": 1.0}
  path.write_text(json.dumps(found))
  assert evaluate_run.finished(tmp_path, c) is None  # unknown features
  found["protocol"] = dict.fromkeys(evaluate_run.PROTOCOL, 1)
  path.write_text(json.dumps(found))
  assert evaluate_run.finished(tmp_path, c) is None  # no pictures
  for name in (evaluate_run.STRIP, evaluate_run.ORIGINALS):
    Image.new("L", (8, 8)).save(tmp_path / name)
  assert evaluate_run.finished(tmp_path, c)["numbers"] == {"mae": 1.0}
  assert evaluate_run.finished(tmp_path, c, ["gmm"]) is None
  path.write_text(json.dumps(found | {"sources": ["gmm", "two_stage"]}))
  assert evaluate_run.finished(tmp_path, c, ["gmm"])
  for text in damages(path.read_bytes(), 100):
    path.write_bytes(text)
    result = evaluate_run.finished(tmp_path, c)
    assert result is None or set(result["protocol"]) == evaluate_run.PROTOCOL
  path.write_text(json.dumps(found | {"format": evaluate_run.FORMAT - 1}))
  assert evaluate_run.finished(tmp_path, c) is None
  path.write_text(json.dumps(found | {"numbers": {"mae": None}}))
  assert evaluate_run.finished(tmp_path, c) is None
  path.write_text(json.dumps(found))
  c.eval_draws += 1
  assert evaluate_run.finished(tmp_path, c) is None
  for text in ("{", "{}", "[]", "null", '{"config": {"no such key": 1}}'):
    path.write_text(text)
    assert evaluate_run.finished(tmp_path, c) is None


def test_figure_that_cannot_be_written(tmp_path, monkeypatch):
  """The old figure stays, and no temporary file."""
  (tmp_path / "compare.png").write_bytes(b"old")

  def full(self, path, **_):
    path.write_bytes(b"half")
    raise OSError("full")

  monkeypatch.setattr(plots.Figure, "savefig", full)
  images = {
    "held out": tmp_path / evaluate_run.ORIGINALS,
    "b/y": tmp_path / evaluate_run.STRIP,
  }
  for name in (evaluate_run.STRIP, evaluate_run.ORIGINALS):
    Image.new("L", (20, 10)).save(tmp_path / name)
  with pytest.raises(OSError, match="full"):
    panels = {"E": {"a/x": [1.0, 2.0], "b/y": []}}
    plots.comparison(
      tmp_path / "compare.png", ["a/x", "b/y"], panels, images, {}
    )
  assert (tmp_path / "compare.png").read_bytes() == b"old"
  left = {p.name for p in tmp_path.iterdir()}
  assert left == {"compare.png", evaluate_run.STRIP, evaluate_run.ORIGINALS}


# ------------------------------------------------------------ the front


def made_up_front(specs, c=None):
  """Points of specs, with values from their index, for seeds 0 and 1."""
  runs = {
    (s, k): (None, family_config(c or complete_config(), s))
    for s in specs
    for k in (0, 1)
  }
  done = {
    (s, k): result(mae=0.1 + i % 3 + k / 50, fd=10.0 ** (i % 4) * (1 + k))
    for i, s in enumerate(specs)
    for k in (0, 1)
  }
  return runs, done


def test_front_of_one_posterior():
  """One line per objective, labelled with the weights that differ on it."""
  specs = [
    *("gaussian/elbo@kl=2", "gaussian/elbo@kl=0.5"),
    "gaussian/gamix:means@collapse_penalty=3",
    *(
      "gaussian/gamix@collapse_penalty=3",
      "gaussian/gamix@collapse_penalty=3@adversarial=4",
    ),
    "gaussian/elbo@kl=1",
  ]
  runs, done = made_up_front(specs)
  done["gaussian/elbo@kl=1", 0] = done["gaussian/elbo@kl=1", 1] = None
  points = report.front(runs, done, specs, "fd")
  assert [(p.line, p.label) for p in points] == [
    ("elbo, weights of kl", "2"),
    ("elbo, weights of kl", "0.5"),
    ("gamix:means, weights of population_kl, collapse_penalty", "10, 3"),
    ("gamix:kernel, weights of adversarial", "2"),
    ("gamix:kernel, weights of adversarial", "4"),
  ]
  assert points[1].x == [1.1, 1.12] and points[1].y == [10, 20]


def test_front_of_two_posteriors():
  """No line joins two posteriors."""
  specs = ["gaussian/selbo", "mixture:2/selbo", "mixture:4/selbo"]
  points = report.front(*made_up_front(specs), specs, "fd")
  assert [p.line for p in points] == [f"{s}, weights of kl" for s in specs]


def test_front_drawn(tmp_path, monkeypatch):
  """Means, deviations, order, and labels that hide nothing."""
  rng = np.random.default_rng(0)
  near = [("a", str(i), 0.1 + 1e-3 * (i % 3), 2.0 + 0.01 * i) for i in range(5)]
  far = [("b", "30, 0.2", 0.3, 9.0), ("b", "10, 0.2", 0.2, 40.0)]
  points = [
    plots.Point(line, label, x + rng.normal(0, 1e-4, 3), [y, y * 1.1, y])
    for line, label, x, y in near + far
  ] + [plots.Point("c", "1", [0.2], [3.0])]
  drawn = []
  kept = plots.save

  def save(fig, path):
    drawn.append(fig)
    kept(fig, path)

  monkeypatch.setattr(plots, "save", save)
  path = tmp_path / "front.png"
  plots.front(path, points, "fd of something")
  with Image.open(path) as image:
    assert image.format == "PNG" and min(image.size) > 500
  (fig,) = drawn
  (ax,) = fig.axes
  assert ax.get_yscale() == "log"
  assert "fd of something" in ax.get_ylabel()
  assert "absolute error" in ax.get_xlabel()
  assert [c.get_label() for c in ax.containers] == ["a", "b", "c"]
  colors = set()
  for container in ax.containers:
    line, _, (bars_x, bars_y) = container
    own = [p for p in points if p.line == container.get_label()]
    own.sort(key=lambda p: np.mean(p.x))
    means = [(np.mean(p.x), np.mean(p.y)) for p in own]
    np.testing.assert_allclose(line.get_xydata(), means)
    for axis, bars in enumerate((bars_x, bars_y)):
      for p, (start, end) in zip(own, bars.get_segments(), strict=True):
        values = (p.x, p.y)[axis]
        sd = np.std(values, ddof=1) if len(values) > 1 else 0
        assert end[axis] - start[axis] == pytest.approx(2 * sd, abs=1e-12)
    colors.add(line.get_color())
  assert len(colors) == 3
  assert sorted(t.get_text() for t in ax.texts) == sorted(
    p.label for p in points
  )
  boxes = [t.get_window_extent() for t in ax.texts]
  for a, b in itertools.combinations(boxes, 2):
    assert not a.overlaps(b)
  places = ax.transData.transform(
    [(np.mean(p.x), np.mean(p.y)) for p in points]
  )
  for box, place in itertools.product(boxes, places):
    assert not box.contains(*place)


# ------------------------------------------------------------ the command

FAMILIES = ("mixture:2/gamix:means@collapse_penalty=0.5", "epanechnikov/evae")
EACH = [(f, s) for s in (0, 1) for f in FAMILIES]


def compare(program, *flags):
  return subprocess.run(
    program.argv(*flags, module="gamix_jax.compare"),
    env=program.env(),
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )


def words(folder, seeds=2, families=FAMILIES):
  return [
    *SMALL,
    f"--families={','.join(families)}",
    f"--seeds={seeds}",
    f"--workdir={folder}",
  ]


def ended_well(ran):
  assert ran.returncode == 0, ran.stderr
  return re.findall(r"^\[(\d+)/4\] (\S+), seed (\d)$", ran.stdout, re.M)


@pytest.fixture(scope="module")
def folder(program, tmp_path_factory):
  """A finished comparison; its command runs once."""
  path = tmp_path_factory.mktemp("compared") / "all"
  ran = compare(program, *words(path), "--sources=gmm")
  begun = ended_well(ran)
  wanted = [(str(i), f, str(s)) for i, (f, s) in enumerate(EACH, 1)]
  assert begun == wanted
  assert "compare.md" in ran.stdout.splitlines()[-1]
  return path


def read(folder):
  text = (folder / "compare.csv").read_text()
  return list(csv.DictReader(io.StringIO(text)))


def test_csv(folder):
  rows = read(folder)
  assert [(r["family"], r["seed"]) for r in rows] == sorted(
    ((f, str(s)) for f, s in EACH), key=lambda r: FAMILIES.index(r[0])
  )
  everywhere = {
    *("mae", "psnr", "sharpness_reconstructions", "sharpness_prior"),
    *("sharpness_images", "active_units", "collapsed_fraction"),
    *("sec_per_step", "decodes_per_image"),
    *(f"{k}_prior" for k in ("precision", "recall", "density", "coverage")),
    *("sharpness_gmm", "coverage_gmm"),
  }
  for row in rows:
    name = row["family"]
    values = {k: float(v) for k, v in row.items() if k[:2] == "fd"}
    assert len(values) == 3 and all("random_conv_f" in k for k in values)
    assert all(np.isfinite(float(row[k])) for k in everywhere)
    bounded = "evae" not in name
    for k in ("elbo", "iwae", "kl", "mutual_information", "population_kl"):
      assert bool(row[k]) == bounded, (name, k)
    for k in ("effective_components", "collapsed_components"):
      assert bool(row[k]) == ("mixture" in name), (name, k)
    assert float(row["decodes_per_image"]) == (2 if "mixture" in name else 1)
    if bounded:
      assert float(row["iwae"]) >= float(row["elbo"])
      assert 0 <= float(row["mutual_information"]) <= np.log(8) + 1e-3
  # The training's last evaluation row.
  run = folder / "mixture-2_gamix-means_collapse_penalty-0.5" / "seed1"
  last = next(r for r in reversed(log_of(run)) if "eval/elbo" in r)
  row = next(r for r in rows if (r["family"], r["seed"]) == (FAMILIES[0], "1"))
  for name in ("elbo", "iwae"):
    assert float(row[name]) == pytest.approx(last[f"eval/{name}"], rel=1e-5)


def test_markdown(folder):
  text = (folder / "compare.md").read_text()
  rows = read(folder)
  lines = [x for x in text.splitlines() if x.startswith("| ")]
  cells = [[c.strip() for c in x.strip("|").split("|")] for x in lines]
  assert cells[0] == ["", *FAMILIES]
  assert cells[-1] == ["seeds", *["2 of 2"] * 2]
  by_label = {c[0]: c[1:] for c in cells}
  assert by_label["ELBO ↑"][1] == "-"
  for i, name in enumerate(FAMILIES):
    mae = [float(r["mae"]) for r in rows if r["family"] == name]
    shown, sd = map(float, by_label["absolute error ↓"][i].split(" ± "))
    assert shown == pytest.approx(np.mean(mae), rel=1e-3)
    assert sd == pytest.approx(np.std(mae, ddof=1), abs=6e-5)
  for word in (
    "synthetic, 8x8x1; 256 training images, 64 held-out images",
    "3 steps, batch 8",
    "seeds 0, 1",
    "8 held-out images",
    "`mixture:2/gamix:means@collapse_penalty=0.5`: weights recon 32, "
    "population_kl 30, collapse_penalty 0.5; population means",
    "`epanechnikov/evae`: weights recon 32, kernel 1;",
    "features random_conv_f224_s0, which",
    "![](front.png)",
    "Warning: The Frechet distances are of 8 images, under 2,048",
    "The loss of `evae` is not a bound of ln p(x)",
    "random_conv_f",
    "never an FID",
    "Environment: 1 x cpu; gamix_jax ",
  ):
    assert word in text, word
  assert "Not finished" not in text
  parameters = (
    folder / "mixture-2_gamix-means_collapse_penalty-0.5/seed0/parameters.txt"
  ).read_text()
  total = re.search(r"Total: ([\d,]+)", parameters)[1].replace(",", "")
  own = re.search(
    r"`mixture:2/gamix:means@collapse_penalty=0.5`.*parameters (.*)\.", text
  )[1]
  counts = [int(n) for n in re.findall(r" (\d+)", own.replace(",", ""))]
  assert sum(counts) == int(total)


def test_png(folder):
  for name in ("compare.png", "front.png"):
    with Image.open(folder / name) as image:
      assert image.format == "PNG"
      assert min(image.size) > 500
      assert len(np.unique(np.asarray(image.convert("L")))) > 50
  for path in folder.rglob("*"):
    assert not path.name.startswith(PART)


def test_again_trains_nothing(program, folder):
  before = {n: (folder / n).read_bytes() for n in ("compare.csv", "compare.md")}
  ran = compare(program, *words(folder))
  assert ended_well(ran) == []
  assert "Parameters" not in ran.stdout
  for name, content in before.items():
    assert (folder / name).read_bytes() == content


def test_missing_results_are_computed(program, folder):
  """A run evaluated again from its checkpoint has the same results."""
  before = (folder / "compare.csv").read_bytes()
  run = folder / "epanechnikov_evae" / "seed1"
  (run / "results.json").unlink()
  ran = compare(program, *words(folder), "--sources=gmm")
  assert ended_well(ran) == [("4", "epanechnikov/evae", "1")]
  assert "Continuing at step 3." in ran.stdout
  assert (folder / "compare.csv").read_bytes() == before


def test_other_config_is_refused_at_once(program, folder):
  before = (folder / "compare.csv").read_bytes()
  ran = compare(program, *words(folder), "--config.model.latent=2")
  assert_refused(ran, "model.latent: 4 there, 2 now")
  assert "[1/4]" not in ran.stdout
  assert (folder / "compare.csv").read_bytes() == before


@pytest.mark.slow
def test_features_are_those_of_evaluate(program, tmp_path):
  """Images with labels: the same classifier, trained once for all runs.

  Distances: SciPy's eigenvalues, on images that the model generates here.
  """
  families = ("gaussian/elbo@kl=0.5", "gaussian/elbo@kl=2")
  flags = words(tmp_path, seeds=1, families=families[:1])
  flags += ["--config.data.source=digits", "--config.eval_images=1000"]
  ran = compare(program, *flags)
  assert ran.returncode == 0, ran.stderr
  assert not (tmp_path / "front.png").exists()
  text = (tmp_path / "compare.md").read_text()
  assert "front.png" not in text
  assert "classifier_f64_s0, learned from 1465 training images" in text
  (kept,) = tmp_path.rglob("classifier-*")  # none in the run's folder
  assert kept.parent == tmp_path
  run = tmp_path / "gaussian_elbo_kl-0.5" / "seed0"
  # Its name is a hash of its training data; this process, with other XLA
  # options, would not learn bitwise the same classifier.
  (run / "eval").mkdir()
  shutil.copy(kept, run / "eval")
  own = eval_inputs.open_run(run, settings.base().eval)
  found = json.loads((run / evaluate_run.RESULTS).read_text())
  assert found["protocol"]["features"] == own.features.extract.name
  assert found["protocol"]["features_sha256"] == own.features.extract.sha256
  assert found["protocol"]["used_images"] == len(own.images) == 332
  model, real = own.model, own.image_stats(own.images.x).features
  key = jax.random.key(evaluate_run.SAMPLES_KEY)
  for kind, generated in {
    "reconstructions": model.reconstruct(own.images.x),
    "prior": model.sample(key, 332),
  }.items():
    seen = own.image_stats(
      (332, lambda rows, generated=generated: generated[rows])
    ).features
    a, b = (np.asarray(v, np.float64) for v in (real, seen))
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    # The trace of the root, by eigenvalues: these moments may be singular.
    roots = np.sqrt(np.maximum(scipy.linalg.eigvals(cov_a @ cov_b).real, 0))
    fd = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b)
    fd -= 2 * roots.sum()
    got = found["numbers"][f"fd_classifier_f64_s0_{kind}"]
    assert got == pytest.approx(fd, rel=1e-3)
  # The same images in another order: what is not random equals evaluate's.
  measured = run_metrics.EvalRun(own)
  measured.reconstructions()
  measured.latents(jax.random.key(0))
  drawn = {"kl", "mutual_information", "population_kl"}
  drawn |= {"total_correlation", "dimension_kl"}
  names = measured.numbers.values.keys()
  assert {"mae", "psnr", "active_units", *drawn} <= names
  for name in names - drawn:
    got = found["numbers"][name]
    assert got == pytest.approx(measured.numbers.values[name], rel=1e-4), name
  before = kept.stat().st_mtime_ns
  flags[flags.index(f"--families={families[0]}")] = (
    f"--families={','.join(families)}"
  )
  ran = compare(program, *flags)
  assert ran.returncode == 0, ran.stderr
  assert re.findall(r"^\[\d/2\] (\S+),", ran.stdout, re.M) == [families[1]]
  assert kept.stat().st_mtime_ns == before
  assert "![](front.png)" in (tmp_path / "compare.md").read_text()


def test_a_signal_ends_it_with_a_report(program, tmp_path):
  """During the first run's training; the command then ends with the report."""
  one = words(tmp_path, seeds=1, families=FAMILIES[:1])
  process = subprocess.Popen(
    program.argv(*one, "--config.steps=100000", module="gamix_jax.compare"),
    env=program.env(),
    cwd=ROOT,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )
  for line in process.stdout:
    if line.strip().startswith("5/100000"):
      process.terminate()
      break
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  assert out.endswith(
    "Stopped; run the same command again to continue the comparison.\n"
  )
  assert not (tmp_path / "compare.md").exists()


@pytest.mark.parametrize(
  ("flags", "expected"),
  [
    (
      ["--families=gaussian/elbo,poisson/elbo", "--sources=two_stage"],
      ("--sources=two_stage", "poisson/elbo", "counts"),
    ),
    (["--families=gaussian/elbo", "--sources=prior"], ("population, gmm",)),
    (["--families=gauss/elbo"], ("--families=gauss/elbo", *POSTERIORS)),
    ([], ("--families is missing",)),
    (["--families=gaussian/elbo", "--seeds=0"], ("--seeds=0",)),
    (["--families=gaussian/elbo", "--config.stepz=2"], ("stepz",)),
  ],
)
def test_mistakes_leave_nothing(program, tmp_path, flags, expected):
  folder = tmp_path / "run"
  ran = compare(program, *SMALL, f"--workdir={folder}", *flags)
  assert_refused(ran, *expected)
  assert not folder.exists()


def test_help(program):
  ran = compare(program, "--help")
  assert ran.returncode == 0
  for word in ("--families", "--seeds", "--workdir", "--config"):
    assert word in ran.stdout


def test_images_are_of_all_classes():
  """Where a split is sorted by class, as folders are."""
  x = np.zeros((30, 8, 8, 1), np.uint8)
  labels = np.repeat(np.arange(3), 10).astype(np.int32)

  @data.SOURCES.register("sorted")
  def sorted_by_class(rest, split, settings, seed):
    return data.ArraySource(x, labels)

  c = config.base()
  c.data.update(source="sorted", image_size=8, channels=1)
  c.data.test_fraction = 0.5
  dataset = data.open_dataset(c.data, "test", c.seed)
  found = eval_inputs.spread_images(dataset, 6)
  assert len(found) == 6 and set(found.labels) == {0, 1, 2}
  everything = eval_inputs.spread_images(dataset, 10**6)
  assert list(everything.labels) == list(dataset.labels())

"""The comparison: specs to configs, numbers to tables, the whole command.

Second opinions: NumPy's mean and standard deviation, the log of the training
for what it has already evaluated, the parameters that it counted.
"""

import csv
import io
import itertools
import json
import re
import subprocess

import numpy as np
import pytest
from PIL import Image
from program import ROOT, SMALL, assert_refused, config_of
from program import rows as log_of

from gamix_jax import config, objective
from gamix_jax.compare import figure, judge, report
from gamix_jax.compare.families import family_config
from gamix_jax.compare.loop import planned
from gamix_jax.errors import UserError
from gamix_jax.posterior import HEADS

# ------------------------------------------------------------ families

ADVERSARIAL = {"fool", "real", "fake"}


def given(c):
  return {k: v for k, v in c.weights.items() if v is not None}


@pytest.mark.parametrize(
  ("spec", "weights", "rest"),
  [
    ("gaussian/elbo", {"kl": 1}, ("gaussian", 1, "debiased", "normal")),
    (
      "gaussian/gamix:means",
      {"population_kl": 10, "collapse": 1},
      ("gaussian", 1, "means", "normal"),
    ),
    (
      "gaussian/gamix",
      {"population_kl": 10, "collapse": 1},
      ("gaussian", 1, "debiased", "normal"),
    ),
    (
      "mixture:4/gamix:quadratic",
      {"population_kl": 10, "collapse": 1},
      ("mixture", 4, "quadratic", "normal"),
    ),
    ("mixture:4/selbo", {"kl": 1}, ("mixture", 4, "debiased", "normal")),
    ("mixture:2/siwae", {"kl": 1}, ("mixture", 2, "debiased", "normal")),
    (
      "epanechnikov/evae",
      {"kernel": 1},
      ("epanechnikov", 1, "debiased", "uniform"),
    ),
    (
      "epanechnikov/elbo",
      {"kl": 1},
      ("epanechnikov", 1, "debiased", "normal"),
    ),
  ],
)
def test_family_config(spec, weights, rest):
  c = config_of("digits")
  before = config.to_json(c)
  got = family_config(c, spec)
  assert config.to_json(c) == before
  shared = {k: v for k, v in given(c).items() if k in ADVERSARIAL | {"recon"}}
  assert given(got) == pytest.approx(shared | weights, rel=0.01)
  own = got.posterior
  found = (own.name, own.components, got.objective.population)
  assert (*found, own.epanechnikov.prior) == rest
  # Nothing else is another than the shared config's.
  for key in config.differences(c, got):
    sections = ("posterior.", "objective.", "weights.", "ramp.")
    assert key.startswith(sections), key


def fitting(goal):
  """digits, with the networks that an objective wants."""
  c = config_of("digits")
  if goal == "exact":
    c.model.decoder, c.objective.reconstruction = "linear", "l2"
  return c


@pytest.mark.parametrize(
  ("name", "goal"), list(itertools.product(HEADS, objective.OBJECTIVES))
)
def test_every_pair_is_built_or_refused(name, goal):
  """Whatever is in the tables: by build, and with the spec in the message."""
  try:
    got = family_config(fitting(goal), f"{name}/{goal}")
  except UserError as e:
    assert str(e).startswith(f"--families={name}/{goal}: ")
    assert "is not defined for" in str(e)
  else:
    assert set(objective.OBJECTIVES[goal].terms) <= set(given(got))


def test_every_objective_has_a_family():
  for goal in objective.OBJECTIVES:
    fits = 0
    for name in HEADS:
      try:
        family_config(fitting(goal), f"{name}/{goal}")
      except UserError:
        continue
      fits += 1
    assert fits, goal


def test_weights_come_back_from_an_elbo_config():
  """A config without gamix's weights has base()'s; its own kl stays."""
  c = config_of("digits")
  c.weights.update(population_kl=None, collapse=None, kl=0.5)
  assert family_config(c, "gaussian/elbo").weights.kl == 0.5
  got = family_config(c, "gaussian/gamix")
  assert (got.weights.population_kl, got.weights.collapse) == (1.0, 0.2)
  assert got.weights.kl is None


def test_other_families_keys_stay_behind():
  """A mixture's floor does not keep the Gaussian from being built."""
  c = config_of("digits")
  c.posterior.name, c.posterior.components = "mixture", 3
  c.posterior.mixture.floor = 0.1
  assert family_config(c, "mixture/selbo").posterior.components == 3
  assert family_config(c, "mixture/selbo").posterior.mixture.floor == 0.1
  got = family_config(c, "gaussian/elbo").posterior
  assert (got.components, got.mixture.floor) == (1, 0.0)


def test_ramps_go_on_with_the_term_that_takes_the_place():
  c = config_of("digits")
  c.ramp.population_kl, c.ramp.collapse, c.ramp.fool = 7, 300, 5
  for spec, wanted in {
    "gaussian/gamix": dict(population_kl=7, collapse=300, fool=5),
    "gaussian/elbo": dict(kl=300, fool=5),
    "epanechnikov/evae": dict(kernel=300, fool=5),
    "mixture:2/siwae": dict(fool=5),
  }.items():
    got = family_config(c, spec).ramp
    assert {k: v for k, v in got.items() if v} == wanted, spec


def test_poisson_of_a_config_with_an_initial_variance():
  """It has no variance to start with, so that it refuses one."""
  c = config_of("digits")
  c.posterior.initial_logvar = -4.0
  assert family_config(c, "gaussian/elbo").posterior.initial_logvar == -4
  assert family_config(c, "poisson/elbo").posterior.initial_logvar == 0


WRONG = {
  "": ("posterior[:components]/objective[:population]", "gaussian, mixture"),
  "gaussian": ("posterior[:components]", *objective.OBJECTIVES),
  "gauss/elbo": ("'gauss' is not a posterior", *HEADS),
  "gaussian/elbow": ("'elbow' is not an objective", *objective.OBJECTIVES),
  "gaussian/gamix:mean": ("'mean'", "means", "full", "quadratic"),
  "gaussian/elbo:means": ("has no population", "gamix"),
  "gaussian:4/elbo": ("posterior.components=4", "has one"),
  "mixture:0/selbo": ("posterior.components=0",),
  "gaussian/evae": ("is not defined for", "elbo"),
  "mixture:-1/selbo": ("posterior[:components]",),
}


@pytest.mark.parametrize("spec", WRONG)
def test_wrong_families(spec):
  with pytest.raises(UserError) as e:
    family_config(config_of("digits"), spec)
  text = str(e.value)
  assert text.startswith(f"--families={spec}: ")
  assert text.count("\n") < 2
  for word in WRONG[spec]:
    assert word in text


def test_plan(tmp_path):
  c = config_of("digits")
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
  lines = [report.Quantity("elbo", "E", ""), report.Quantity("mae", "M", "")]
  assert report.table(lines, MADE_UP, ["a/x", "b/y"]) == (
    "|  | a/x | b/y |\n"
    "| --- | ---: | ---: |\n"
    "| E | -11.00 ± 1.41 | - |\n"
    "| M | 0.1500 ± 0.0707 | 0.3000 |\n"
    "| seeds | 2 of 2 | 1 of 2 |\n"
  )
  assert report.to_csv(lines, MADE_UP, ["a/x", "b/y"]) == (
    "family,seed,elbo,mae\na/x,0,-10.0,0.1\na/x,1,-12.0,0.2\nb/y,0,,0.3\n"
  )


def test_seconds_a_step(tmp_path):
  """The first row compiled; batch 8 at 16, 32, 80 images/s, median 32."""
  rows = [{"step": 1, "speed/images_per_second": 0.1}, {"eval/mae": 1.0}]
  rows += [{"speed/images_per_second": v} for v in (16.0, 80.0, 32.0)]
  log = tmp_path / "metrics.jsonl"
  log.write_text("".join(json.dumps(r) + "\n" for r in rows))
  assert judge._seconds_a_step(tmp_path, 8) == 0.25
  log.write_text(json.dumps(rows[0]) + "\n")
  assert judge._seconds_a_step(tmp_path, 8) == pytest.approx(80)


def test_finished(tmp_path):
  """By this config alone; a key that the results are too old for is none."""
  c = config_of("digits")
  assert judge.finished(tmp_path, c) is None
  path = tmp_path / judge.RESULTS
  values = config.flat(c)
  del values["ramp.collapse"]
  path.write_text(json.dumps({"config": values, "numbers": {"mae": 1.0}}))
  assert judge.finished(tmp_path, c)["numbers"] == {"mae": 1.0}
  c.eval_draws += 1
  assert judge.finished(tmp_path, c) is None
  for text in ("{", "{}", '{"config": {"no such key": 1}}'):
    path.write_text(text)
    assert judge.finished(tmp_path, c) is None


def test_figure_that_cannot_be_written(tmp_path, monkeypatch):
  """The old one stays, and nothing beside it."""
  (tmp_path / "compare.png").write_bytes(b"old")

  def full(self, path, **_):
    path.write_bytes(b"half")
    raise OSError("full")

  monkeypatch.setattr(figure.Figure, "savefig", full)
  folders = {"a/x": None, "b/y": tmp_path}
  for name in (judge.STRIP, judge.ORIGINALS):
    Image.new("L", (20, 10)).save(tmp_path / name)
  with pytest.raises(OSError, match="full"):
    panels = {"E": {"a/x": [1.0, 2.0], "b/y": []}}
    figure.save(tmp_path / "compare.png", panels, folders, {})
  assert (tmp_path / "compare.png").read_bytes() == b"old"
  left = {p.name for p in tmp_path.iterdir()}
  assert left == {"compare.png", judge.STRIP, judge.ORIGINALS}


# ------------------------------------------------------------ the command

FAMILIES = ("mixture:2/gamix:means", "epanechnikov/evae")
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
  """A finished comparison, its command run once."""
  path = tmp_path_factory.mktemp("compared") / "all"
  ran = compare(program, *words(path))
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
    *("mae", "psnr", "sharpness_reconstructions", "sharpness_samples"),
    *("sharpness_held_out", "active_units", "collapsed_share"),
    *("seconds_a_step", "draws_decoded"),
  }
  for row in rows:
    name = row["family"]
    values = {k: float(v) for k, v in row.items() if k[:2] == "fd"}
    assert len(values) == 2 and all("random_conv_f" in k for k in values)
    assert all(np.isfinite(float(row[k])) for k in everywhere)
    bounded = "evae" not in name
    for k in ("elbo", "iwae", "mutual_information", "population_kl"):
      assert bool(row[k]) == bounded, (name, k)
    assert bool(row["effective_components"]) == ("mixture" in name)
    assert float(row["draws_decoded"]) == (2 if "mixture" in name else 1)
    if bounded:
      assert float(row["iwae"]) >= float(row["elbo"])
      assert 0 <= float(row["mutual_information"]) <= np.log(8) + 1e-3
  # The training's own evaluation, the last line that it wrote.
  run = folder / "mixture-2_gamix-means" / "seed1"
  last = next(r for r in reversed(log_of(run)) if "eval/elbo" in r)
  row = next(r for r in rows if (r["family"], r["seed"]) == (FAMILIES[0], "1"))
  for name in ("elbo", "iwae", "mae", "psnr", "active_units"):
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
    "synthetic, 8x8x1; 256 images to train on, 64 held out",
    "3 steps, batch 8",
    "seeds 0, 1",
    "8 held-out images",
    "`mixture:2/gamix:means`: weights recon 200, population_kl 10, collapse 1, "
    "fool 2, real 1, fake 1",
    "Warning: the Frechet distances are of 8 images, under 2048",
    "The loss of `evae` is not a bound of ln p(x)",
    "random_conv_f",
    "never an FID",
    "On 1 x cpu; gamix_jax ",
  ):
    assert word in text, word
  assert "Not finished" not in text
  parameters = (
    folder / "mixture-2_gamix-means/seed0/parameters.txt"
  ).read_text()
  total = re.search(r"Total: ([\d,]+)", parameters)[1].replace(",", "")
  own = re.search(r"`mixture:2/gamix:means`.*parameters (.*)\.", text)[1]
  counts = [int(n) for n in re.findall(r" (\d+)", own.replace(",", ""))]
  assert sum(counts) == int(total)


def test_png(folder):
  with Image.open(folder / "compare.png") as image:
    assert image.format == "PNG"
    assert min(image.size) > 500
    assert len(np.unique(np.asarray(image.convert("L")))) > 50
  for path in folder.rglob("*"):
    assert not path.name.endswith(".part")


def test_again_trains_nothing(program, folder):
  before = {n: (folder / n).read_bytes() for n in ("compare.csv", "compare.md")}
  ran = compare(program, *words(folder))
  assert ended_well(ran) == []
  assert "Parameters" not in ran.stdout
  for name, data in before.items():
    assert (folder / name).read_bytes() == data


def test_what_is_missing_is_done(program, folder):
  """One run judged again from its checkpoint: the same numbers."""
  before = (folder / "compare.csv").read_bytes()
  run = folder / "epanechnikov_evae" / "seed1"
  (run / "results.json").unlink()
  ran = compare(program, *words(folder))
  assert ended_well(ran) == [("4", "epanechnikov/evae", "1")]
  assert "Continuing at step 3." in ran.stdout
  assert (folder / "compare.csv").read_bytes() == before


def test_other_config_is_refused_at_once(program, folder):
  before = (folder / "compare.csv").read_bytes()
  ran = compare(program, *words(folder), "--config.model.latent=2")
  assert_refused(ran, "model.latent: 4 there, 2 now")
  assert "[1/4]" not in ran.stdout
  assert (folder / "compare.csv").read_bytes() == before


def test_a_signal_ends_it_well(program, tmp_path):
  """In the first run's training; the command then ends with the report."""
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
    "Asked to stop: the same command continues the comparison.\n"
  )
  assert not (tmp_path / "compare.md").exists()


@pytest.mark.parametrize(
  ("flags", "expected"),
  [
    (["--families=gauss/elbo"], ("--families=gauss/elbo", *HEADS)),
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

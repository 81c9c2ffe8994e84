"""The quality benchmark: equal images, kept budgets, correct metrics.

`--tiny` covers the complete command, with the peer if it is installed.
"""

import importlib.util
import json
import re
import subprocess

import numpy as np
import pytest
from program import ROOT, assert_refused
from sklearn.datasets import load_digits

from benchmarks.quality import child, judge, ours, report, rows
from gamix_jax.errors import UserError

# From ml_collections, which loads the config files.
LOADING = "ignore:the load_module:DeprecationWarning"
pytestmark = pytest.mark.filterwarnings(LOADING)

PEER = all(importlib.util.find_spec(name) for name in ("torch", "pythae"))
SECONDS = 8  # a start takes about 4


def run(program, *flags):
  return subprocess.run(
    program.argv(*flags, module="benchmarks.quality"),
    env=program.env(),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    timeout=900,
  )


# ------------------------------------------------------------ the whole way


@pytest.fixture(scope="module")
def tiny(program, tmp_path_factory):
  """Returns the output of --tiny, and its folder."""
  out = tmp_path_factory.mktemp("quality")
  ran = run(program, "--tiny", f"--rows=digits_{SECONDS}", f"--out={out}")
  assert ran.returncode == 0, ran.stderr
  return ran, out


def sides(out):
  found = json.loads((out / "quality.json").read_text())
  return found, found["rows"][f"digits_{SECONDS}"]


@pytest.mark.slow
def test_budget_is_kept(tiny):
  _, out = tiny
  found, of = sides(out)
  assert set(of) == ({"ours", "peer"} if PEER else {"ours"})
  assert bool(found["skipped"]) != PEER
  assert found["machine"]["cores"] >= 1
  run = of["ours"]["0"]
  assert 1 < run["cpu_seconds"] <= ours.MAX_OVERRUN * SECONDS
  assert run["images"] == 64 * run["steps"]
  saved = json.loads(
    (out / f"digits_{SECONDS}/ours_s0/config.json").read_text()
  )
  assert saved["steps"] == run["steps"]
  # By hand: 64 pixels, width 16, a head of 4 means and 4 variances.
  encoder, head = 65 * 16, 17 * 8
  assert run["parameters"] >= encoder + head + 5 * 16 + 17 * 64
  if PEER:
    assert SECONDS <= of["peer"]["0"]["cpu_seconds"] < SECONDS + 1
    assert of["peer"]["0"]["parameters"] > run["parameters"]


@pytest.mark.slow
def test_metrics_are_those_of_the_stored_images(tiny):
  """The MAE recomputed from scikit-learn's digits, with the same held out."""
  ran, out = tiny
  digits = np.round(load_digits().images * (255 / 16)).astype(int)
  held = {image.tobytes() for image in digits}
  for side, seeds in sides(out)[1].items():
    with np.load(out / f"digits_{SECONDS}" / f"{side}_s0.npz") as arrays:
      again, drawn = arrays["reconstructions"], arrays["samples"]
    assert again.dtype == drawn.dtype == np.uint8
    assert again.shape == drawn.shape == (332, 8, 8, 1)
    images = rows.read(
      ours.Ours(rows.TINY_TASKS["digits"], "digits", ()).config
    )
    assert {x.astype(int).tobytes() for x in images.test[..., 0]} <= held
    off = np.abs(again.astype(float) - images.test) * 2 / 255
    numbers = seeds["0"]
    assert numbers["mae"] == pytest.approx(off.mean(), rel=1e-5)
    assert numbers["mae"] < 0.6  # uniform grey: 0.75
    assert set(numbers["features"]) == {"random", "classifier"}
    for of in numbers["features"].values():
      assert 0 < of["fd_reconstructions"] < 100
      assert 0 <= of["precision"] <= 1
      assert 0 <= of["coverage"] <= 1
    shown = f"| digits_{SECONDS} | {side} |"
    assert shown in ran.stdout
    assert f"| {numbers['mae']:.4f} |" in ran.stdout
  assert (out / f"digits_{SECONDS}.png").stat().st_size > 10_000
  assert (out / "quality.md").read_text() in ran.stdout


@pytest.mark.slow
def test_the_same_command_repeats_nothing(program, tiny):
  first, out = tiny
  before = sides(out)
  again = run(program, "--tiny", f"--rows=digits_{SECONDS}", f"--out={out}")
  assert again.returncode == 0, again.stderr
  assert "steps" not in again.stderr
  assert again.stdout == first.stdout
  assert sides(out) == before


@pytest.mark.slow
def test_a_run_with_other_settings_is_refused(tiny):
  file = tiny[1] / f"digits_{SECONDS}" / "ours_s0.json"
  was = json.loads(file.read_text())
  now = ours.Ours(rows.TINY_TASKS["digits"], "digits", ()).settings
  now |= {"seconds": SECONDS, "images": was["settings"]["images"]}
  assert child.finished(file, now) == was
  with pytest.raises(UserError, match=r"other settings \(seconds: 8 there, 9"):
    child.finished(file, now | {"seconds": 9})
  assert child.finished(file.with_name("ours_s1.json"), now) is None


# ------------------------------------------------------------ mistakes


def test_mistakes_of_the_command(program, tmp_path):
  refused = [
    ((), "give --mnist"),
    (("--tiny", "--sides=theirs"), "ours, peer"),
    ((f"--mnist=npz:{tmp_path}/none.npz", "--rows=mnist_9"), "none.npz"),
  ]
  ran = [
    program.pool.submit(run, program, f"--out={tmp_path}", *flags)
    for flags, _ in refused
  ]
  for job, (_, words) in zip(ran, refused, strict=True):
    lines = job.result().stderr.splitlines()
    told = [x for x in lines if "reading" not in x]  # the benchmark's progress
    job.result().stderr = "\n".join(told)
    assert_refused(job.result(), words)


@pytest.mark.parametrize(
  ("row", "words"),
  [
    ("mnist_120", "--rows=mnist_120 has no data: give --mnist="),
    ("fashion_mnist_600", "give --fashion="),
    ("faces_soon", "<task>_<CPU-seconds>"),
    ("digits_9", "the tasks are mnist, fashion_mnist, faces"),
  ],
)
def test_mistakes_of_rows(row, words):
  with pytest.raises(UserError, match=re.escape(words)):
    rows.parse([row], dict.fromkeys(rows.TASKS), False)


@pytest.mark.parametrize(
  ("override", "words"),
  [
    ("model.latnet=3", "latnet"),
    ("model.latent=many", "--ours: "),
    ("optim.vae.b1=2.0", "optim.vae.b1=2.0 must be in [0, 1)"),
    ("steps=3", "set by the benchmark"),
    ("data.crop=none", "changes the images"),
    ("model.latent", "key=value"),
  ],
)
def test_mistakes_of_overrides(override, words):
  with pytest.raises(UserError, match=re.escape(words)):
    ours.Ours(rows.TINY_TASKS["digits"], "digits", [override])


def test_rows_and_sources():
  none = dict.fromkeys(rows.TASKS)
  given = none | {"mnist": "m", "faces": "f"}
  assert rows.parse(None, given, False) == {
    "mnist": [120, 600],
    "faces": [600, 1800],
  }
  assert rows.parse(["mnist_9", "mnist_3"], given, False) == {"mnist": [3, 9]}
  for task, path, wanted in (
    ("mnist", "/d/mnist", "idx:/d/mnist"),
    ("mnist", "/d/mnist.npz", "npz:/d/mnist.npz"),
    ("mnist", "tfds:mnist", "tfds:mnist"),
    ("faces", "/d/faces", "folder:/d/faces"),
    ("faces", "/odd:name", "folder:/odd:name"),
  ):
    assert rows.source(rows.TASKS[task], path) == wanted


# ------------------------------------------------------------ steps


@pytest.mark.parametrize(
  ("each", "seconds"),
  [(0.0004, 20), (0.0004, 600), (0.01, 20), (0.01, 120), (0.7, 120)],
)
def test_steps_fill_the_budget(tmp_path, each, seconds):
  """On a machine with 8 s per start and constant time per step, plus noise."""
  rng, spent = np.random.default_rng(0), []

  def train(steps):
    spent.append(8 + each * steps + seconds * rng.uniform(-1e-3, 1e-3))
    return spent[-1]

  timing = ours.Timing(tmp_path / "times.json", train)
  steps = timing.steps_for(seconds)
  took = 8 + each * steps
  assert 0.85 * seconds < took < ours.MAX_OVERRUN * seconds
  assert sum(spent) < 100 + 0.5 * seconds
  # Nothing is timed again, and a known run makes it exact.
  times = len(spent)
  again = ours.Timing(tmp_path / "times.json", train)
  again.add(steps, took)
  assert 0.95 * seconds < 8 + each * again.steps_for(seconds) <= seconds
  assert len(spent) == times


def test_no_steps_for_a_budget_of_the_start_alone(tmp_path):
  timing = ours.Timing(tmp_path / "t.json", lambda steps: 8 + 0.01 * steps)
  with pytest.raises(UserError, match=r"8\.0 of 5 CPU-seconds pass"):
    timing.steps_for(5)


# ------------------------------------------------------------ judge, report


def made_up(labels=True):
  rng = np.random.default_rng(0)
  x = rng.integers(0, 256, (100, 8, 8, 1), np.uint8)
  y = rng.integers(0, 2, 100) if labels else np.full(100, -1)
  return rows.Images(x[:60], y[:60], x[60:], y[60:], "")


def test_judge_ranks_perfect_and_worse_images(tmp_path):
  images = made_up(labels=False)
  found = judge.Judge(images, ("random", "classifier"), tmp_path)
  assert set(found.extractors) == {"random"}  # without labels
  assert found.accuracy is None
  perfect = found(images.test, images.test)
  assert perfect["mae"] == 0
  of = perfect["features"]["random"]
  assert of["fd_reconstructions"] == pytest.approx(0, abs=1e-6)
  assert of["recall"] == of["coverage"] == 1
  flat = np.full_like(images.test, 128)
  grey = found(flat, flat)
  assert grey["features"]["random"]["fd_prior"] > of["fd_prior"] + 0.1
  with pytest.raises(ValueError, match="must be"):
    found(images.test[1:], images.test)


def test_table_has_means_and_standard_deviations():
  def facts(k):
    shares = dict.fromkeys(report.PRDC, 0.25 * k)
    of = {"fd_reconstructions": float(k), "fd_prior": 2.0 * k, **shares}
    return {
      "cpu_seconds": 100 + 10 * k,
      "images": 1000 * k,
      "parameters": 1234,
      "mae": 0.1 * k,
      "features": {"random": of},
    }

  seeds = {0: facts(1), 1: facts(3)}
  lines = report.table({"mnist_120": {"ours": seeds}}).splitlines()
  root2 = f"{2**0.5:.3f}"  # of 1 and 3, with one degree of freedom
  wanted = ["mnist_120", "ours", "120 ± 14", "2,000 ± 1,414", "1,234"]
  wanted += ["0.2000 ± 0.1414", "random", f"2.000 ± {root2}", "4.000 ± 2.828"]
  wanted += [" / ".join(["0.50 ± 0.35"] * 4), "0, 1"]
  assert lines[-1] == "| " + " | ".join(wanted) + " |"
  assert {line.count("|") for line in lines} == {len(report.HEAD) + 1}

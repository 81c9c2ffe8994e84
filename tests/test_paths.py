"""Paths mean the same in all commands; changed data are refused.

Commands are run as by a user: a run is started in one folder and resumed in
another, and the images are moved in between.
"""

import json
import shutil
from functools import partial

import pytest
from program import (
  ANY_LENGTH,
  ROOT,
  SMALL,
  assert_refused,
  noise,
  numbers,
  save,
)

from gamix_jax import config, data, inference, paths
from gamix_jax.errors import UserError
from gamix_jax.training import workdir

SIZE = 8
IMAGES = "--config.data.source=folder:images"


def images(folder, seed, n=40):
  for i in range(n):
    save(folder / f"{i:02d}.png", noise([seed, i], SIZE, SIZE))


@pytest.fixture
def places(tmp_path):
  """Two folders with different images of the same names, and a third folder."""
  images(tmp_path / "here" / "images", 0)
  images(tmp_path / "there" / "images", 1)
  (tmp_path / "home").mkdir()
  return tmp_path


def test_resolve(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", "/home/somebody")
  assert str(paths.resolve("~/a b/[1]*?")) == "/home/somebody/a b/[1]*?"
  assert paths.resolve("a/../b") == tmp_path / "a" / ".." / "b"
  assert str(paths.resolve("/x")) == "/x"
  with pytest.raises(UserError, match="full path"):
    paths.resolve("~nobody-of-that-name/x")


EVALUATION = (
  "--config.eval.images=8",
  "--config.eval.train_images=16",
  "--config.eval.bound_images=4",
  "--config.eval.draws=2",
  "--config.eval.sources=('prior',)",
  "--config.eval.features=random",
)


@pytest.mark.slow
def test_a_run_keeps_to_its_images(program, places):
  """Evaluated and resumed from elsewhere, with moved and replaced images."""
  here, there = places / "here", places / "there"
  run = (*ANY_LENGTH, "--workdir=../run [1]")
  first = program.run(*SMALL, IMAGES, *run, cwd=here)
  assert (first.returncode, first.stderr) == (0, ""), first.stderr
  path = places / "run [1]"
  saved = json.loads((path / "config.json").read_text())
  assert saved["data.source"] == f"folder:{here}/images"
  train, test = saved["data.fingerprint"].split(":")
  assert train != test

  # From another folder that has images of the same names.
  module, ask = "gamix_jax.evaluate", f"--workdir={path}"
  ran = program.run(ask, *EVALUATION, cwd=there, module=module)
  assert ran.returncode == 0, ran.stderr
  assert f"folder:{here}/images" in (path / "eval" / "report.md").read_text()

  # Moved: every command reports it, until it is given the new path.
  (here / "images").rename(places / "moved")
  moved = f"--config.data.source=folder:{places}/moved"
  other = f"--config.data.source=folder:{there}/images"
  refusal = (
    f"{there}/images does not hold the images",
    "--config.data.source=",
    "--config.data.fingerprint=any",
  )
  ran = program.run(ask, *EVALUATION, other, cwd=there, module=module)
  assert_refused(ran, *refusal)
  what = ("--what=reconstructions", f"--out={places}/out.png", "--n=4")
  generate = partial(
    program.run, ask, *what, cwd=there, module="gamix_jax.generate"
  )
  assert_refused(generate(), f"{here}/images does not exist")
  assert_refused(generate(other), *refusal)
  assert generate(moved).returncode == 0
  assert generate(other, "--config.data.fingerprint=any").returncode == 0

  # Resumed: refused with other images, unchanged with the moved ones.
  before = numbers(path)
  more = (*SMALL, *ANY_LENGTH, "--config.steps=5", ask)
  refused = program.run(*more, other, cwd=there)
  assert_refused(refused, f"{there}/images does not hold the images")
  assert f"folder:{here}/images" in refused.stderr
  found = program.run(*more, moved, cwd=there)
  assert (found.returncode, found.stderr) == (0, ""), found.stderr
  assert "Continuing at step 3." in found.stdout
  assert numbers(path)[: len(before) - 1] == before[:-1]
  saved = json.loads((path / "config.json").read_text())
  assert saved["data.source"] == f"folder:{places}/moved"

  # On request with other images, which belong to the run from then on.
  taken = program.run(
    *(*SMALL, *ANY_LENGTH, "--config.steps=6", ask, other),
    "--config.data.fingerprint=any",
  )
  assert (taken.returncode, taken.stderr) == (0, ""), taken.stderr
  after = json.loads((path / "config.json").read_text())
  assert after["data.fingerprint"] not in ("any", saved["data.fingerprint"])


def test_workdirs_below_home(program, places):
  """`~` is the same folder in every command, from any current folder."""
  home = places / "home"
  env = program.env(HOME=str(home))
  shutil.copy(ROOT / "configs" / "digits.py", home / "mine.py")
  flags = ("--config=~/mine.py:tiny", *SMALL[1:], "--workdir=~/run")
  run = program.run(*flags, env=env, cwd=places)
  assert run.returncode == 0, run.stderr
  assert (home / "run" / "config.json").is_file()
  assert not (places / "~").exists()
  completed = program.run(
    *("--workdir=~/run", "--what=samples", "--n=4", "--out=~/a.png"),
    module="gamix_jax.generate",
    env=env,
    cwd=places,
  )
  assert completed.returncode == 0, completed.stderr
  assert (home / "a.png").is_file()


def of(source, fingerprint):
  c = config.base()
  c.data.source, c.data.fingerprint = source, fingerprint
  return c


def test_what_counts_as_changed(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  a, b = f"folder:{tmp_path}/a", f"folder:{tmp_path}/b"

  def keys(old, new):
    return sorted(workdir.changed(of(*old), of(*new)))

  assert keys((a, "1:2"), (a, "1:2")) == []
  assert keys((a, "1:2"), (b, "1:2")) == []  # moved
  assert keys((a, "1:2"), (a, "1:3")) == ["data.fingerprint"]
  assert keys((a, "1:2"), (b, "1:3")) == ["data.fingerprint", "data.source"]
  assert keys((a, "1:2"), (b, data.ANY_FINGERPRINT)) == []
  # A run older than fingerprints, with the path as it was typed.
  assert keys(("folder:a", ""), (a, "1:2")) == []
  assert keys(("folder:a", ""), (b, "1:2")) == ["data.source"]


def test_load_takes_where_the_images_are_now(program, places):
  program.done(
    *SMALL,
    f"--config.data.source=folder:{places}/here/images",
    f"--workdir={places}/run",
  )
  shutil.move(places / "here" / "images", places / "now")
  source = f"folder:{places}/now"
  model = inference.load(places / "run", data={"source": source})
  assert model.config.data.source == source
  opened = data.open_dataset(model.config.data, "test")
  assert len(opened) > 0
  wrong = {"source": f"folder:{places}/there/images"}
  model = inference.load(places / "run", data=wrong)
  with pytest.raises(UserError, match="does not hold the images"):
    data.open_dataset(model.config.data, "test")

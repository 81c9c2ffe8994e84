"""Models by name: those of the package, and where their results go."""

import os
import re
from pathlib import Path

import conftest
import numpy as np
import pytest
import yaml
from program import ROOT

import gamix_jax
from gamix_jax import data, locate, paths
from gamix_jax.errors import UserError
from gamix_jax.evaluate import eval_inputs, settings
from gamix_jax.inference.fitting import read_images, read_observations
from gamix_jax.training import loop

NAMES = locate.pretrained_names()
# Of the data sets that are not built in: their folders in GAMIX_DATA.
FOLDERS = {"mnist": "mnist", "fashion_mnist": "fashion_mnist"}


def folder_of(name):
  """Returns a folder with the data set's files; skips the test without one."""
  found = os.environ.get("GAMIX_DATA", ROOT.parent / "shared" / "data")
  folder = Path(found) / FOLDERS[name]
  if not folder.is_dir():
    pytest.skip(f"{folder} is not there; GAMIX_DATA names a folder that has it")
  return folder


def header(name):
  """Returns the card's metadata."""
  text = (locate.PRETRAINED / name / "README.md").read_text()
  return yaml.safe_load(text.split("---\n")[1])


def card_numbers(name):
  """Returns the numbers of the card, by name."""
  ((model),) = header(name)["model-index"]
  (result,) = model["results"]
  return {m["type"]: m["value"] for m in result["metrics"]}


# ------------------------------------------------------------ in the package


def test_there_are_those_that_are_documented():
  assert {"digits", "polydigits"} <= set(NAMES)
  text = (ROOT / "docs" / "inference.md").read_text()
  assert set(re.findall(r"`pretrained:(\w+)`", text)) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_in_the_package(name):
  """Safe formats only, small enough, with a card."""
  sizes = {
    p.name: p.stat().st_size for p in (locate.PRETRAINED / name).iterdir()
  }
  assert sizes.keys() == {
    *("model.safetensors", "config.json", "metrics.json"),
    *("README.md", "samples.png"),
  }
  assert sizes["model.safetensors"] <= 2_000_000
  assert sizes["samples.png"] <= 400_000
  found = header(name)
  assert (found["license"], found["library_name"]) == ("mit", "gamix_jax")
  text = (locate.PRETRAINED / name / "README.md").read_text()
  for words in ("## Use", "## Data", "## Machine", "## Numbers", "| seed |"):
    assert words in text
  # Paths of the machine it was trained on would help nobody.
  for file in ("README.md", "config.json", "metrics.json"):
    assert "/tmp" not in (locate.PRETRAINED / name / file).read_text()


@pytest.mark.parametrize("name", NAMES)
def test_it_decodes_to_what_its_card_says(name, quick):
  model = gamix_jax.load(f"pretrained:{name}")
  if name in FOLDERS:
    model.config.data.source = f"idx:{folder_of(name)}"
  test = data.open_dataset(model.config.data, "test", model.config.seed)
  if model.spec.multimodal:
    x = read_observations(test, range(len(test)))
    x_hat = model.reconstruct(x)
    x = {k: x[k] for k in x_hat}
  else:
    x, _ = read_images(test, range(len(test)))
    x, x_hat = {"image": x}, {"image": model.reconstruct(x)}
  mae = np.mean(
    [np.abs(v.astype("f8") / 127.5 - 1 - x_hat[k]).mean() for k, v in x.items()]
  )
  assert mae == pytest.approx(card_numbers(name)["mae"], rel=2e-3)


def test_names_that_are_refused():
  for name in ("nothing", "", "../pretrained/digits"):
    with pytest.raises(UserError, match="no such model; this version has"):
      gamix_jax.load(f"pretrained:{name}")
  # Where a folder is needed, as for training and --out.
  with pytest.raises(UserError, match=r"\./pretrained:digits"):
    paths.resolve("pretrained:digits")
  assert paths.resolve("./pretrained:digits").name == "pretrained:digits"


def test_training_does_not_go_to_a_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ("pretrained:digits", "hf:somebody/digits"):
    with pytest.raises(UserError, match="a folder or file is needed"):
      loop.train(conftest.flat(), name)
  assert list(tmp_path.iterdir()) == []


# ------------------------------------------------- nothing is written into it


def contents():
  return {p: p.stat().st_mtime_ns for p in sorted(locate.PRETRAINED.rglob("*"))}


@pytest.mark.slow
def test_commands_write_beside_the_current_folder(program, tmp_path):
  before = contents()

  def command(name, *flags):
    ran = program.run(
      *("--workdir=pretrained:digits", *flags),
      module=f"gamix_jax.{name}",
      cwd=tmp_path,
      env=program.env(PYTHONPATH=str(ROOT)),
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
    return ran.stdout

  said = command("export", "--what=model", "--format=safetensors")
  out = tmp_path / "runs" / "pretrained" / "digits" / "export"
  assert f"{out}/model.safetensors: " in said
  # The numbers go along with the weights.
  numbers = (locate.PRETRAINED / "digits" / "metrics.json").read_text()
  assert (out / "metrics.json").read_text() == numbers
  command("generate", "--what=samples", "--source=gmm", "--out=samples.png")
  assert (tmp_path / "samples.png").is_file()
  assert (out.parent / "samplers" / "ema_6000.npz").is_file()
  assert contents() == before


def test_evaluate_writes_beside_the_current_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  c = settings.base().eval
  with c.unlocked():
    c.update(images=4, train_images=4, features="random")
  inputs = eval_inputs.open_run("pretrained:digits", c)
  assert inputs.model.workdir == tmp_path / "runs" / "pretrained" / "digits"
  assert inputs.model.folder == locate.PRETRAINED / "digits"
  assert len(inputs.images) == 4

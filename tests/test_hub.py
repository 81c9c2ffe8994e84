"""The form of the Hugging Face hub: model cards, and models in its cache."""

import json
import shutil
import sys

import conftest
import jax
import numpy as np
import pytest
import yaml
from PIL import Image
from program import ROOT

import gamix_jax
from gamix_jax import build, locate
from gamix_jax import export as exporting
from gamix_jax.errors import UserError
from gamix_jax.export import card

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40
REASON = "pip install '.[hub]' has it tested"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  config = conftest.flat(data__source="synthetic")
  folder = tmp_path_factory.mktemp("runs") / "squares"
  conftest.save_run(folder, config, conftest.state_of(build.train_spec(config)))
  return folder


@pytest.fixture(scope="module")
def loaded(run, quick):
  return gamix_jax.load(run)


@pytest.fixture
def model(loaded, monkeypatch):
  """A model whose workdir the test may set."""
  monkeypatch.setattr(loaded, "workdir", loaded.workdir)
  return loaded


@pytest.fixture(scope="module")
def exported(run, loaded, tmp_path_factory):
  """Folders of both kinds of weights."""
  root = tmp_path_factory.mktemp("exported")
  exporting.export(loaded, "model", "safetensors", root / "ema")
  raw = gamix_jax.load(run, "raw")
  exporting.export(raw, "model", "safetensors", root / "raw")
  return root


def numbers(step=5, weights="averaged (ema)", value=0.25):
  """Returns the contents of a metrics.json, as `evaluate` writes it."""
  protocol = {
    "data": "idx:/home/somebody/data",
    **{"split": "test", "split_images": 1000, "step": step},
    **{"weights": weights, "gamix_jax": "0.1.0", "jax": "0.10.2"},
  }
  mae = {"value": value, "unit": "of [-1, 1]", "error": 0.01}
  fd = {"value": None, "reason": "too few images"}
  found = {"mae": mae, "fd_random_prior": fd, "kl": {"value": 3.0, "unit": ""}}
  for number in found.values():
    number["protocol"] = dict(protocol)
  return {"format": 1, "protocol": protocol, "numbers": found}


def evaluated(model, tmp_path, found):
  """Gives the model a workdir whose eval/ has these numbers."""
  (tmp_path / "work" / "eval").mkdir(parents=True)
  text = found if isinstance(found, str) else json.dumps(found)
  (tmp_path / "work" / "eval" / "metrics.json").write_text(text)
  model.workdir = tmp_path / "work"
  return model


def header_of(folder):
  text = (folder / "README.md").read_text()
  _, header, rest = text.split("---\n", 2)
  return yaml.safe_load(header), rest


# ------------------------------------------------------------------ the card


def test_card_of_an_evaluated_model(model, tmp_path):
  evaluated(model, tmp_path, numbers())
  facts = exporting.Facts(
    name="hf:somebody/squares",
    license="apache-2.0",
    datasets=("somebody/data",),
    source="folder:data",
    notes="## Limits\n\nSquares only.",
  )
  written = exporting.export(
    model, "model", "safetensors", tmp_path / "out", facts
  )
  assert {p.name for p in (tmp_path / "out").iterdir()} == written.keys()
  header, text = header_of(tmp_path / "out")
  assert header["license"] == "apache-2.0"
  assert header["library_name"] == "gamix_jax"
  assert header["datasets"] == ["somebody/data"]
  # Only what has a value, and not everything.
  assert header["metrics"] == ["mae"]
  (index,) = header["model-index"]
  (result,) = index["results"]
  assert index["name"] == "squares"
  assert result["dataset"]["type"] == "somebody/data"
  ((mae,),) = [result["metrics"]]
  assert (mae["type"], mae["value"]) == ("mae", 0.25)
  assert "| 0.250 ± 0.010 |" in text
  assert 'gamix_jax.load("hf:somebody/squares")' in text
  assert "## Limits\n\nSquares only." in text
  assert "![samples](samples.png)" in text
  assert model.config.data.fingerprint in text
  # The path of the data is nowhere.
  for name in ("README.md", "config.json", "metrics.json"):
    assert "/home/somebody" not in (tmp_path / "out" / name).read_text()
  assert gamix_jax.load(tmp_path / "out").config.data.source == "folder:data"
  # What the card says of the weights are the weights'.
  count = sum(v.size for v in jax.tree.leaves(model.variables))
  assert f"{count:,} values" in text


def test_lines_of_use_run(model, tmp_path):
  facts = exporting.Facts(name=str(tmp_path / "out"))
  exporting.export(model, "model", "safetensors", tmp_path / "out", facts)
  _, text = header_of(tmp_path / "out")
  code = text.split("```python\n")[1].split("```")[0]
  images = np.zeros((2, 4, 4, 1), "f4")
  found = {"images": images}
  exec(code, found)
  assert found["new"].shape == (16, 4, 4, 1)
  np.testing.assert_array_equal(found["x_hat"], model.reconstruct(images))


@pytest.mark.parametrize(
  "found",
  [None, numbers(step=4), numbers(weights="raw")],
  ids=["none", "step", "weights"],
)
def test_card_without_numbers_says_so(model, tmp_path, found):
  if found is not None:
    evaluated(model, tmp_path, found)
  written = exporting.export(model, "model", "safetensors", tmp_path / "out")
  header, text = header_of(tmp_path / "out")
  assert not header.keys() & {"license", "metrics", "model-index"}
  assert "None: these weights were not evaluated" in text
  assert "metrics.json" not in written
  assert "no numbers: run python -m gamix_jax.evaluate" in written["README.md"]
  assert "no licence: give it with --license" in written["README.md"]


def test_numbers_go_along_and_old_ones_go_away(model, tmp_path):
  evaluated(model, tmp_path, numbers())
  out = tmp_path / "out"
  exporting.export(model, "model", "safetensors", out)
  again = gamix_jax.load(out)
  exporting.export(again, "model", "safetensors", tmp_path / "again")
  header, _ = header_of(tmp_path / "again")
  assert header["metrics"] == ["mae"]
  # A workdir without numbers, exported to the same folder.
  model.workdir = tmp_path
  exporting.export(model, "model", "safetensors", out)
  assert not (out / "metrics.json").exists()


def test_damaged_numbers_are_named(model, tmp_path):
  for i, text in enumerate(("{", "[]", '{"protocol": {}, "numbers": {}}')):
    evaluated(model, tmp_path / str(i), text)
    with pytest.raises(UserError, match=r"metrics\.json is damaged"):
      exporting.export(model, "model", "safetensors", tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_a_readme_of_others_is_kept(model, tmp_path):
  (tmp_path / "README.md").write_text("# My project\n")
  with pytest.raises(UserError, match="not a model card of gamix_jax"):
    exporting.export(model, "model", "safetensors", tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == ["README.md"]
  assert (tmp_path / "README.md").read_text() == "# My project\n"
  exporting.export(model, "model", "safetensors", tmp_path / "out")
  exporting.export(model, "model", "safetensors", tmp_path / "out")  # its own


def test_facts_without_a_card_are_refused(model, tmp_path):
  with pytest.raises(UserError, match=r"--license.* are for the card"):
    exporting.export(
      model, "decoder", "safetensors", tmp_path, exporting.Facts(license="mit")
    )


def test_card_of_several_modalities(tmp_path, quick):
  model = gamix_jax.load("pretrained:polydigits")
  exporting.export(model, "model", "safetensors", tmp_path / "out")
  header, text = header_of(tmp_path / "out")
  assert "multimodal" in header["tags"]
  assert "m4 (16x16x3)" in text
  picture = np.asarray(Image.open(tmp_path / "out" / "samples.png"))
  made = model.sample(jax.random.key(0), card.COLUMNS)
  # Five rows of eight images, enlarged four times, with lines between them.
  assert picture.shape == (5 * 66 + 2, 8 * 66 + 2, 3)
  wanted = np.rint((np.clip(made["m3"][1], -1, 1) + 1) * 127.5)
  got = picture[3 * 66 + 2 : 4 * 66 : 4, 66 + 2 : 2 * 66 : 4]
  np.testing.assert_array_equal(got, wanted)


def test_the_hub_reads_the_card(model, tmp_path):
  hub = pytest.importorskip("huggingface_hub", reason=REASON)
  evaluated(model, tmp_path, numbers())
  facts = exporting.Facts(license="mit", datasets=("a/b",))
  exporting.export(model, "model", "safetensors", tmp_path / "out", facts)
  read = hub.ModelCard.load(tmp_path / "out" / "README.md")
  assert read.data.license == "mit"
  (result,) = read.data.eval_results
  assert (result.metric_type, result.metric_value) == ("mae", 0.25)
  assert (result.dataset_type, result.dataset_split) == ("a/b", "test")


# ----------------------------------------------------------------- the cache


@pytest.fixture
def cache(exported, tmp_path, monkeypatch):
  """A local cache with two revisions of a model; the hub is not asked."""
  hub = pytest.importorskip("huggingface_hub", reason=REASON)
  root = tmp_path / "cache"
  repo = root / "models--somebody--squares"
  for commit, which, names in (
    (COMMIT, "ema", ("main",)),
    (OTHER, "raw", ("v1", "refs/pr/3")),
  ):
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir(exist_ok=True)
    for file in (exported / which).iterdir():
      # As the hub's client has it: a link to a file named by its hash.
      blob = repo / "blobs" / f"{commit[:4]}{file.name}"
      shutil.copy(file, blob)
      (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    for name in names:
      ref = repo / "refs" / name
      ref.parent.mkdir(parents=True, exist_ok=True)
      ref.write_text(commit)
  monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(root))
  monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
  return root


def test_models_of_the_cache_open_offline(cache, run, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  model = gamix_jax.load("hf:somebody/squares")
  conftest.assert_same(model.variables, gamix_jax.load(run).variables)
  assert model.workdir == tmp_path / "runs" / "hf" / "somebody" / "squares"
  for revision in ("v1", OTHER, "refs/pr/3"):
    raw = gamix_jax.load(f"hf:somebody/squares@{revision}", "raw")
    conftest.assert_same(raw.variables, gamix_jax.load(run, "raw").variables)


def test_only_safe_files_are_downloaded(cache, monkeypatch):
  import huggingface_hub

  asked = {}

  def download(repo, **kwargs):
    asked.update(kwargs, repo=repo)
    return str(cache / "models--somebody--squares" / "snapshots" / COMMIT)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  gamix_jax.load("hf:somebody/squares@v1", "ema")
  assert (asked["repo"], asked["revision"]) == ("somebody/squares", "v1")
  assert set(asked["allow_patterns"]) == {
    *("config.json", "model.safetensors", "metrics.json", "README.md")
  }


def test_models_that_are_not_there(cache):
  snapshot = cache / "models--somebody--squares" / "snapshots" / COMMIT
  for name, words in (
    ("somebody/circles", "not in the local cache.*HF_HUB_OFFLINE"),
    ("somebody/squares@v2", "not in the local cache"),
    ("squares", "must be hf:<user>/<repo>"),
    ("", "must be hf:<user>/<repo>"),
    ("some body/x", "must be hf:<user>/<repo>"),
    ("some..body/x", "cannot be downloaded"),
  ):
    with pytest.raises(UserError, match=words) as caught:
      gamix_jax.load(f"hf:{name}")
    assert len(str(caught.value).splitlines()) == 1
  (snapshot / "config.json").unlink()
  (snapshot / "model.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
  with pytest.raises(UserError, match=r"has no config\.json.*--what=model"):
    gamix_jax.load("hf:somebody/squares")
  # A model of another program.
  (snapshot / "config.json").write_text('{"model_type": "bert"}')
  with pytest.raises(UserError, match=r"config\.json has config version"):
    gamix_jax.load("hf:somebody/squares")


def _status(code):
  """Returns an error of the hub's client as after an answer with a status."""
  from huggingface_hub import errors

  kinds = {
    401: errors.RepositoryNotFoundError,
    403: errors.GatedRepoError,
    404: errors.RevisionNotFoundError,
    500: errors.HfHubHTTPError,
  }
  return kinds[code].__new__(kinds[code])


@pytest.mark.parametrize(
  ("code", "words"),
  [
    (401, "no such model, or it is private.*hf auth login"),
    (403, "owner has to grant you access"),
    (404, "no revision 'v9'"),
    (500, "cannot be downloaded"),
  ],
)
def test_answers_of_the_hub(monkeypatch, code, words):
  hub = pytest.importorskip("huggingface_hub", reason=REASON)

  def refuse(*args, **kwargs):
    raise _status(code)

  monkeypatch.setattr(hub, "snapshot_download", refuse)
  with pytest.raises(UserError, match=words):
    locate.locate("hf:somebody/squares@v9")


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(UserError, match=r"pip install.*\.\[hub\]"):
    gamix_jax.load("hf:somebody/squares")


@pytest.mark.slow
def test_command(cache, program, tmp_path):
  """As a user has it: by environment variables, and without a network."""
  ran = program.run(
    *("--workdir=hf:somebody/squares", "--what=decoder"),
    "--format=safetensors",
    module="gamix_jax.export",
    cwd=tmp_path,
    env=program.env(
      HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(cache), PYTHONPATH=str(ROOT)
    ),
  )
  assert (ran.returncode, ran.stderr) == (0, "")
  out = tmp_path / "runs" / "hf" / "somebody" / "squares" / "export"
  assert (out / "decoder.safetensors").is_file()

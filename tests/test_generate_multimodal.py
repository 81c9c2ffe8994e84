"""Pictures of a run of several modalities; refused arguments."""

import json
import shutil

import conftest
import cv2
import jax
import numpy as np
import pytest
from PIL import Image
from program import assert_refused
from test_inference_multimodal import settings
from test_multimodal_training import ATTENTION, SMALL

import gamix_jax
from gamix_jax import build, config, data, pictures, plots
from gamix_jax.errors import UserError
from gamix_jax.generate import multimodal, renderers
from gamix_jax.generate.__main__ import USES
from gamix_jax.inference import fitting

pytestmark = pytest.mark.usefixtures("quick")
DEFAULTS = dict(
  n=None,
  images=None,
  source=None,
  temperature=1.0,
  seed=3,
  fit_images=None,
  components=None,
)


def make(run, what, out, *, raw=False, **asked):
  asked = {k: (DEFAULTS | asked).get(k) for k in USES[what]}
  renderers.make(str(run), what, str(out), raw=raw, **asked)


def workdir(folder, entries, fusion="moe", **changes):
  """A run whose data, with missing modalities, are in a file next to it."""
  rng = np.random.default_rng(0)
  n = 120
  arrays = {
    "a": rng.integers(0, 256, (n, 4, 4, 1), np.uint8),
    "d": rng.integers(0, 256, (n, 8, 4, 3), np.uint8),
    "b": np.eye(5, dtype="f4")[rng.integers(0, 5, n)],
    "c": rng.normal(size=(n, 3)).astype("f4"),
  }
  names = [entry.split()[0] for entry in entries]
  file = folder.with_suffix(".npz")
  np.savez(file, **{k: arrays[k] for k in names})
  c = settings(fusion, entries, **changes)
  c.data.source, c.data.missing_test = f"npz:{file}", 0.3
  conftest.save_run(folder, c, conftest.state_of(build.train_spec(c)))
  return folder


ALL = ("a 4x4x1 l1", "d 8x4x3 l2", "b 5 categorical", "c 3 l2")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return workdir(tmp_path_factory.mktemp("runs") / "mixed", ALL)


@pytest.fixture
def seen(monkeypatch):
  """Collects the grids of figures, and their titles."""
  seen = []
  save = plots.image_grids

  def look(path, strips, *words):
    seen.append((strips, words))
    save(path, strips, *words)

  monkeypatch.setattr(plots, "image_grids", look)
  return seen


def held_out(run, n):
  model = gamix_jax.load(run)
  dataset = data.open_dataset(model.config.data, "test", model.config.seed)
  return model, fitting.read_observations(dataset, range(n))


# ---------------------------------------------------------- figures


def test_translations_of_images(polydigits, tmp_path, seen):
  out = tmp_path / "a.png"
  make(polydigits, "translations", out, images=("7", "0", "3"))
  ((above, below), (title, *_)) = seen[0]
  assert "ema weights of step 3" in title and "white" not in title
  assert list(above.rows) == [f"given m{i}" for i in range(5)]
  names = [f"m{i}" for i in range(5)]
  assert list(above.columns) == ["no. 7", *names, "", "no. 0", *names]
  assert list(below.columns) == ["no. 3", *names]
  assert above.images.shape == (5, 13, 16, 16, 3) and not above.words
  model, x = held_out(polydigits, 8)
  for i, left in ((7, 0), (0, 7)):
    for row, name in enumerate(names):
      cells = above.images[row, left : left + 6]
      np.testing.assert_array_equal(cells[0], pictures.to_float(x[name][i]))
      made = model.translate({name: x[name][[i]]}, name, names)
      wanted = np.concatenate([made[k] for k in names])
      np.testing.assert_allclose(cells[1:], wanted, atol=2e-5)
  assert (above.images[:, 6] == 1).all()
  # They are in the file, unscaled.
  with Image.open(out) as png:
    shown = np.asarray(png.convert("L"))
  flat = above.images.reshape(-1, 16, 16, 3)
  wanted = cv2.cvtColor(pictures.grid(flat, 13), cv2.COLOR_RGB2GRAY)
  places = cv2.matchTemplate(shown, wanted, cv2.TM_SQDIFF)
  assert places.min() <= 4 * wanted.size, places.min()


def test_classes_are_text_and_what_is_missing_is_white(
  run, tmp_path, seen, capsys
):
  make(run, "translations", tmp_path / "a.png", n=4)
  assert "Not drawn: c (arrays)" in capsys.readouterr().out
  ((grid, *_), (title, *_)) = seen[0]
  assert "white: missing" in title
  assert grid.images.shape[2:] == (8, 4, 3)  # the largest side, in colour
  assert list(grid.columns[:4]) == ["no. 0", "a", "d", "b"]
  assert list(grid.rows) == [f"given {k}" for k in "adbc"]
  model, x = held_out(run, 4)
  assert 0 < x["mask"].mean() < 1
  for i in range(4):
    for row, name in enumerate("adbc"):
      left = 5 * i
      cells, word = grid.images[row, left : left + 4], (row, left + 3)
      if not x["mask"][i, row]:
        assert (cells == 1).all() and word not in grid.words
        continue
      made = model.translate({name: x[name][[i]]}, name, ("d", "b"))
      np.testing.assert_allclose(cells[2], made["d"][0], atol=2e-5)
      p = made["b"][0]
      assert grid.words[word] == f"{p.argmax()}\n{p.max():.2f}"
      if name == "b":
        assert grid.words[row, left] == f"{x['b'][i].argmax()}\n1.00"
      if name == "c":
        assert grid.words[row, left] == "array"


def test_text_is_drawn(tmp_path):
  white = np.ones((1, 2, 8, 8, 3), "f4")
  ink = []
  for words in ({}, {(0, 1): "7\n0.93"}):
    grid = plots.ImageGrid(white, words=words)
    plots.image_grids(tmp_path / "a.png", [grid], "title")
    with Image.open(tmp_path / "a.png") as png:
      ink.append(255 - np.asarray(png.convert("L")).astype(int))
  where = np.argwhere(ink[1] - ink[0] > 100)
  assert len(where) > 20
  assert where[:, 1].min() > ink[0].shape[1] / 2 - 40  # on the second image


def test_reconstructions(run, tmp_path, seen):
  make(run, "reconstructions", tmp_path / "a.png", n=18)
  ((first, last), (title, *_)) = seen[0]
  assert "white: missing" in title
  names = ["a", "decoded", "d", "decoded", "b", "decoded"]
  assert list(first.rows) == names
  assert list(first.columns) == [str(i) for i in range(16)]
  assert list(last.columns[:3]) == ["16", "17", ""]
  model, x = held_out(run, 18)
  wanted = model.reconstruct(x)
  np.testing.assert_allclose(first.images[3], wanted["d"][:16], atol=2e-5)
  originals = pictures.to_float(x["d"][16:18])
  originals[x["mask"][16:18, 1] == 0] = 1
  np.testing.assert_array_equal(last.images[2, :2], originals)
  assert (last.images[:, 2:] == 1).all()
  p = wanted["b"][5]
  assert first.words[5, 5] == f"{p.argmax()}\n{p.max():.2f}"


def test_samples_of_the_prior_and_of_the_population(
  run, tmp_path, seen, capsys
):
  make(run, "samples", tmp_path / "a.png", n=3)
  ((grid,), (title, *_)) = seen[0]
  assert title.startswith("3 samples from the prior")
  assert list(grid.rows) == ["a", "d", "b"]
  wanted = gamix_jax.load(run).sample(jax.random.key(3), 3)
  np.testing.assert_allclose(grid.images[1], wanted["d"], atol=1e-6)
  # MMVM has no prior, so samples are of the fitted mixture without a flag.
  other = workdir(tmp_path / "mmvm", ("a 4x4x1 l1", "c 3 l2"), "separate")
  make(other, "samples", tmp_path / "b.png", fit_images=20)
  assert "20 training observations" in capsys.readouterr().out
  assert seen[1][1][0].startswith("16 samples from the fitted mixture")
  with pytest.raises(UserError, match="does not train the decoders"):
    make(other, "samples", tmp_path / "c.png", source="prior")
  assert not (tmp_path / "c.png").exists()


# ---------------------------------------------------------- folders


def test_a_folder_of_samples_is_a_source_of_data(run, tmp_path):
  out = tmp_path / "out" / "train"
  out.parent.mkdir()
  make(run, "samples", out, raw=True, n=5)
  assert {p.name for p in out.iterdir()} == {*"abcd", "protocol.json"}
  protocol = json.loads((out / "protocol.json").read_text())
  assert (protocol["source"], protocol["n"]) == ("prior", 5)
  c = config.base()
  shutil.copytree(out, out.with_name("test"))
  c.data.source, c.data.modalities = f"folder:{out.parent}", ALL
  c.data.flip = False
  wanted = gamix_jax.load(run).sample(jax.random.key(3), 5)
  found = data.open_dataset(c.data, "train", 0).load_batch(np.arange(5))
  assert found["mask"].all()
  np.testing.assert_allclose(found["c"], wanted["c"], atol=1e-6)
  np.testing.assert_allclose(found["b"], wanted["b"], atol=1e-6)
  for k in "ad":
    pixels = pictures.to_uint8(wanted[k]).astype(int)
    assert np.abs(found[k].astype(int) - pixels).max() <= 1


@pytest.mark.parametrize(
  ("what", "names"),
  [
    ("reconstructions", ["x", "y"]),
    ("translations", ["x_to_x", "x_to_y", "y_to_x", "y_to_y"]),
  ],
)
def test_folders_of_arrays(tmp_path, what, names):
  """Of a run without images, which has no figures."""
  rng = np.random.default_rng(0)
  file = tmp_path / "data.npz"
  arrays = {
    k: rng.normal(size=(30, n)).astype("f4") for k, n in (("x", 3), ("y", 2))
  }
  np.savez(file, **arrays)
  c = settings("poe", ("x 3 l2", "y 2 l2"), data__source=f"npz:{file}")
  folder = tmp_path / "run"
  conftest.save_run(folder, c, conftest.state_of(build.train_spec(c)))
  with pytest.raises(UserError, match=r"None of x, y is an image.*folder"):
    make(folder, what, tmp_path / "a.png")
  out = tmp_path / "out"
  make(folder, what, out, raw=True, n=3)
  assert sorted(p.name for p in out.iterdir() if p.is_dir()) == names
  model, x = held_out(folder, 3)
  found = np.stack([np.load(out / names[1] / f"{i:05d}.npy") for i in range(3)])
  wanted = model.reconstruct(x) if what != "translations" else None
  wanted = wanted or model.translate(x, "x", "y")
  np.testing.assert_allclose(found, wanted["y"], atol=1e-5)


# ---------------------------------------------------------- refusals


@pytest.mark.parametrize(
  ("what", "asked", "words"),
  [
    ("interpolation", {}, "not for runs of several modalities.*translations"),
    ("map", {}, "use --what=samples or reconstructions or translations"),
    ("translations", dict(n=0), "--n=0"),
    ("translations", dict(n=2, images=("0",)), "not both"),
    ("translations", dict(images=("a.png",)), "a.png must be an index"),
    ("reconstructions", dict(images=("-1",)), "=-1 must be an index"),
    ("reconstructions", dict(images=("99",)), "=99: the test split has rows"),
    ("samples", dict(source="vamp"), "use one of prior, population, gmm"),
  ],
)
def test_mistakes(run, tmp_path, what, asked, words):
  with pytest.raises(UserError, match=words):
    make(run, what, tmp_path / "a.png", **asked)
  assert list(tmp_path.iterdir()) == []


def test_runs_of_images_have_no_translations(tmp_path):
  c = conftest.alone(conftest.flat, data__source="digits")
  folder = tmp_path / "run"
  conftest.save_run(folder, c, conftest.state_of(build.train_spec(c)))
  with pytest.raises(UserError, match="not for runs of images"):
    make(folder, "translations", tmp_path / "a.png")


def test_every_kind_is_documented_and_has_its_flags():
  assert multimodal.RENDERERS.keys() <= USES.keys()
  assert USES.keys() == renderers.RENDERERS.keys() | multimodal.RENDERERS.keys()


def test_command(program, polydigits, tmp_path):
  flags = [f"--workdir={polydigits}", f"--out={tmp_path}/a.png"]

  def command(*more):
    return program.run(*flags, *more, module="gamix_jax.generate")

  ran = command("--what=translations", "--n=2")
  assert ran.returncode == 0, ran.stderr
  assert ran.stderr == ""
  assert ran.stdout == f"Written: {tmp_path}/a.png\n"
  with Image.open(tmp_path / "a.png") as png:
    assert png.width > 13 * 64
  assert_refused(command("--what=map"), "map", "translations")


@pytest.mark.slow
def test_a_subset_that_was_never_trained(program, tmp_path):
  """Attention, of which an ELBO of complete observations trains one set."""
  flag = f"--workdir={tmp_path}/run"
  trained = program.done(
    *SMALL,
    *ATTENTION,
    "--config.data.missing=0.0",
    "--config.data.missing_test=0.0",
    "--config.objective.name=elbo",
    "--config.steps=1",
    flag,
  )
  assert "is trained only for 3 of 3 modalities" in trained
  ran = program.run(
    flag,
    "--what=translations",
    f"--out={tmp_path}/a.png",
    module="gamix_jax.generate",
  )
  assert_refused(ran, "1 of 3 modalities", "'attention'", "trained on 3 only")
  assert not (tmp_path / "a.png").exists()
  model = gamix_jax.load(tmp_path / "run")
  assert model.config.multimodal.observed_sizes == (3,)
  dataset = data.open_dataset(model.config.data, "test", 0)
  x = fitting.read_observations(dataset, range(4))
  assert model.encode(x).mean().shape == (4, 4)
  two = {k: x[k] for k in ("m0", "m1")}
  for call in (
    lambda: model.encode(two),
    lambda: model.impute(two),
    lambda: model.elbo(two),
    lambda: model.fit_samplers(two),
    lambda: model.translate(x, from_=("m0", "m1")),
    lambda: model.log_likelihood(x, given="m0"),
    lambda: model.log_likelihood(x, of="m0"),
  ):
    with pytest.raises(UserError, match=r"given, but .*trained on 3 only"):
      call()

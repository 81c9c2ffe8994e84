"""Reads back pictures of a tiny model; refused arguments."""

import itertools
import json
import shutil

import conftest
import cv2
import jax
import numpy as np
import pytest
from conftest import alone, flat
from PIL import Image
from program import ROOT, assert_refused

import gamix_jax
from gamix_jax import build, pictures, plots
from gamix_jax.errors import UserError
from gamix_jax.generate import renderers, select_images
from gamix_jax.generate.__main__ import USES

pytestmark = pytest.mark.usefixtures("quick")
NEW = dict(
  source="prior", temperature=1.0, seed=3, fit_images=None, components=None
)
DEFAULTS = dict(
  n=None,
  images=None,
  steps=None,
  path="straight",
  dims=None,
  span=20.0,
  method="pca",
  stops=3,
  fps=10.0,
  **NEW,
)


def workdir(folder, **changes):
  config = alone(flat, model__latent=3, data__source="digits", **changes)
  conftest.save_run(folder, config, conftest.state_of(build.train_spec(config)))
  return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return workdir(
    tmp_path_factory.mktemp("runs") / "run",
    posterior__name="mixture",
    posterior__components=2,
  )


@pytest.fixture(scope="module")
def model(run):
  return gamix_jax.load(run)


def make(run, what, out, *, raw=False, **asked):
  asked = {k: (DEFAULTS | asked)[k] for k in USES[what]}
  renderers.make(str(run), what, str(out), raw=raw, **asked)


# ---------------------------------------------------------- pictures


@pytest.mark.parametrize(
  ("what", "asked", "rows", "columns"),
  [
    ("samples", {}, 8, 8),
    ("samples", dict(n=3, source="gmm", fit_images=40), 1, 3),
    ("reconstructions", dict(n=8), 2, 8),
    ("interpolation", dict(images=("0", "1", "5", "2")), 2, 8),
    ("traversal", {}, 9, 9),
    ("traversal", dict(dims=["2"], images=("0", "4"), steps=3), 2, 3),
    ("components", dict(images=("7",)), 1, 4),
  ],
)
def test_figures(run, tmp_path, monkeypatch, what, asked, rows, columns):
  seen = []
  save = plots.image_grids

  def look(path, strips, *words):
    seen.append((strips, words))
    save(path, strips, *words)

  monkeypatch.setattr(plots, "image_grids", look)
  make(run, what, tmp_path / "a.png", **asked)
  assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
  (strip,), (title, *_) = seen[0]
  assert strip.images.shape == (rows, columns, 4, 4, 1)
  assert "run, ema weights of step 5" in title
  with Image.open(tmp_path / "a.png") as png:
    shown = np.asarray(png.convert("L"))
  # The images are unscaled, so their position is that of the axes.
  wanted = pictures.grid(strip.images.reshape(-1, 4, 4, 1), columns)[..., 0]
  places = cv2.matchTemplate(shown, np.ascontiguousarray(wanted), cv2.TM_SQDIFF)
  assert places.min() <= 4 * wanted.size, places.min()
  if what == "traversal" and not asked:
    assert list(strip.columns) == [f"{5 * i - 20}" for i in range(9)]
    assert list(strip.rows) == list(strip.columns)[::-1]
    assert seen[0][1][1].startswith("latent 0 (posterior standard dev")
    model = gamix_jax.load(run)
    x, _ = select_images.images(model.config, ["0"])
    ends = model.traverse(x[0], (0, 1), span=20.0, steps=9)
    corner = strip.images[0, -1]  # the first latent right, the second up
    np.testing.assert_allclose(corner, ends[-1, -1], atol=1e-5)
    np.testing.assert_allclose(strip.images[-1, -1], ends[-1, 0], atol=1e-5)


def test_a_map_with_labels_and_without(run, tmp_path, capsys):
  make(run, "map", tmp_path / "a.png", n=60)
  assert "no labels" not in capsys.readouterr().out
  with Image.open(tmp_path / "a.png") as png:
    colours = np.asarray(png.convert("RGB"))
  assert np.ptp(colours, axis=-1).max() > 100
  folder = workdir(tmp_path / "grey")
  config = json.loads((folder / "config.json").read_text())
  config |= {"data.source": "synthetic:40"}
  (folder / "config.json").write_text(json.dumps(config))
  make(folder, "map", tmp_path / "b.png")
  assert "no labels" in capsys.readouterr().out


def test_a_folder_of_samples(run, model, tmp_path, capsys):
  asked = dict(n=5, source="population", temperature=0.5, fit_images=30)
  make(run, "samples", tmp_path / "out", raw=True, **asked)
  assert "Fitting" in capsys.readouterr().out
  names = sorted(p.name for p in (tmp_path / "out").iterdir())
  assert names == [*(f"{i:05d}.png" for i in range(5)), "protocol.json"]
  wanted = gamix_jax.load(run).sample(
    jax.random.key(3), 5, source="population", temperature=0.5
  )
  for name, image in zip(names, pictures.to_uint8(wanted), strict=False):
    with Image.open(tmp_path / "out" / name) as png:
      assert png.size == (4, 4)
      got = np.asarray(png).astype(int)
    assert np.abs(got - image[..., 0]).max() <= 1
  protocol = json.loads((tmp_path / "out" / "protocol.json").read_text())
  for key, value in dict(
    step=5, which="ema", seed=3, n=5, source="population", temperature=0.5
  ).items():
    assert protocol[key] == value
  assert protocol["fitted"]["images"] == 30
  # A fit is used again, unless another fit is requested.
  make(run, "samples", tmp_path / "a.png", n=2, source="gmm")
  assert "Fitting" not in capsys.readouterr().out
  make(run, "samples", tmp_path / "a.png", n=2, source="gmm", components="4")
  assert "4 components" in capsys.readouterr().out
  with pytest.raises(UserError, match="not an empty folder"):
    make(run, "samples", tmp_path / "out", raw=True)


@pytest.mark.parametrize("ending", ["gif", "mp4"])
def test_walks(run, tmp_path, ending):
  path = tmp_path / f"a.{ending}"
  make(run, "walk", path, n=2, steps=4)  # DEFAULTS, through 3 stops
  assert [p.name for p in tmp_path.iterdir()] == [path.name]
  film = cv2.VideoCapture(str(path))
  frames = []
  while True:
    more, frame = film.read()
    if not more:
      break
    frames.append(frame.astype(int))
  assert len(frames) == 12
  assert frames[0].shape[1] > frames[0].shape[0] >= 64
  steps = [np.abs(b - a).mean() for a, b in itertools.pairwise(frames)]
  loop = np.abs(frames[0] - frames[-1]).mean()
  assert max(steps) > 0 and loop < 3 * max(steps)  # it ends where it began


def test_files_are_images_too(run, model, tmp_path):
  x, _ = select_images.images(model.config, ["3"])
  pictures.save_png(tmp_path / "mine.png", x[0])
  again, names = select_images.images(
    model.config, [str(tmp_path / "mine.png"), "3"]
  )
  np.testing.assert_array_equal(again[0], again[1])
  assert names == ["mine.png", "3"]


# ---------------------------------------------------------- refusals


@pytest.mark.parametrize(
  ("what", "asked", "words"),
  [
    ("samples", dict(n=0), "--n=0"),
    ("samples", dict(source="vamp"), "use one of prior, population, gmm"),
    ("samples", dict(components="4"), "need --source=population or gmm or"),
    ("samples", dict(source="gmm", components="x"), "--components=x"),
    ("samples", dict(temperature=-1.0), "temperature=-1"),
    ("reconstructions", dict(images=("999999",)), "images 0 to 331"),
    ("reconstructions", dict(images=("no.png",)), "no.png is neither"),
    (
      "reconstructions",
      dict(images=(str(ROOT / "README.md"),)),
      "not a complete",
    ),
    ("interpolation", dict(images=("0",)), "pairs"),
    ("interpolation", dict(path="curved"), "curved"),
    ("traversal", dict(dims=["0", "3"]), "0 to 2"),
    ("traversal", dict(dims=["a"]), "--dims=a"),
    ("traversal", dict(images=("0", "1")), "one image"),
    ("map", dict(method="lda"), "pca, tsne, umap"),
    ("walk", dict(fps=0.0), "--fps=0"),
    ("walk", dict(n=2, images=("0",)), "not both"),
  ],
)
def test_mistakes(run, tmp_path, what, asked, words):
  out = tmp_path / ("a.gif" if what == "walk" else "a.png")
  with pytest.raises(UserError, match=words):
    make(run, what, out, **asked)
  assert list(tmp_path.iterdir()) == []


def test_other_mistakes(run, tmp_path):
  gaussian = workdir(tmp_path / "gaussian")
  for where, what, out, words in (
    (gaussian, "components", "a.png", "one component.*'gaussian'.*mixture"),
    (tmp_path / "none", "samples", "a.png", "none is not a folder"),
    (run, "walk", "a.png", "must end with .gif or .mp4"),
    (run, "samples", "a.jpg", "must end with .png"),
    (run, "samples", "no/a.png", "no folder"),
  ):
    with pytest.raises(UserError, match=words):
      make(where, what, tmp_path / out)
  with pytest.raises(UserError, match="no images for --format=folder"):
    make(run, "map", tmp_path / "folder", raw=True)
  assert [p.name for p in tmp_path.iterdir()] == ["gaussian"]


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    ("--what=samples --out=a.png", ["--workdir is missing"]),
    ("--workdir=x --what=dreams --out=a.png", ["dreams", "traversal"]),
    ("--workdir=x --what=map --out=a.png --dims=1", ["--dims", "traversal"]),
    ("--workdir=x --what=map --out=a.png --n=few", ["--n=few", "number"]),
  ],
)
def test_command_refuses(program, flags, words):
  assert_refused(
    program.run(*flags.split(), module="gamix_jax.generate"), *words
  )


def test_command(program, run, tmp_path):
  ran = program.run(
    f"--workdir={shutil.copytree(run, tmp_path / 'digits')}",
    "--what=samples",
    f"--out={tmp_path}/a.png",
    "--source=gmm",
    "--n=4",
    module="gamix_jax.generate",
  )
  assert ran.returncode == 0, ran.stderr
  assert ran.stderr == "" and ran.stdout.endswith(
    f"Written: {tmp_path}/a.png\n"
  )
  with Image.open(tmp_path / "a.png") as png:
    assert png.width > 4 * 64

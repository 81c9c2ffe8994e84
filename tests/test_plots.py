"""Names that users give to classes, files and folders, in every figure."""

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.figure import Figure
from PIL import Image

from gamix_jax import plots
from gamix_jax.notebook import panels

# Names that mathtext rejects or draws differently, that are not UTF-8, that the
# font lacks, with line breaks, and a very long one.
NAMES = [
  *(
    "$",
    "$$",
    "_a",
    "$x",
    "$x_1$",
    "$\\frac$",
    "a_b^c",
    "\\alpha",
    "{",
    "%#&~",
  ),
  *("caf\udce9", "two\nlines", "tab\there", "\0", "\x1b[31m", "\u202e"),
  *("日本語", "عربى", "🐈", "é", ""),
  "long" * 60,
]


def png(path):
  with Image.open(path) as image:
    image.load()
    assert image.format == "PNG"
    return np.asarray(image.convert("L"))


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_every_figure_shows_any_name(tmp_path, name):
  shown = plots.named(name)
  path = tmp_path / "a.png"
  strip = plots.ImageGrid(np.zeros((1, 2, 8, 8, 1)), [shown] * 2, [shown])
  plots.image_grids(path, [strip], f"{shown}\nof", shown, shown)
  assert png(path).shape[1] < 1500  # the longest name, too
  places = np.eye(4)[:, :2]
  plots.latent_map(
    path, places, np.array([0, 1, 1, 5]), [name, "b"], shown, "pca"
  )
  png(path)
  scores = {"elbo": (np.arange(5.0), np.arange(5.0) + 1)}
  plots.anomalies(path, scores, shown)
  png(path)
  point = plots.Point(f"elbo {shown}", shown, [0.1], [2.0])
  plots.front(path, [point], shown)
  png(path)


def test_names_are_drawn_as_they_are(tmp_path, monkeypatch):
  """The same pixels as in a figure without any text parsing."""
  kept, drawn = plots.save, []
  monkeypatch.setattr(
    plots, "save", lambda fig, path: (drawn.append(fig), kept(fig, path))
  )
  places, labels = np.eye(4)[:, :2], np.array([0, 0, 1, 1])
  plots.latent_map(
    tmp_path / "a.png", places, labels, ["_$x_1$", "b"], "$t$", "pca"
  )
  (fig,) = drawn
  (legend,) = fig.legends
  assert [t.get_text() for t in legend.get_texts()] == ["_$x_1$", "b"]
  texts = [*legend.get_texts(), fig.axes[0].title]
  assert not any(t.get_parse_math() for t in texts)
  assert rcParams["text.parse_math"] is True  # unchanged for the user


def test_a_matplotlibrc_of_tex_is_not_followed(tmp_path, monkeypatch):
  monkeypatch.setitem(rcParams, "text.usetex", True)
  with plots.literal():
    fig = Figure()
    fig.text(0.1, 0.1, "a_b $ %")
    plots.save(fig, tmp_path / "a.png")
  png(tmp_path / "a.png")


def test_a_run_called_anything(tmp_path):
  for name in ("$x", "a_b^c"):
    (tmp_path / name).mkdir()
    assert panels.draw(tmp_path / name)[:4] == b"\x89PNG"


@pytest.mark.parametrize(
  ("name", "shown"),
  [
    ("a b", "a b"),
    ("日本", "日本"),
    ("a\nb\t", "a\\nb\\t"),
    ("\udce9", "\\udce9"),
    ("\x1b", "\\x1b"),
    ("x" * 48, "x" * 48),
    ("x" * 49, "x" * 47 + "…"),
  ],
)
def test_escaped_names(name, shown):
  assert plots.named(name) == shown
  shown.encode()

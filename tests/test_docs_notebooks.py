"""The notebooks of docs/notebooks, executed in the fast mode: a few steps.

A real kernel runs every cell of each in an empty folder, as on Colab.
"""

import importlib.util
import re
import subprocess
import sys

import nbclient
import nbformat
import pytest
from outputs import images, text
from program import ROOT

FOLDER = ROOT / "docs" / "notebooks"
NAMES = sorted(p.stem for p in FOLDER.glob("*.ipynb"))
# The quickest; the others are slow tests. All share compiled programs.
DEFAULT = ("first_training",)
TIMEOUT = 300  # seconds a cell


def read(name):
  return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(book):
  return {c.id: c for c in book.cells if c.cell_type == "code"}


# ------------------------------------------------------------ as committed


def test_there_are_notebooks():
  assert len(NAMES) >= 10
  assert set(DEFAULT) < set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_clean(name):
  book = read(name)
  nbformat.validate(book)
  for cell in code(book).values():
    assert cell.outputs == [] and cell.execution_count is None, cell.id
  title, _, install, *_ = book.cells
  assert title.source.startswith("# ")
  assert book.cells[-1].cell_type == "markdown"  # where to go on
  assert install.id == "install"
  assert install.source == read(NAMES[0]).cells[2].source
  assert set(book.metadata) == {"colab", "kernelspec", "language_info"}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_pages(name):
  for cell in read(name).cells:
    if cell.cell_type != "markdown":
      continue
    for link in re.findall(r"\]\(([^)]+)\)", cell.source):
      path, _, heading = link.partition("#")
      if re.match("https?:", link):
        continue
      assert (FOLDER / path).is_file(), link
      if heading:
        titles = re.findall(r"^#+ (.*)$", (FOLDER / path).read_text(), re.M)
        anchors = [
          re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles
        ]
        assert heading in anchors, link


@pytest.mark.parametrize(
  ("source", "wanted"),
  [
    ("https://host/us/gamix_jax", "git+https://host/us/gamix_jax"),
    ("gamix_jax-1-py3-none-any.whl", "file://{}/gamix_jax-1-py3-none-any.whl"),
  ],
)
def test_the_install_cell(source, wanted, tmp_path, monkeypatch):
  """What pip gets, of a git URL and of a wheel that was uploaded."""
  calls = []
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  monkeypatch.setattr("shutil.which", lambda name: None)
  monkeypatch.setattr(
    subprocess, "run", lambda argv, check: calls.append((argv, check))
  )
  cell = code(read(NAMES[0]))["install"].source
  with pytest.raises(SystemExit, match="Set `source`"):
    exec(cell, {})
  exec(cell.replace('source = ""', f"source = {source!r}"), {})
  what = f"gamix_jax[notebook] @ {wanted.format(tmp_path)}"
  assert calls == [
    ([sys.executable, "-m", "pip", "install", "--quiet", what], True)
  ]


# ------------------------------------------------------------ executed


def executed(program, name, folder):
  """Runs all cells of a notebook; returns its code cells by id."""
  book = read(name)
  client = nbclient.NotebookClient(
    book, timeout=TIMEOUT, resources={"metadata": {"path": str(folder)}}
  )
  env = program.env(
    GAMIX_NB_FAST="1",
    IPYTHONDIR=str(folder / "ipython"),
    MPLBACKEND="module://matplotlib_inline.backend_inline",
    PYTHONPATH=str(ROOT),
  )
  client.execute(env=env)
  return code(book)


# What some cells must have printed: {notebook: {cell: words}}.
PRINTED = {
  "first_training": {"train": "Done: step 20 of 20"},
  "compare": {"table": "gaussian/gamix:debiased"},
  "evaluate": {"evaluate": "mae", "numbers": "value"},
  "export": {"export": "identical to the model's"},
  "mixture": {"used": "effective number of components"},
  "own_posterior": {
    "check": "density and moments agree",
    "train": "Done: step 20 of 20",
  },
  "own_objective": {"check": "shifted", "train": "Done: step 20 of 20"},
  "population": {"codes": "population_kl, debiased"},
  "poisson": {"counts": "share of zeros"},
  "resume": {
    "kill": "exit code -9",
    "continue": "Continuing at step",
    "same": "arrays are equal",
  },
}


@pytest.mark.parametrize(
  "name",
  [
    n if n in DEFAULT else pytest.param(n, marks=pytest.mark.slow)
    for n in NAMES
  ],
)
def test_a_notebook_runs(program, tmp_path, name):
  cells = executed(program, name, tmp_path)
  for cell, words in PRINTED.get(name, {}).items():
    assert words in text(cells[cell]), text(cells[cell])
  shown = [x for cell in cells.values() for x in images(cell)]
  assert shown or name == "resume"
  for picture in shown:  # not of one colour
    assert picture.min() < picture.max()

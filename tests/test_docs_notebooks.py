"""The notebooks of docs/notebooks, executed in the fast mode: a few steps.

A real kernel runs every cell of each in an empty folder, as on Colab. The
outputs in the files are of complete trainings, by docs/execute.py.
"""

import base64
import hashlib
import importlib.util
import io
import re
import subprocess
import sys

import nbclient
import nbformat
import numpy as np
import pytest
from outputs import images, text
from PIL import Image
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
  title, _, install, *_ = book.cells
  assert title.source.startswith("# ")
  assert book.cells[-1].cell_type == "markdown"  # where to go on
  assert install.id == "install"
  assert install.source == read(NAMES[0]).cells[2].source
  assert book.metadata.language_info == {"name": "python"}
  assert set(book.metadata) == {
    *("colab", "kernelspec", "language_info", "gamix_jax"),
  }


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_of_the_code(name):
  """All cells ran in order, without errors, with the code they have now."""
  book = read(name)
  cells = code(book)
  source = "\0".join(c.source for c in cells.values())
  found = hashlib.sha256(source.encode()).hexdigest()[:16]
  assert book.metadata.gamix_jax.executed == found, (
    f"changed since it was executed: python docs/execute.py {name}"
  )
  counts = [c.execution_count for c in cells.values()]
  assert counts == list(range(1, len(cells) + 1))
  outputs = [o for c in cells.values() for o in c.outputs]
  assert {o.output_type for o in outputs} <= {
    *("stream", "display_data", "execute_result"),
  }
  # No paths of the machine, and nothing that a repository should not keep.
  assert all("/tmp" not in text(c) for c in cells.values())
  assert (FOLDER / f"{name}.ipynb").stat().st_size < 500_000
  for cell, words in PRINTED.get(name, {}).items():
    assert words.removesuffix(" 20 of 20") in text(cells[cell])


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


# ------------------------------------------------------------ docs/execute.py


@pytest.fixture
def execute(monkeypatch, tmp_path):
  """Returns the module, for notebooks in an empty folder."""
  spec = importlib.util.spec_from_file_location(
    "execute", ROOT / "docs" / "execute.py"
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  monkeypatch.setattr(module, "FOLDER", tmp_path)
  monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
  return module


def written(path, *sources):
  book = nbformat.v4.new_notebook()
  book.cells = [nbformat.v4.new_code_cell(s) for s in sources]
  nbformat.write(book, path)


def test_execute_writes_outputs(execute, tmp_path, capsys):
  path = tmp_path / "some.ipynb"
  written(path, "import os\nx = os.getcwd()", "print(x)\nx + '/runs'")
  written(tmp_path / "other.ipynb", "1 / 0")
  execute.main(["some"])
  assert capsys.readouterr().out.startswith("some: ")
  book = nbformat.read(path, as_version=4)
  printed, result = book.cells[1].outputs
  assert printed.text == "/content\n"
  assert result.data["text/plain"] == "'/content/runs'"
  assert [c.execution_count for c in book.cells] == [1, 2]
  before = (tmp_path / "other.ipynb").read_bytes()
  with pytest.raises(nbclient.exceptions.CellExecutionError, match="by zero"):
    execute.main(["other"])
  assert (tmp_path / "other.ipynb").read_bytes() == before


def test_smaller_pictures_look_alike(execute):
  y, x = np.mgrid[:200, :300]
  image = np.stack([x % 256, y, 0 * x], axis=-1).astype(np.uint8)
  out = io.BytesIO()
  Image.fromarray(image).save(out, "PNG")
  png = base64.b64encode(out.getvalue()).decode()
  less = execute.smaller(png)
  again = Image.open(io.BytesIO(base64.b64decode(less))).convert("RGB")
  difference = np.abs(np.asarray(again).astype(int) - image)
  assert again.size == (300, 200) and difference.mean() < 12
  assert len(less) <= len(png)

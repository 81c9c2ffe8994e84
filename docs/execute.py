"""Executes notebooks and writes their outputs into them.

  python docs/execute.py                     # all of docs/notebooks
  python docs/execute.py population samplers

The site, GitHub and Colab show these outputs, so that nobody needs to run a
notebook to see what it does. Each runs on the CPU in an empty folder, with
complete trainings. Needs pip install -e '.[docs]'.

A notebook's metadata have a hash of the code that was executed; a test compares
it with the code that the notebook has.
"""

import base64
import hashlib
import io
import os
import sys
import tempfile
import time
from pathlib import Path

import nbclient
import nbformat
from PIL import Image

FOLDER = Path(__file__).parent / "notebooks"
COLAB = "/content"  # the current folder there; replaces the one used here
TIMEOUT = 3600  # seconds a cell
COLORS = 128


def code_hash(book: nbformat.NotebookNode) -> str:
  """Returns a hash of the notebook's code."""
  code = [c.source for c in book.cells if c.cell_type == "code"]
  return hashlib.sha256("\0".join(code).encode()).hexdigest()[:16]


def smaller(png: str) -> str:
  """Returns a picture of few colours, which is enough for a page."""
  image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
  out = io.BytesIO()
  image.quantize(COLORS, dither=Image.Dither.NONE).save(
    out, "PNG", optimize=True
  )
  best = min(out.getvalue(), base64.b64decode(png), key=len)
  return base64.b64encode(best).decode()


def clean(book: nbformat.NotebookNode, folder: str) -> None:
  """Removes what differs from one machine to another, and repetitions."""
  book.metadata.language_info = {"name": "python"}
  for cell in book.cells:
    cell.metadata.pop("execution", None)
    for output in cell.get("outputs", []):
      output.get("metadata", {}).pop("needs_background", None)
      data = output.get("data", {})
      if "image/png" in data:
        data["image/png"] = smaller(data["image/png"])
        data.pop("text/plain", None)
      for holder, key in ((output, "text"), (data, "text/plain")):
        if key in holder:
          holder[key] = holder[key].replace(folder, COLAB)


def execute(path: Path) -> None:
  """Runs all cells of a notebook and saves it with their outputs.

  Raises:
    CellExecutionError: if a cell fails; the file is then as before.
  """
  book = nbformat.read(path, as_version=4)
  env = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYTHONPATH": os.pathsep.join(
      filter(None, [str(FOLDER.parent.parent), os.environ.get("PYTHONPATH")])
    ),
  }
  with tempfile.TemporaryDirectory() as folder:
    client = nbclient.NotebookClient(
      book,
      timeout=TIMEOUT,
      record_timing=False,
      resources={"metadata": {"path": folder}},
    )
    client.execute(env=env)
    clean(book, os.path.realpath(folder))
  book.metadata.gamix_jax = {"executed": code_hash(book)}
  nbformat.validate(book)
  nbformat.write(book, path)


def main(names: list[str]) -> None:
  """Executes the notebooks of these names, or all."""
  for path in sorted(FOLDER.glob("*.ipynb")):
    if not names or path.stem in names:
      start = time.monotonic()
      execute(path)
      seconds = time.monotonic() - start
      size = path.stat().st_size
      print(f"{path.stem}: {seconds:.0f} s, {size:,} bytes", flush=True)


if __name__ == "__main__":
  main(sys.argv[1:])

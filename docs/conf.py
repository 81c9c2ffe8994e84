"""The documentation site: sphinx-build -W docs docs/_build.

Needs pip install -e '.[docs]'. Notebooks are shown with the outputs that they
have; docs/execute.py executes them and writes these.
"""

import os
import re
from pathlib import Path

import gamix_jax

DOCS = Path(__file__).parent
ROOT = DOCS.parent

project = "gamix_jax"
author = "The gamix_jax authors"
copyright = "2026, The gamix_jax authors"  # Sphinx's name
version = release = gamix_jax.__version__

extensions = [
  "myst_nb",
  "sphinx.ext.autodoc",
  "sphinx.ext.napoleon",
  "sphinx_copybutton",
]
exclude_patterns = ["_build", "**/runs", "**.ipynb_checkpoints"]
nitpicky = False  # docstrings name arrays and types of many libraries

# ------------------------------------------------------------ pages

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # as on GitHub: [text](page.md#heading)
nb_execution_mode = "off"  # they have their outputs; see execute.py
nb_merge_streams = True

# Documents of the repository that pages link to: copied to docs/repository,
# which git ignores, when the site is built.
COPIED = {
  "README.md": "readme",
  "CHANGELOG.md": "changelog",
  "launch/README.md": "launch",
  "benchmarks/LOG.md": "log",
  "benchmarks/docs/communication.md": "communication",
  "benchmarks/docs/v5e_256.md": "v5e_256",
}


def relink(text: str, of: Path, at: Path) -> str:
  """Rewrites the links of a document for the folder it is shown in.

  Args:
    text: Markdown.
    of: the document's own file, to which its links are relative.
    at: the page of the site.
  """

  def new(match: re.Match) -> str:
    name, hash_, heading = match[1].partition("#")
    if not name or re.match(r"\w+:", name):
      return match[0]
    target = (of.parent / name).resolve()
    copy = COPIED.get(os.path.relpath(target, ROOT))
    if copy:
      target = DOCS / "repository" / f"{copy}.md"
    name = os.path.relpath(target, at.parent)
    return f"]({name}{hash_}{heading})"

  return re.sub(r"\]\(([^()\s]+)\)", new, text)


def copy_documents() -> None:
  """Writes docs/repository."""
  folder = DOCS / "repository"
  folder.mkdir(exist_ok=True)
  for name, copy in COPIED.items():
    page = folder / f"{copy}.md"
    text = relink((ROOT / name).read_text(), ROOT / name, page)
    # Sphinx reads again what is newer than its copy.
    if not page.exists() or page.read_text() != text:
      page.write_text(text)


copy_documents()

# ------------------------------------------------------------ reference

smartquotes = False  # flags begin with two hyphens
default_role = "literal"  # of `names` in docstrings
autodoc_default_options = {
  "members": True,
  "member-order": "bysource",
  "special-members": "__call__",
  "exclude-members": "replace",  # of every flax.struct.dataclass
}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_use_ivar = True  # fields of dataclasses are attributes already
napoleon_use_rtype = False
SECTIONS = (
  *("Args:", "Attributes:", "Example:", "Raises:", "Returns:", "Yields:"),
)


def plain(line: str) -> str:
  """Escapes what reStructuredText would read as markup, except in `names`."""
  parts = re.split(r"(`[^`]*`)", line)
  parts[::2] = [re.sub(r"[|*]|_(?!\w)", r"\\\g<0>", p) for p in parts[::2]]
  return "".join(parts)


def read_docstring(app, what, name, obj, options, lines: list[str]) -> None:
  """Shows indented blocks, such as equations, as they are."""
  if what == "module" and (name == "gamix_jax.main" or "__main__" in name):
    lines[1:] = ["", "::", "", *(f"   {line}" for line in lines[1:])]
    return
  out: list[str] = []
  section = block = False
  for line in lines:
    indented = line[:1] == " "
    if line and not indented:
      section, block = line in SECTIONS, line == "Example:"
    if indented and not section and not block and not out[-1]:
      out += ["::", ""]
      block = True
    argument = section and re.match(r" *\*+\w+:", line)
    out.append(line if block or argument else plain(line))
  lines[:] = out


# ------------------------------------------------------------ theme

html_theme = "sphinx_book_theme"
html_title = "gamix_jax"
# Where the repository is, for the links to it and to Colab.
repository = os.environ.get("GAMIX_REPOSITORY_URL", "")
html_theme_options = {"show_toc_level": 2}
if repository:
  html_theme_options |= {
    "repository_url": repository,
    "path_to_docs": "docs",
    "use_repository_button": True,
    "launch_buttons": {"colab_url": "https://colab.research.google.com"},
  }


def read_page(app, docname: str, source: list[str]) -> None:
  """Rewrites links that leave the folder docs/."""
  path = DOCS / f"{docname}.md"
  if path.is_file() and "](../" in source[0]:
    source[0] = relink(source[0], path, path)


def read_signature(app, what, name, obj, options, arguments, returns):
  """Leaves out what all Flax modules have, and how types print themselves."""
  if not arguments:
    return None
  for pattern, new in (
    (r", parent=<flax[^>]*>, name=None", ""),
    (r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1"),
    (r"<function (?:[\w.]*\.)?(\w+)[^>]*>", r"\1"),
  ):
    arguments = re.sub(pattern, new, arguments)
  return arguments, returns


def setup(app) -> None:
  """Connects the functions above."""
  app.connect("source-read", read_page)
  app.connect("autodoc-process-signature", read_signature)
  # Before napoleon, which reads the sections.
  app.connect("autodoc-process-docstring", read_docstring, priority=400)

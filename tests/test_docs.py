"""The site of docs/: pages, reference, gallery, citation; and the package's.

CI builds the site, with warnings as errors; see .ci/run. Here is what Sphinx
does not see. test_house.py checks links, keys and commands.
"""

import ast
import doctest
import importlib
import pkgutil
import re
import tomllib
import urllib.error
import urllib.request

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from program import ROOT

import gamix_jax
from gamix_jax import config, data, posterior

DOCS = ROOT / "docs"
PACKAGE = ROOT / "gamix_jax"
PAGES = sorted(
  p for p in DOCS.rglob("*.md") if not {"_build", "repository"} & {*p.parts}
)


def tree(path):
  """Yields the pages in the toctrees of a page, and in theirs."""
  for block in re.findall(r"```{toctree}\n(.*?)```", path.read_text(), re.S):
    for name in block.splitlines():
      if name.startswith(":"):
        continue
      page = path.parent / f"{name}.md"
      yield page if page.is_file() else page.with_suffix(".ipynb")
      if page.is_file():
        yield from tree(page)


def test_every_page_is_in_the_table_of_contents():
  notebooks = set((DOCS / "notebooks").glob("*.ipynb"))
  found = {p for p in tree(DOCS / "index.md") if "repository" not in p.parts}
  assert found == ({*PAGES} | notebooks) - {DOCS / "index.md"}


def test_every_notebook_is_described():
  text = (DOCS / "notebooks" / "index.md").read_text()
  rows = re.findall(r"^\| \[(\w+)\]\(\1\.ipynb\) \|", text, re.M)
  assert sorted(rows) == sorted(
    p.stem for p in (DOCS / "notebooks").glob("*.ipynb")
  )


def public_modules():
  """Returns the modules of the package with an `__all__`, by their files."""
  found = []
  for path in sorted(PACKAGE.rglob("*.py")):
    targets = [
      target.id
      for node in ast.parse(path.read_text()).body
      if isinstance(node, ast.Assign)
      for target in node.targets
      if isinstance(target, ast.Name)
    ]
    if "__all__" in targets:
      parts = path.relative_to(ROOT).with_suffix("").parts
      found.append(".".join(parts).removesuffix(".__init__"))
  return found


def test_everything_public_has_a_reference():
  text = "".join(p.read_text() for p in (DOCS / "api").glob("*.md"))
  documented = set(re.findall(r"^\.\. auto\w+:: ([\w.]+)$", text, re.M))
  documented |= {"gamix_jax", "gamix_jax.inference"}  # one by one:
  assert {f"gamix_jax.{name}" for name in gamix_jax.__all__} <= documented
  modules = public_modules()
  assert len(modules) > 8
  assert set(modules) <= documented
  commands = {
    f"gamix_jax.{p.parent.name}.__main__" for p in PACKAGE.glob("*/__main__.py")
  }
  assert commands | {"gamix_jax.main"} <= documented


def test_every_picture_has_its_command():
  """In the gallery, between this picture and the headings around it."""
  text = (DOCS / "gallery.md").read_text()
  there = {p.name for p in (ROOT / "benchmarks" / "pictures").iterdir()}
  shown = re.findall(r"!\[.+?\]\(\.\./benchmarks/pictures/(.+?)\)", text)
  assert sorted(shown) == sorted(there)
  for section in text.split("\n## ")[1:]:
    assert "```bash\npython -m " in section, section.splitlines()[0]


# ------------------------------------------------------------ examples


@pytest.fixture(scope="module")
def names(quick):
  """What the examples of the reference may use."""
  model = gamix_jax.load("pretrained:digits")
  held_out = data.open_dataset(model.config.data, "test")
  return {
    "config": config,
    "gamix_jax": gamix_jax,
    "Gaussian": posterior.Gaussian,
    "images": np.stack([held_out[i]["image"] for i in range(8)]),
    "jax": jax,
    "jnp": jnp,
    "key": jax.random.key(0),
    "model": model,
    "np": np,
  }


def test_examples_of_the_reference(names):
  """In docstrings: what is after >>> gives what is below it."""
  finder, found = doctest.DocTestFinder(exclude_empty=True), {}
  for info in pkgutil.walk_packages(gamix_jax.__path__, "gamix_jax."):
    # Commands define flags when they are imported.
    path = ROOT.joinpath(*info.name.split("."))
    path = path / "__init__.py" if info.ispkg else path.with_suffix(".py")
    if ">>>" in path.read_text():
      module = importlib.import_module(info.name)
      tests = finder.find(module, globs=vars(module) | names)
      found |= {test.name: test for test in tests if test.examples}
  assert "gamix_jax.inference.load.load" in found and len(found) > 10
  for test in found.values():
    said = []
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)


def test_the_readmes_model(quick):
  """The Python block of the README, line by line, with its shapes."""
  text = (ROOT / "README.md").read_text()
  (block,) = re.findall(r"```python\n(.*?)```", text, re.S)
  assert sum(map(bool, block.splitlines())) <= 12
  space = {}
  exec(compile(block, "README.md", "exec"), space)
  shape = (8, 16, 16, 1)
  assert space["images"].shape == space["x_hat"].shape == shape
  assert space["row"].shape == shape
  assert space["new"].shape == (16, 16, 16, 1)
  assert space["bound"].shape == (8,)


# ------------------------------------------------------------ the package


def test_the_citation_is_of_this_version():
  citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
  assert str(citation["version"]) == gamix_jax.__version__
  assert citation["cff-version"] == "1.2.0"
  assert citation["authors"] and citation["title"] and citation["message"]
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  assert citation["license"] == project["license"]
  url = citation["preferred-citation"]["url"]
  assert url in (ROOT / "README.md").read_text()


def test_the_package_is_typed():
  assert (PACKAGE / "py.typed").is_file()


# ------------------------------------------------------------ the network

LINKS = {
  link.rstrip(".,")
  for path in (
    *PAGES,
    *(DOCS / "notebooks").glob("*.ipynb"),
    ROOT / "README.md",
  )
  for link in re.findall(r"\]\((https?://[^)\s\"]+)\)", path.read_text())
}


@pytest.mark.slow
@pytest.mark.parametrize("link", sorted(LINKS))
def test_external_links_exist(link):
  """Skipped without a network; a page that is gone fails."""
  request = urllib.request.Request(link, headers={"User-Agent": "Mozilla/5.0"})
  try:
    with urllib.request.urlopen(request, timeout=20) as answer:
      assert answer.status == 200
  except urllib.error.HTTPError as e:
    assert e.code not in (404, 410), link
  except urllib.error.URLError as e:
    pytest.skip(f"no network: {e.reason}")

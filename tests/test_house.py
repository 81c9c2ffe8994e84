"""Project rules: imports only go down, no TensorFlow, documents are correct."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest
from program import ROOT, SMALL, config_of

PACKAGE = ROOT / "gamix_jax"
# From the lowest layer up; a folder is one unit. A unit imports from lower
# layers and from earlier units of its own layer, in reading order.
FLOORS = (
  (
    "errors",
    "files",
    "hardware",
    "marks",
    "paths",
    "locate",
    "registry",
    "save_errors",
    "situations",
    "streams",
    "cpu",
    "parallel",
    "layers",
  ),
  (
    "data",
    "config",
    "posterior",
    "likelihood",
    "modality",
    "occlusion",
    "checkpoint",
    "pictures",
    "plots",
  ),
  ("networks", "metrics", "multimodal"),
  ("objectives", "preset_values", "presets"),
  ("optimizers", "train_metrics"),
  ("step",),
  ("build",),
  ("inference", "keras_weights", "training"),
  ("cli", "evaluate", "compare", "explore", "export", "generate", "notebook"),
  ("main",),
)
ROOMS = [room for floor in FLOORS for room in floor]
# Lazy imports of `import gamix_jax`; all others must not wait.
LAZY = {("__init__", "inference"), ("__init__", "training")}


def room(path):
  """Returns a file's top-level name; a package's command is like `main`."""
  if path.name == "__main__.py":
    return "main"
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
  """Returns the units of the package that a file imports from."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module:
      assert node.level == 0, f"{path}: a relative import"
      parts = node.module.split(".")
      if parts == ["gamix_jax"]:
        yield from (alias.name for alias in node.names)
      elif parts[0] == "gamix_jax":
        yield parts[1]
    elif isinstance(node, ast.Import):
      for alias in node.names:
        parts = alias.name.split(".")
        if parts[0] == "gamix_jax" and len(parts) > 1:
          yield parts[1]


def test_every_room_has_a_floor():
  there = {room(p) for p in PACKAGE.rglob("*.py")} - {"__init__"}
  assert there == set(ROOMS)


def test_imports_only_go_down():
  wrong = []
  for path in PACKAGE.rglob("*.py"):
    here = room(path)
    for there in imported(path):
      if there == here or there not in ROOMS:
        continue
      if here != "__init__" and ROOMS.index(there) > ROOMS.index(here):
        wrong.append(f"{path.relative_to(ROOT)} imports {there}")
  assert wrong == []


def imported_modules(path, modules):
  """Returns the modules of the package that a file imports, anywhere in it.

  `from a import b` imports the module a.b if it exists, else a.
  """
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom):
      names = [f"{node.module}.{alias.name}" for alias in node.names]
      yield from (n if n in modules else node.module for n in names)
    elif isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)


def test_no_modules_import_each_other():
  modules = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(
      ".__init__"
    ): p
    for p in PACKAGE.rglob("*.py")
  }
  imports = {
    name: set(imported_modules(path, modules)) & modules.keys()
    for name, path in modules.items()
  }
  assert "gamix_jax.data.source" in imports["gamix_jax.data.npz"]
  # Remove all modules without imports, repeatedly; what is left are circles and
  # what imports them.
  while done := {name for name, of in imports.items() if not of}:
    imports = {n: of - done for n, of in imports.items() if n not in done}
  while unused := imports.keys() - set().union(*imports.values()):
    imports = {n: of for n, of in imports.items() if n not in unused}
  assert imports == {}


CHECK = """
import runpy, sys
import gamix_jax
assert gamix_jax.__version__
def heavy(*names):
  return [n for n in names if n in sys.modules]
assert heavy("tensorflow", "jax", "flax") == []
import gamix_jax.inference, gamix_jax.keras_weights
assert heavy("tensorflow", "torch") == []
sys.argv[0] = "main"
counts = {}
def count(event, **kwargs):
  counts[event] = counts.get(event, 0) + 1
import jax
jax.monitoring.register_event_listener(count)
try:
  runpy.run_module("gamix_jax.main", run_name="__main__", alter_sys=False)
except SystemExit as end:
  assert end.code == 0, end.code
# torch is there if it is installed: tensorboardX imports it then.
assert heavy("tensorflow", "tensorboard") == []
# What a start need not wait for.
assert heavy("matplotlib", "sklearn", "scipy.stats") == []
assert heavy("tensorflow_datasets") == []
assert heavy("jax", "grain", "orbax")  # it did run
print("left out", *(
  counts.get(f"/jax/compilation_cache/cache_{kind}", 0)
  for kind in ("hits", "misses")
))
"""


def test_tensorflow_stays_out_and_a_second_start_compiles_nothing(
  program, tmp_path
):
  """Of `import gamix_jax` and of a complete run; and with another workdir."""
  for i in range(2):
    ran = program.script(CHECK, *SMALL, f"--workdir={tmp_path}/run{i}")
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / f"run{i}" / "checkpoints" / "3").is_dir()
    words, hits, misses = ran.stdout.splitlines()[-1].rsplit(" ", 2)
    assert words == "left out"
  # The second start took its programs from the cache and compiled none.
  assert int(hits) > 0
  assert int(misses) == 0


# ------------------------------------------------------- README and docs/


README = ROOT / "README.md"
DOCUMENTS = (
  README,
  ROOT / "CHANGELOG.md",
  *sorted((ROOT / "docs").glob("*.md")),
  *sorted((ROOT / "docs").glob("[an]*/*.md")),  # api, notebooks
)
LINKED = (*DOCUMENTS, ROOT / "launch" / "README.md")
CI = (ROOT / ".ci" / "run").read_text()
every_document = pytest.mark.parametrize(
  "path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT))
)


def commands(path):
  """Returns the lines of the bash blocks, with continued lines joined."""
  for block in re.findall(r"```bash\n(.*?)```", path.read_text(), re.S):
    for line in block.replace("\\\n", " ").splitlines():
      if line and not line.startswith("#"):
        yield re.sub(r" +", " ", line)


def anchors(path):
  """Returns the anchors that GitHub makes of the headings."""
  for title in re.findall(r"^#+ (.*)$", path.read_text(), re.M):
    yield re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def test_readme_is_short():
  assert README.read_text().count("\n") <= 150


def test_readme_two_commands_are_those_of_ci():
  first, second, *_ = commands(README)
  assert first == (
    "pip install -e . && python -m gamix_jax.main "
    "--config=configs/digits.py --workdir=runs/digits"
  )
  assert second == "pip install -e '.[test]' && pytest"
  run = [re.sub("--quiet ", "", x) for x in CI.splitlines()]
  run = [re.sub(r'--workdir="\$fresh/', 'runs="', x) for x in run]
  for wanted in (
    "pip install -e .",
    'python -m gamix_jax.main --config=configs/digits.py runs="digits"',
    "pip install -e '.[test]'",
    "pytest",
    "ruff check",
  ):
    assert wanted in run, wanted


def test_every_document_is_linked_from_the_readme():
  """By itself, or through docs/index.md and the pages that this links to."""
  found, new = set(), {README}
  while new:
    found |= new
    linked = set()
    for path in new:
      for link in re.findall(r"\]\(([\w./]+\.md)", path.read_text()):
        linked.add((path.parent / link).resolve())
    new = linked - found
  assert set(DOCUMENTS) <= found


@pytest.mark.parametrize("path", LINKED, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(path):
  """Checks the pictures, files and headings that a document links to."""
  for link in re.findall(r"\]\(([^)]+)\)", path.read_text()):
    if re.match("https?:", link):
      continue
    name, _, heading = link.partition("#")
    target = path.parent / name if name else path
    assert target.exists(), link
    if heading:
      assert heading in anchors(target), link


def test_documents_have_pictures():
  for path in (README, ROOT / "docs" / "inference.md"):
    assert re.search(r"!\[.+?\]\(.+?\.png\)", path.read_text()), path


@every_document
def test_documented_keys_are_keys(path):
  from gamix_jax import config
  from gamix_jax.evaluate import settings

  keys = config.flat(config.base()) | config.flat(settings.base())
  for key in re.findall(r"--config\.([\w.]+)", path.read_text()):
    assert key in keys, key
  for name in re.findall(r"configs/(\w+)\.py", path.read_text()):
    assert (ROOT / "configs" / f"{name}.py").is_file(), name


def test_documents_have_keys_and_commands():
  """Checks that the tests of each document find something to check."""
  text = "".join(p.read_text() for p in DOCUMENTS)
  assert len(re.findall(r"--config\.[\w.]+", text)) > 20
  modules = re.findall(r"python -m ([\w.]+)", text)
  wanted = {p.parent.name for p in PACKAGE.glob("*/__main__.py")} | {"main"}
  assert {f"gamix_jax.{name}" for name in wanted} <= set(modules)


@every_document
def test_documented_commands_are_there(path):
  """Modules and scripts exist and have the flags that they are given."""
  text = path.read_text()
  for name in re.findall(r"python -m ([\w.]+)", text):
    assert importlib.util.find_spec(name), name
  for name in re.findall(r"\blaunch/[\w/]+\.\w+", text):
    assert (ROOT / name).is_file(), name
  for line in commands(path):
    match = re.search(r"python -m ([\w.]+) ", line)
    if not match:
      continue
    file = Path(importlib.util.find_spec(match[1]).origin)
    if file.name == "__init__.py":
      file = file.with_name("__main__.py")
    source = file.read_text()
    for flag in re.findall(r" --(\w+)", line[match.end() - 1 :]):
      defined = f'"{flag}"' in source or (
        flag == "config" and "cli.define_data()" in source
      )
      assert defined, f"{line}: --{flag}"


def test_documented_family_specs_fit():
  """The command of docs/evaluation.md compares specs that fit."""
  from gamix_jax.compare.families import family_config

  specs = []
  for line in commands(ROOT / "docs" / "evaluation.md"):
    specs += re.findall(r"--families=(\S+)", line)
  (families,) = specs
  for spec in families.split(","):
    family_config(config_of("digits"), spec)


def test_documented_families_are_those_of_the_table():
  from gamix_jax import objectives, posterior

  text = (ROOT / "docs" / "objective.md").read_text()
  section = text.split("## Exchange the posterior")[1].split("\n## ")[0]
  rows = re.findall(r"^\| `(\w+)` \|.*\| (.*?) \|$", section, re.M)
  assert [name for name, _ in rows] == list(posterior.POSTERIORS)
  ways = text.split("## All ways")[1].split("\n## ")[0]
  ways = re.findall(r"^\| `(\w+)` \|[^|]*\| ([^|]*) \|", ways, re.M)
  for name, families in ways:
    accepts = objectives.OBJECTIVES[name].accepts
    assert set(re.findall(r"`(\w+)`", families)) == {
      k for k, head in posterior.POSTERIORS.items() if accepts(head.family)
    }, name
  elsewhere = {name for name, _ in ways} - {"gamix", "elbo"}
  single = {k for k, o in objectives.OBJECTIVES.items() if not o.subsets}
  assert elsewhere | {"gamix", "elbo", "selbo", "siwae", "exact", "evae"} == {
    k for k in single if "mmvm" not in k
  }
  for name, text in rows:
    classes = {posterior.POSTERIORS[name].family}
    if name == "epanechnikov":
      classes.add(posterior.EVAEPosterior)
    fit = {
      key
      for key, objective in objectives.OBJECTIVES.items()
      if any(objective.accepts(c) for c in classes)
      and not objective.subsets
      and key not in elsewhere
    }
    assert set(re.findall(r"`(\w+)`", text)) == fit, name


def test_documented_fusions_are_those_of_the_table():
  from gamix_jax import multimodal, objectives, posterior

  text = (ROOT / "docs" / "multimodal.md").read_text()
  text = text.split("## Fusion")[1].split("## Using a trained")[0]
  rows = re.findall(r"^\| `(\w+)` \|", text, re.M)
  families = [head.family for head in posterior.POSTERIORS.values()]
  families.append(posterior.EVAEPosterior)
  only_several = {
    name
    for name, objective in objectives.OBJECTIVES.items()
    if objective.subsets or not any(map(objective.accepts, families))
  }
  assert set(rows) == {*multimodal.FUSIONS, *only_several, "elbo", "gamix"}


def test_readme_configs_are_those_there_are():
  """Each with its preset and its population form, or another objective."""
  rows = re.findall(
    r"^\| (`\w+`(?:, `\w+`)*) \| .*? \| (`(\w+)`|-) \| (\w+), `(\w+)` \|",
    README.read_text(),
    re.M,
  )
  named = {}
  for names, _, *facts in rows:
    named |= dict.fromkeys(re.findall(r"\w+", names), facts)
  fused = dict(
    (name, facts)
    for name, *facts in re.findall(
      r"^\| `(\w+)` \| [^|]* \| `(\w+)`, `(\w+)` \|$",
      (ROOT / "docs" / "multimodal.md").read_text(),
      re.M,
    )
  )
  for name, facts in fused.items():
    c = config_of(name)
    assert facts == [c.multimodal.fusion, c.objective.name], name
  there = {p.stem for p in (ROOT / "configs").glob("*.py")}
  assert named.keys() | fused.keys() == there
  for name, (preset, posterior, loss) in named.items():
    c = config_of(name)
    wanted = c.objective.name
    if wanted == "gamix":
      wanted = c.objective.population
    assert (preset, posterior.lower(), loss) == (
      *(c.preset, c.posterior.name, wanted),
    ), name


def changed(name, line):
  """Returns a config of configs/ with a line of flags, completed."""
  from gamix_jax import config, presets

  c = config_of(name)
  for key, value in re.findall(r"--config\.([\w.]+)=(\S+)", line):
    section, _, last = key.rpartition(".")
    holder = config.get(c, section) if section else c
    holder[last] = (
      None if value == "None" else int(value) if value.isdigit() else value
    )
  return presets.complete(c)


VARIATIONS = [
  line
  for path in (README, ROOT / "docs" / "training.md")
  for line in commands(path)
  if line.startswith("--config.")
]


@pytest.mark.parametrize("line", VARIATIONS)
@pytest.mark.parametrize("name", ["digits", "mnist", "folder", "celeba"])
def test_documented_variations_are_configs(name, line):
  """The flags suffice on their own, and change what their text names."""
  from gamix_jax import build, config

  assert len(VARIATIONS) > 8
  c = changed(name, line)
  build.train_spec(c)
  for key, value in re.findall(r"--config\.([\w.]+)=(\S+)", line):
    assert str(config.get(c, key)) == value

"""The house: imports only go down, TensorFlow stays out, files stay short."""

import ast
import re
import subprocess
import sys

import pytest
from program import ROOT, SMALL

PACKAGE = ROOT / "gamix_jax"
# From the ground up; a folder is one room. A room imports from lower floors
# and, as the reading order goes, from earlier rooms of its own floor.
FLOORS = (
  ("errors", "malloc", "winograd"),
  ("hosts",),
  ("ops", "config", "posterior", "data", "checkpoint", "mesh", "pictures"),
  ("population", "networks", "presets", "metrics"),
  ("objective",),
  ("optim", "diagnose"),
  ("step",),
  ("build", "workdir", "health", "progress", "profile", "weights"),
  ("writer", "examine", "inference", "keras_weights"),
  ("train",),
  ("cli", "compare", "evaluate", "explore", "export", "generate", "notebook"),
  ("main",),
)
ROOMS = [room for floor in FLOORS for room in floor]
# What must not wait: it names things for `import gamix_jax` alone.
LAZY = {("__init__", "inference")}
SOURCES = sorted(
  path
  for folder in ("gamix_jax", "configs", "launch", "benchmarks")
  for path in (ROOT / folder).rglob("*.py")
)


def room(path):
  """The top-level name a file is under; a package's command is as `main`."""
  if path.name == "__main__.py":
    return "main"
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
  """The rooms of the package that a file imports from."""
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


@pytest.mark.parametrize(
  "path", SOURCES, ids=lambda p: str(p.relative_to(ROOT))
)
def test_files_are_short(path):
  lines = path.read_text().count("\n")
  assert lines <= 400, f"{lines} lines"


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
assert heavy("tensorflow", "torch", "tensorboard") == []
# What a start need not wait for.
assert heavy("matplotlib", "sklearn", "scipy.stats") == []
assert heavy("tensorflow_datasets") == []
assert heavy("jax", "grain", "orbax", "tensorboardX")  # it did run
print("left out", *(
  counts.get(f"/jax/compilation_cache/cache_{kind}", 0)
  for kind in ("hits", "misses")
))
"""


def test_tensorflow_stays_out_and_a_second_start_compiles_nothing(
  program, tmp_path
):
  """Of `import gamix_jax` and of a whole run; and with another workdir."""
  for i in range(2):
    ran = subprocess.run(
      [sys.executable, "-c", CHECK, *SMALL, f"--workdir={tmp_path}/run{i}"],
      env=program.env(),
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / f"run{i}" / "checkpoints" / "3").is_dir()
    words, hits, misses = ran.stdout.splitlines()[-1].rsplit(" ", 2)
    assert words == "left out"
  # Its first state, the step, the evaluation and the pictures.
  assert (int(hits), int(misses)) == (4, 0)


# ------------------------------------------------------------ README


README = (ROOT / "README.md").read_text()
CI = (ROOT / ".ci" / "run").read_text()


def commands():
  """The commands of the README's code blocks, continued lines joined."""
  for block in re.findall(r"```bash\n(.*?)```", README, re.S):
    for line in block.replace("\\\n", " ").splitlines():
      if line and not line.startswith("#"):
        yield re.sub(r" +", " ", line)


def test_readme_two_commands_are_those_of_ci():
  first, second, *_ = commands()
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


def test_readme_keys_are_keys():
  from gamix_jax import config
  from gamix_jax.evaluate import settings

  keys = config.flat(config.base()) | config.flat(settings.base())
  found = re.findall(r"--config\.([\w.]+)", README)
  assert found
  for key in found:
    assert key in keys, key
  for name in re.findall(r"configs/(\w+)\.py", README):
    assert (ROOT / "configs" / f"{name}.py").is_file(), name


def test_readme_families_are_those_of_the_table():
  from gamix_jax import objective, posterior

  section = README.split("## Exchange the posterior")[1].split("\n## ")[0]
  rows = re.findall(r"^\| `(\w+)` \|.*\| (.*?) \|$", section, re.M)
  assert [name for name, _ in rows] == list(posterior.HEADS)
  for name, text in rows:
    classes = {posterior.head(name, latent=1).family}
    if name == "epanechnikov":
      classes.add(posterior.Smoothed)
    fit = {
      k for k, o in objective.OBJECTIVES.items() if classes & {*o.families}
    }
    assert set(re.findall(r"`(\w+)`", text)) == fit, name


def test_readme_pictures_are_there():
  found = re.findall(r"!\[.*?\]\((.*?)\)", README)
  assert found
  for name in found:
    assert (ROOT / name).is_file(), name


def test_readme_variations_are_configs():
  """The flags it offers, alone or together, fit digits."""
  from gamix_jax import build, config

  block = README.split("Any key can be given on the command line:")[1]
  block = re.search(r"```bash\n(.*?)```", block, re.S)[1].replace("\\\n", " ")
  lines = [x for x in block.splitlines() if not x.startswith("#")]
  assert len(lines) >= 3
  for line in lines:
    c = config.base()
    for key, value in re.findall(r"--config\.([\w.]+)=(\S+)", line):
      section, _, name = key.rpartition(".")
      holder = config.get(c, section) if section else c
      old = holder[name]
      kind = type(old) if old is not None else float
      holder[name] = None if value == "None" else kind(value)
    config.check(c)
    build.recipe(c)

"""The wheel: what it contains, and that it trains outside of a checkout."""

import os
import subprocess
import sys
import zipfile

import pytest
from program import ROOT, rows

import gamix_jax

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """The path of a wheel; pip needs a network to get hatchling."""
  folder = tmp_path_factory.mktemp("wheel")
  pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
  ran = subprocess.run(
    [*pip, f"--wheel-dir={folder}", ROOT],
    capture_output=True,
    text=True,
    check=False,
  )
  if "No matching distribution found for hatchling" in ran.stderr:
    pytest.skip("no network to get hatchling from")
  assert ran.returncode == 0, ran.stderr
  (path,) = folder.glob("*.whl")
  return path


def test_it_has_the_package_and_the_configs(wheel):
  assert wheel.name == f"gamix_jax-{gamix_jax.__version__}-py3-none-any.whl"
  names = set(zipfile.ZipFile(wheel).namelist())
  wanted = {"gamix_jax/py.typed"}
  for folder in ("gamix_jax", "configs"):
    for path in (ROOT / folder).rglob("*.py"):
      name = str(path.relative_to(ROOT))
      wanted.add(name if folder == "gamix_jax" else f"gamix_jax/{name}")
  assert wanted <= names
  tops = {name.partition("/")[0] for name in names}
  assert tops == {"gamix_jax", f"gamix_jax-{gamix_jax.__version__}.dist-info"}


def test_it_trains_from_an_empty_folder(wheel, program, tmp_path):
  """Without --workdir and with a config of the wheel, as a user starts it."""
  site = tmp_path / "site"
  zipfile.ZipFile(wheel).extractall(site)
  here = tmp_path / "empty"
  here.mkdir()
  env = program.env(PYTHONPATH=str(site), PYTHONSAFEPATH="1")
  where = "import gamix_jax; print(gamix_jax.__file__)"
  found = subprocess.run(
    [sys.executable, "-c", where],
    env=env,
    cwd=here,
    capture_output=True,
    text=True,
    check=True,
  )
  assert found.stdout.strip() == os.fspath(site / "gamix_jax" / "__init__.py")
  ran = program.run("--config=digits.py:tiny", cwd=here, env=env)
  assert ran.returncode == 0, ran.stderr
  assert rows(here / "runs" / "digits")[-1]["step"] == 3

"""Runs the examples of docs/extending.md as modules outside the package.

Each example is one file and one line that registers it; each trains with `main`
and works with `load`, `evaluate` and `generate`.
"""

import re
import shlex
from typing import ClassVar

import jax
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from program import ROOT, assert_refused, rows

from gamix_jax import config, registry
from gamix_jax.errors import UserError
from gamix_jax.registry import Registry
from gamix_jax.training import workdir

TEXT = (ROOT / "docs" / "extending.md").read_text()
MODULES = {
  re.match(r"# (\w+)\.py\n", code)[1]: code
  for code in re.findall(r"```python\n(.*?)```", TEXT, re.S)
}
COMMANDS = {
  re.search(r"extensions=\"\('(\w+)',\)\"", line)[1]: shlex.split(line)[3:]
  for line in re.findall(
    r"^python -m gamix_jax\.main .*$", TEXT.replace("\\\n", " "), re.M
  )
}
# Small and quick, without touching what an example is about.
SHORT = (
  "--config.steps=3",
  "--config.log_every=1",
  "--config.eval_images=16",
  "--config.eval_draws=2",
  "--config.data.batch_size=8",
  "--config.model.encoder_features=(4, 4, 4)",
  "--config.model.decoder_features=(4, 4, 4)",
)
LOAD = """
import sys, jax, numpy as np, gamix_jax
model = gamix_jax.load(sys.argv[1])
x = np.zeros((2, 16, 16, 1), np.uint8)
q = model.encode(x)
assert model.reconstruct(x).shape == x.shape
assert np.isfinite(model.log_likelihood(x, 4)).all()
print(type(q).__name__, *q.mean().shape, *model.config.extensions)
"""


def flags(name):
  found = [f for f in COMMANDS[name] if not f.startswith("--workdir")]
  if name != "grid":
    found += ["--config.model.encoder=mlp", "--config.model.decoder=mlp"]
  return [*found, *SHORT]


def test_every_example_has_a_command():
  assert set(MODULES) == set(COMMANDS)
  assert len(MODULES) == 5


QUICK = ("laplace",)


@pytest.mark.parametrize(
  "name",
  [
    n if n in QUICK else pytest.param(n, marks=pytest.mark.slow)
    for n in sorted(MODULES)
  ],
)
def test_an_example_trains_and_opens(program, tmp_path, name):
  (tmp_path / f"{name}.py").write_text(MODULES[name])
  run = tmp_path / "run"

  def done(module, *words):
    ran = program.run(*words, module=f"gamix_jax.{module}", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == "", ran.stderr
    return ran.stdout

  done("main", *flags(name), f"--workdir={run}")
  log = rows(run)
  assert [r["step"] for r in log if "vae/loss" in r] == [1, 2, 3]
  assert all(np.isfinite(r["vae/loss"]) for r in log if "vae/loss" in r)
  if name == "capacity":  # its state continues
    nats = [r["capacity/nats"] for r in log if "capacity/nats" in r]
    np.testing.assert_allclose(nats, [0, 0.02, 0.04], rtol=1e-5)
  given = f"--workdir={run}"
  done(
    *("evaluate", given, "--config.eval.images=24"),
    *("--config.eval.features=random", "--config.eval.train_images=32"),
    "--config.eval.bound_images=8",
  )
  assert (run / "eval" / "report.md").is_file()
  done("generate", given, "--what=samples", f"--out={tmp_path / 'samples.png'}")
  assert (tmp_path / "samples.png").is_file()
  ran = program.script(
    f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{LOAD}", run
  )
  assert ran.returncode == 0, ran.stderr
  kind, images, latents, module = ran.stdout.split()
  assert kind == ("Laplace" if name == "laplace" else "Gaussian")
  assert (images, module) == ("2", name)
  assert int(latents) == (16 if name == "grid" else 10)


def test_a_module_that_is_not_there_is_named(program, tmp_path):
  ran = program.run(
    "--config=configs/digits.py",
    "--config.extensions=('nowhere_to_be_found',)",
    f"--workdir={tmp_path}/run",
  )
  assert_refused(ran, "'nowhere_to_be_found'", "PYTHONPATH")
  assert not (tmp_path / "run").exists()


def test_a_part_brings_its_keys():
  table = Registry("posterior.name")

  class Mine:
    settings: ClassVar = {"width": 2}

  Mine.__module__ = "mine"
  assert table.register("mine")(Mine) is Mine
  c = config.base()
  assert c.extensions == ("mine",)
  assert c.posterior.mine.width == 2
  with pytest.raises(UserError, match="must be one of mine"):
    table.choose("other")

  class Theirs(Mine):
    pass

  Theirs.__module__ = "theirs"
  with pytest.raises(ValueError, match="taken by mine"):
    table.register("mine", Theirs)
  Theirs.__module__ = "mine"  # imported again, in a notebook
  assert table.register("mine", Theirs) is Theirs


def test_other_modules_do_not_stop_a_run(tmp_path):
  """That a process has imported for another run, as in a notebook."""
  c = config.base()
  (tmp_path / "config.json").write_text(config.to_json(c))
  registry._modules.append("json")
  registry._keys["posterior.json.width"] = 2
  again = config.base()
  assert again.extensions == ("json",)
  workdir.check(tmp_path, again)
  again.posterior.json.width = 3
  with pytest.raises(UserError, match=r"posterior\.json\.width"):
    workdir.check(tmp_path, again)


@pytest.mark.parametrize("weight", [16.0, 40.0])
def test_the_likelihood_of_the_example_is_a_density(weight):
  scope = {"__name__": "cauchy"}
  exec(MODULES["cauchy"], scope)
  t, n = scope["StudentT"](), 16

  def density(x):
    error = float(t.error(x, 0.3))
    return np.exp(-weight / n * error - t.log_normalizer(n, weight) / n)

  mass, _ = scipy.integrate.quad(density, -np.inf, np.inf, points=None)
  np.testing.assert_allclose(mass, 1, rtol=1e-3)


def test_the_posterior_of_the_example():
  """Its samples have its stated moments, and scipy's density."""
  scope = {"__name__": "laplace"}
  exec(MODULES["laplace"], scope)
  rng = np.random.default_rng(0)
  mu, log_scale = rng.normal(size=(2, 3, 2)).astype("f4")
  q = scope["Laplace"](mu, log_scale)
  z, w = q.sample(jax.random.key(0), 40_000)
  _, mean, var = q.components()
  np.testing.assert_allclose((w[..., None] * z).sum(0), mean[:, 0], atol=0.1)
  np.testing.assert_allclose(z.var(0), var[:, 0], rtol=0.1)
  wanted = scipy.stats.laplace.logpdf(z[:5], mu, np.exp(log_scale)).sum(-1)
  np.testing.assert_allclose(q.log_prob(z[:5]), wanted, rtol=1e-4, atol=1e-4)

"""Every file of configs/: shapes at full size, and 3 tiny steps."""

import functools
import json
import re

import jax
import numpy as np
import pytest
from program import QUICK, ROOT, complete_config_of

from gamix_jax import build, config, step
from gamix_jax.evaluate import settings
from gamix_jax.training import loop

NAMES = sorted(p.stem for p in (ROOT / "configs").glob("*.py"))


def test_there_are_all():
  assert set(NAMES) >= {
    *("digits", "mnist", "fashion_mnist", "cifar10", "celeba", "celeba_hq"),
    "folder",
  }


@pytest.mark.parametrize("name", NAMES)
def test_headed_by_its_command(name):
  """A command that main accepts, with this file and a workdir."""
  path = ROOT / "configs" / f"{name}.py"
  head = re.match(r'"""(.*?)"""', path.read_text(), re.S)[1]
  command = re.search(r"^ *python -m gamix_jax.main(?:.*\\\n)*.*$", head, re.M)
  assert command, head
  assert f"--config=configs/{name}.py" in command[0]
  assert "--workdir=" in command[0]
  keys = config.flat(config.base()) | config.flat(settings.base())
  for key in re.findall(r"--config\.([\w.]+)=", head):
    assert key in keys, key


@pytest.mark.parametrize("name", NAMES)
def test_builds_at_its_size(name):
  c = complete_config_of(name)
  spec = build.train_spec(c)
  state = jax.eval_shape(functools.partial(step.init, spec))
  after, metrics = jax.eval_shape(
    functools.partial(step.train_step, spec),
    state,
    spec.batch_shapes(c.data.batch_size),
  )
  assert after == state  # equal shapes and types, so it can be donated
  for term, weight in c.weights.items():
    side = "disc" if term in ("real", "fake") else "vae"
    assert (f"{side}/{term}" in metrics) == (weight is not None), term
  if c.objective.name == "gamix":
    assert metrics["population/mean"].shape == (c.model.latent,)


def test_celeba_hq_is_the_published_run():
  """Parameter counts of the published networks, and its training settings."""
  c = complete_config_of("celeba_hq")
  state = jax.eval_shape(functools.partial(step.init, build.train_spec(c)))

  def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))

  assert count((state.vae.params, state.disc.params)) == 11_368_815
  differing = config.differences(config.base(), c)
  assert differing.keys() <= {
    *("data.source", "data.cache", "data.workers"),
    *("log_every", "eval_every", "checkpoint.every", "checkpoint.keep"),
  }
  assert (c.data.batch_size, c.model.latent) == (20, 512)
  assert (c.optim.vae.learning_rate, c.optim.vae.b1) == (1e-4, 0.5)
  given = {k: weight for k, weight in c.weights.items() if weight is not None}
  assert given == {
    **{"recon": 5000, "population_kl": 1, "collapse_penalty": 0.2},
    **{"adversarial": 100, "real": 100, "fake": 100},
  }


@pytest.fixture
def quick(monkeypatch):
  """jax.jit that compiles in half the time."""
  jit = jax.jit

  def cheap(function, **kwargs):
    return jit(function, **kwargs | {"compiler_options": QUICK})

  monkeypatch.setattr(loop.jax, "jit", cheap)


# The other files differ from these only in sizes and sources.
QUICK_NAMES = ("digits", "celeba", "folder")


@pytest.mark.parametrize(
  "name",
  [
    n if n in QUICK_NAMES else pytest.param(n, marks=pytest.mark.slow)
    for n in NAMES
  ],
)
def test_tiny_runs(name, quick, tmp_path, capfd):
  real, c = complete_config_of(name), complete_config_of(name, "tiny")
  for section in ("objective", "posterior", "optim", "ema"):
    assert c[section].to_dict() == real[section].to_dict()
  assert c.adversarial.loss == real.adversarial.loss
  terms = [
    {k for k, v in x.weights.items() if v is not None} for x in (c, real)
  ]
  assert terms[0] == terms[1]
  assert (c.model.norm, c.data.flip) == (real.model.norm, real.data.flip)
  assert c.data.channels == real.data.channels
  numbers = loop.train(c, str(tmp_path))
  assert all(np.isfinite(v) for v in numbers.values()), numbers
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert [r["step"] for r in rows if "vae/loss" in r] == [1, 2, 3]
  assert all(r["nonfinite/total"] == 0 for r in rows if "vae/loss" in r)
  out, err = capfd.readouterr()
  assert "Done: step 3 of 3" in out
  assert err == ""

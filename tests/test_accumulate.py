"""Gradients accumulated over parts of a batch."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import alone, assert_close, flat, images, jit, small, state_of
from program import SMALL, numbers

from gamix_jax import build, config, step
from gamix_jax.errors import UserError

QUADRATIC = dict(objective__population="quadratic")
RAE = dict(
  posterior__name="delta",
  objective__name="rae_l2",
  weights__population_kl=None,
  weights__collapse_penalty=None,
  weights__code_norm=1.0,
  weights__decoder_norm=0.1,
)


def gradients(c, batches):
  """Losses and gradients of each batch, for a config's `accumulate`."""
  config.check(c)
  spec = build.train_spec(c)
  of = jit(partial(step.gradients, spec))
  state = state_of(spec)
  return [of(state, {"image": jnp.asarray(x)})[:2] for x in batches]


def mean(trees):
  return jax.tree.map(lambda *v: np.mean(np.stack(v), axis=0), *trees)


def test_without_noise_it_is_the_gradient_of_the_batch():
  """Of both networks; a deterministic encoder and terms that are means."""
  x = np.asarray(images(flat(**RAE))["image"])
  (whole,) = gradients(flat(**RAE), [x])
  for k in (2, 4):
    (parts,) = gradients(flat(**RAE, optim__accumulate=k), [x])
    assert_close(parts, whole, rtol=1e-5)


def test_its_expectation_is_the_gradient_of_the_batch():
  """Over all ways to split four images into pairs."""
  make = partial(alone, flat, **QUADRATIC, data__batch_size=4)
  zero = dict(weights__recon=0.0, weights__population_kl=3.0)
  x = np.asarray(images(make())["image"])
  orders = [(0, 1, 2, 3), (0, 2, 1, 3), (0, 1, 3, 2)]
  # The parts are every second image.
  pairs = [{frozenset(o[i::2]) for i in range(2)} for o in orders]
  assert set(map(frozenset, pairs)) == {
    frozenset({frozenset(p), frozenset({0, 1, 2, 3} - set(p))})
    for p in itertools.combinations(range(4), 2)
  }
  (whole,) = gradients(make(**zero), [x])
  each = gradients(
    make(**zero, optim__accumulate=2), [x[list(o)] for o in orders]
  )
  assert_close(mean(each), whole, rtol=1e-4)
  # A single split has another gradient.
  with pytest.raises(AssertionError):
    assert_close(each[0], whole, rtol=1e-2)


def test_every_part_has_its_own_noise():
  """The same image twice: its two draws differ, so the metrics do."""
  c = alone(flat, **QUADRATIC, data__batch_size=4, optim__accumulate=2)
  spec = build.train_spec(c)
  x = jnp.tile(images(c)["image"][:1], (4, 1, 1, 1))
  state = state_of(spec)
  single = dataclasses.replace(spec, accumulate=1)

  @jit
  def recon(part):
    params = (state.vae.params, state.disc.params)
    _, (metrics, _) = step.losses(single, state, {"image": x}, params, part)
    return metrics["vae/recon"]

  parts = [float(recon(jnp.asarray(i))) for i in range(2)]
  assert parts[0] != parts[1]


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(objective__population="debiased"), "'gamix'.*'debiased'"),
    (dict(objective__population="means"), "'gamix'.*'means'"),
    (QUADRATIC | dict(model__norm="batch"), "model.norm='batch'"),
    (QUADRATIC | dict(optim__accumulate=3), "must divide data.batch_size=8"),
    (QUADRATIC | dict(optim__accumulate=8), "parts of 2 or more"),
  ],
)
def test_what_it_refuses(changes, words):
  with pytest.raises(UserError, match=words):
    build.train_spec(small(**(dict(optim__accumulate=2) | changes)))


@pytest.mark.slow
def test_a_run_continues(program, tmp_path):
  """At the command line, as if it had not stopped."""
  flags = [f for f in SMALL if "population" not in f]
  flags += [
    "--config.objective.population=quadratic",
    "--config.optim.accumulate=4",
    "--config.optim.vae.schedule=constant",
    "--config.optim.disc.schedule=constant",
    "--config.ramp.collapse_penalty=0",
    "--config.adversarial.disc_start=1",
  ]
  for name, steps in (("whole", 2), ("stopped", 1), ("stopped", 2)):
    ran = program.forked(
      *flags, f"--config.steps={steps}", f"--workdir={tmp_path / name}"
    )
    assert ran.returncode == 0, ran.stderr
  whole, stopped = (numbers(tmp_path / n) for n in ("whole", "stopped"))
  whole, stopped = (
    [r for r in log if "vae/loss" in r] for log in (whole, stopped)
  )
  assert [r["step"] for r in whole] == [1, 2]
  assert whole == stopped

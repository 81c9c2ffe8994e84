"""The compiled steps of a run: in time, and refused if they do not fit."""

from functools import partial

import jax
import pytest
from conftest import flat

from gamix_jax import build, step
from gamix_jax.errors import UserError
from gamix_jax.parallel import mesh
from gamix_jax.training import compiled_steps, loop

LATE = dict(adversarial__disc_start=6, adversarial__gen_delay=1, steps=8)


def late(**changes):
  return flat(
    **{"log_every": 1, "eval_every": 8, "eval_images": 4, "eval_draws": 1},
    **{"checkpoint__every": 8, "checkpoint__keep_best": 0},
    data__source="synthetic",
    **LATE | changes,
  )


class Device:
  """An accelerator with this much memory."""

  device_kind = "Some GPU"

  def __init__(self, limit):
    self.limit = limit

  def memory_stats(self):
    return self.limit and {"bytes_limit": self.limit}


def test_a_step_that_does_not_fit_the_device_is_refused():
  c = late()
  spec = build.train_spec(c)
  layout = mesh.ShardingPlan(
    mesh.create_mesh(c.data.batch_size), c.mesh.fsdp_min_size
  )
  abstract = layout.with_shardings(jax.eval_shape(partial(step.init, spec)))
  compiled = compiled_steps.compile_step(spec, c, abstract, layout)
  needed = compiled_steps.program_memory(compiled)["program"]
  # At least the state, which is an argument, and on a CPU that is all known.
  assert needed > sum(
    x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract)
  )
  check = compiled_steps._check_memory
  for limit in (needed, None):
    check(spec, compiled, Device(limit))
  with pytest.raises(
    UserError, match=r"(?s)From step 6 on, the disc.*Some GPU"
  ):
    check(spec, compiled, Device(needed - 1))
  with pytest.raises(UserError, match=r"(?s)^A step needs .*optim.accumulate"):
    check(spec.at(0), compiled, Device(needed - 1))


def test_the_discriminator_is_compiled_before_it_starts(
  quick, tmp_path, monkeypatch
):
  """What goes wrong with it ends the run soon, not when it starts."""
  original = compiled_steps.compile_step

  def compile_(spec, *args):
    if not spec.started:
      return original(spec, *args)
    raise UserError("It does not fit.")

  steps = []
  monkeypatch.setattr(compiled_steps, "compile_step", compile_)
  report = loop.Trainer.report

  def reported(self, done, metrics):
    self.compiled._programs[True].exception()  # waits
    steps.append(done)
    report(self, done, metrics)

  monkeypatch.setattr(loop.Trainer, "report", reported)
  with pytest.raises(UserError, match="It does not fit"):
    loop.train(late(), str(tmp_path / "run"))
  assert len(steps) <= 1

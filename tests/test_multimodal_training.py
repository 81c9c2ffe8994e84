"""Runs of several modalities, half of which are missing.

As `test_resume` for images: a resumed run equals one that never stopped, bit
for bit, and eight devices equal one.
"""

import shlex
import shutil
import signal

import numpy as np
import pytest
from program import Jobs, chosen, numbers
from test_resume import arrays, steps, when

VIEWS = tuple(f"m{i}" for i in range(3))
SMALL = shlex.split("""
  --config=configs/polydigits.py
  --config.data.modalities="('m0 16x16x3 l1','m1 16x16x3 l2','m2 16x16x3 l1')"
  --config.data.batch_size=8
  --config.data.missing=0.5
  --config.data.missing_test=0.25
  --config.model.encoder_features="(4,)"
  --config.model.decoder_features="(4,)"
  --config.model.latent=4
  --config.log_every=1
  --config.eval_every=1000
  --config.eval_images=16
  --config.eval_draws=2
  --config.checkpoint.every=1000
  --config.checkpoint.keep_best=0
  --config.optim.vae.schedule=constant
  --config.optim.disc.schedule=constant
  --config.optim.vae.warmup=0
  --config.optim.disc.warmup=0
  --config.optim.vae.eps=1e-3
""")
# The annealing depends on the objective's own state, the count of its steps.
MMVM = (*SMALL, "--config.objective.mmvm.alpha_steps=5")
ATTENTION = (
  "--config.multimodal.fusion=attention",
  "--config.multimodal.width=8",
  "--config.multimodal.heads=2",
  "--config.weights.population_kl=None",
  "--config.weights.collapse_penalty=None",
)
# Random subsets, attention, private latents.
MASKED = (
  *SMALL,
  *ATTENTION,
  "--config.objective.name=masked",
  "--config.multimodal.private=2",
  "--config.weights.subset_kl=1.0",
)
SPREAD = ("--config.mesh.fsdp=4", "--config.mesh.fsdp_min_size=64")


TABLE = {
  "mmvm six": steps(6, *MMVM),
  "mmvm three": steps(3, *MMVM),
  "mmvm three@8": steps(3, *MMVM, *SPREAD),
  "masked three": steps(3, *MASKED),
  "masked three@8": steps(3, *MASKED, *SPREAD),
}


@pytest.fixture(scope="module")
def jobs(program, request, tmp_path_factory):
  names = chosen(request.session, request.path)
  return Jobs(program, TABLE, names, tmp_path_factory.mktemp("jobs"))


def of(*jobs):
  return pytest.mark.parametrize("job", jobs, ids=[job[0] for job in jobs])


@pytest.fixture
def runs(jobs, job):
  """The workdirs of the runs of these names, all successful."""
  found = []
  for name in job:
    ran, folder = jobs[name]
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    found.append(folder / "run")
  return found


def training(run):
  return [r for r in numbers(run) if "vae/loss" in r]


def assert_equal(a, b, step):
  """Asserts that two runs end equally: the state's bits, and the metrics."""
  ours, theirs = arrays(a, step), arrays(b, step)
  assert ours.keys() == theirs.keys()
  assert len(ours) > 60
  for name, x in ours.items():
    y = np.asarray(theirs[name])
    assert np.asarray(x).tobytes() == y.tobytes(), name
  assert training(a) == training(b)


@of(("mmvm six",), ("masked three",))
def test_metrics_with_half_of_the_modalities_missing(runs):
  """All are finite, those of each modality too."""
  (run,) = runs
  rows = numbers(run)
  for row in rows:
    assert all(np.isfinite(v) for v in row.values()), row
  steps_ = training(run)
  assert all(r["nonfinite/total"] == 0 for r in steps_)
  assert [r["step"] for r in steps_] == [*range(1, len(steps_) + 1)]
  (last,) = (r for r in rows if "eval/elbo" in r)
  for name in VIEWS:
    assert 0 < last[f"eval/{name}/mae"] < 2
  if "mmvm/alpha" in steps_[0]:
    found = [r["mmvm/alpha"] for r in steps_]
    np.testing.assert_allclose(found, [1, 0.8, 0.6, 0.4, 0.2, 0], atol=1e-6)
  else:
    assert all(0 <= r["subset/size"] <= 3 for r in steps_)


@of(("mmvm six", "mmvm three"))
def test_three_and_three_are_six(runs, program, tmp_path):
  six, three = runs
  both = shutil.copytree(three, tmp_path / "run")
  flags = TABLE["mmvm six"](tmp_path)
  assert "Continuing at step 3." in program.done(*flags)
  assert_equal(both, six, 6)


@of(
  ("mmvm three", "mmvm three@8"),
  ("masked three", "masked three@8"),
)
def test_eight_devices_are_one(runs):
  """With a sharded batch and a sharded state; random subsets too."""
  one, eight = runs
  for a, b in zip(numbers(one), numbers(eight), strict=True):
    assert a.keys() == b.keys()
    for name, value in a.items():
      # These are small differences of sums of several nats, in float32.
      close = name in ("eval/kl", "eval/population_kl_gaussian")
      atol = 1e-4 if close else 4e-6
      np.testing.assert_allclose(
        b[name], value, rtol=2e-4, atol=atol, err_msg=f"{a['step']} {name}"
      )
  ours, theirs = arrays(one, 3), arrays(eight, 3)
  kernels = [n for n in ours if "kernel" in n]
  assert len(kernels) > 20
  for name in kernels:
    off = np.max(np.abs(theirs[name] - ours[name]))
    assert off <= 2e-4 * np.max(np.abs(ours[name])) + 1e-6, (name, off)


@of(("mmvm six",))
def test_a_killed_run_continues(runs, program, tmp_path):
  """Killed after a checkpoint, the same command ends as if it had not been."""
  (straight,) = runs
  flags = [*TABLE["mmvm six"](tmp_path), "--config.checkpoint.every=1"]
  with program.start(*flags) as process:
    when(process, "4/6")
    process.kill()
    _, err = process.communicate()
  assert process.returncode == -signal.SIGKILL
  assert "Traceback" not in err, err
  out = program.done(*flags)
  begun = [line for line in out.splitlines() if "Continuing at step" in line]
  assert begun in ([f"Continuing at step {n}."] for n in range(1, 6)), out
  assert_equal(tmp_path / "run", straight, 6)

"""A resumed run equals one that never stopped.

Bit for bit on a CPU, for every array of the checkpoint. The reference is the
same run without interruption.
"""

import random
import shutil
import signal
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest
from program import SMALL, Jobs, chosen, numbers

from gamix_jax import config
from gamix_jax.checkpoint import Checkpoints

# Everything a state can hold: components, batch statistics, both optimizers'
# slots, a discriminator with dropout, which starts late; and ramps, which
# depend on the state's step.
RICH = (
  *SMALL,
  "--config.posterior.name=mixture",
  "--config.posterior.components=2",
  "--config.model.norm=batch",
  "--config.model.dropout=0.25",
  "--config.objective.population=debiased",
  "--config.ramp.collapse_penalty=5",
  "--config.adversarial.loss=bce",
  "--config.adversarial.disc_start=1",
  "--config.adversarial.gen_delay=1",
  "--config.ramp.adversarial=3",
  "--config.data.flip=true",
  # A schedule over all steps would not allow a different number of steps.
  "--config.optim.vae.schedule=constant",
  "--config.optim.disc.schedule=constant",
  # A bias before a norm has only a rounding error as its gradient. With a small
  # eps, Adam would turn it into steps that depend on the number of devices.
  "--config.optim.vae.eps=1e-3",
  "--config.optim.disc.eps=1e-3",
)
# A sharded state; on eight devices, two copies of it.
SPREAD = ("--config.mesh.fsdp=4", "--config.mesh.fsdp_min_size=64")
EVERY = "--config.checkpoint.every=1"
KILLS, STEPS = 4, 14


def arrays(workdir, step):
  """Returns every array of a checkpoint, read with Orbax alone."""
  path = workdir / "checkpoints" / str(step) / "state"
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    names = reader.metadata(path).item_metadata.keys()
    plain = {n: ocp.RestoreArgs(restore_type=np.ndarray) for n in names}
    return reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=plain))


def assert_equal(a, b, step):
  """Asserts that two runs end equally: the state's bits, and the metrics."""
  ours, theirs = arrays(a, step), arrays(b, step)
  assert ours.keys() == theirs.keys()
  assert len(ours) > 60  # of all networks and both optimizers
  for name, x in ours.items():
    y = theirs[name]
    assert x.dtype == y.dtype
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), name


def steps(n, *flags):
  return lambda folder: [
    *flags,
    f"--config.steps={n}",
    f"--workdir={folder}/run",
  ]


TABLE = {
  "six": steps(6, *RICH),
  "three": steps(3, *RICH),
  "three@8": steps(3, *RICH, *SPREAD),
  "many": steps(STEPS, *SMALL, EVERY),
}


@pytest.fixture(scope="module")
def jobs(program, request, tmp_path_factory):
  names = chosen(request.session, request.path)
  return Jobs(program, TABLE, names, tmp_path_factory.mktemp("jobs"))


def of(*names):
  return pytest.mark.parametrize("job", [names], ids=["and".join(names)])


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


@of("six", "three")
def test_three_and_three_are_six(runs, program, tmp_path):
  six, three = runs
  both = shutil.copytree(three, tmp_path / "run")
  # Neither logging nor the place of the images matters.
  free = (
    *("--config.log_every=1", "--config.eval_images=4"),
    *("--config.data.cache=memory", "--config.checkpoint.keep=1"),
    *("--config.data.workers=1", "--config.guard.max_nonfinite=5"),
    "--config.mesh.fsdp_min_size=7",
  )
  flags = steps(6, *RICH, *free)(tmp_path)
  assert "Continuing at step 3." in program.done(*flags)
  assert_equal(both, six, 6)

  def training(run):
    return [r for r in numbers(run) if "vae/loss" in r]

  assert training(both) == training(six)
  assert [r["step"] for r in training(both)] == [1, 2, 3, 4, 5, 6]
  saved = config.from_json((both / "config.json").read_text())
  assert (saved.steps, saved.checkpoint.keep) == (6, 1)


@of("three", "three@8")
def test_eight_devices_are_one(runs):
  """With a sharded batch, and with a sharded state."""
  one, eight = runs
  for a, b in zip(numbers(one), numbers(eight), strict=True):
    assert a.keys() == b.keys()
    for name, value in a.items():
      # These are small differences of sums of several nats, in float32.
      close = name in ("eval/kl", "eval/population_kl_gaussian")
      atol = 1e-4 if close else 2e-6
      np.testing.assert_allclose(
        b[name], value, rtol=2e-4, atol=atol, err_msg=f"{a['step']} {name}"
      )
  assert [a["step"] for a in numbers(one)] == [1, 2, 3, 3]
  ours, theirs = arrays(one, 3), arrays(eight, 3)
  for name in (n for n in ours if "kernel" in n or "batch_stats" in n):
    np.testing.assert_allclose(
      theirs[name], ours[name], rtol=2e-4, atol=2e-5, err_msg=name
    )


# ------------------------------------------------------------ kills


def when(process, line_begins):
  """Waits for a line of the output; the rest of it, if the process ended."""
  for line in process.stdout:
    if line.strip().startswith(line_begins):
      return line
  raise AssertionError(process.stderr.read())


def killed_run(program, folder, rng):
  """Kills a run KILLS times at random moments.

  Returns:
    For each kill, the step that the run started from, and the names in its
    checkpoint directory afterwards.
  """
  flags = TABLE["many"](folder)
  moments = []
  for _ in range(KILLS):
    begin = Checkpoints(folder / "run" / "checkpoints", keep=1).latest() or 0
    # A save begins at each step, and the next step's save waits for it: so a
    # step and a fraction of one may hit before, in or after a save.
    with program.start(*flags) as process:
      when(process, f"{begin + 1}/{STEPS}")
      first = time.monotonic()
      when(process, f"{begin + 2}/{STEPS}")
      # Every second time a line later, when the first save is certainly
      # complete, so that the run makes progress on any disk.
      if len(moments) % 2:
        first = time.monotonic()
        when(process, f"{begin + 3}/{STEPS}")
      time.sleep(rng.random() * (time.monotonic() - first))
      process.kill()
      _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL
    left = sorted(p.name for p in (folder / "run" / "checkpoints").glob("*"))
    moments.append((begin, left))
    assert "Traceback" not in err, err
  return moments


@pytest.mark.slow
@of("many")
def test_kills(runs, program, tmp_path):
  """KILLS kills, at least one of them in a save, then on to the last step."""
  (straight,) = runs
  moments = killed_run(program, tmp_path, random.Random(0))
  in_a_save = [m for m in moments if any("tmp" in name for name in m[1])]
  assert in_a_save, moments  # otherwise the kills prove little
  assert moments[-1][0] > 0  # it made progress
  assert moments[-1][0] < STEPS  # and had not finished
  out = program.done(*TABLE["many"](tmp_path))
  assert f"Done: step {STEPS} of {STEPS}" in out
  run = tmp_path / "run"
  assert_equal(run, straight, STEPS)
  assert numbers(run) == numbers(straight)
  left = {p.name for p in (run / "checkpoints").iterdir()}
  assert left == {str(s) for s in range(STEPS - 2, STEPS + 1)}


@of("many")
def test_a_flipped_bit(runs, program, tmp_path):
  """The newest checkpoint is damaged: it is named, the previous one used."""
  (straight,) = runs
  run = shutil.copytree(straight, tmp_path / "run")
  folder = run / "checkpoints" / str(STEPS)
  largest = max(
    (p for p in folder.rglob("*") if p.is_file()),
    key=lambda p: p.stat().st_size,
  )
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 1
  largest.write_bytes(content)
  ran = program.run(*TABLE["many"](tmp_path))
  assert ran.returncode == 0, ran.stderr
  assert f"checkpoint of step {STEPS} in" in ran.stderr
  assert str(largest.relative_to(folder)) in ran.stderr
  assert "has changed since it was written" in ran.stderr
  assert f"Continuing at step {STEPS - 1}." in ran.stdout
  assert_equal(run, straight, STEPS)
  assert numbers(run) == numbers(straight)
  damaged = run / "checkpoints" / "damaged" / str(STEPS)
  assert (damaged / largest.relative_to(folder)).read_bytes() == content


@of("many")
def test_asked_to_stop(runs, program, tmp_path):
  """SIGTERM, then Ctrl-C: each saves and exits with 0; then on to the end."""
  (straight,) = runs
  flags = [*TABLE["many"](tmp_path), "--config.checkpoint.every=1000"]
  begin = 0
  for number in (signal.SIGTERM, signal.SIGINT):
    with program.start(*flags) as process:
      when(process, f"{begin + 2}/{STEPS}")
      process.send_signal(number)
      out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err == ""
    step = Checkpoints(tmp_path / "run" / "checkpoints", keep=1).latest()
    assert begin + 2 <= step < STEPS
    assert f"Asked to stop: saving step {step}." in out
    assert "The same command continues it." in out
    begin = step
  out = program.done(*flags)
  assert f"Continuing at step {begin}." in out
  assert_equal(tmp_path / "run", straight, STEPS)
  training = [r for r in numbers(tmp_path / "run") if "vae/loss" in r]
  assert training == [r for r in numbers(straight) if "vae/loss" in r]

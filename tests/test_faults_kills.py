"""Fifty kills of one digits run, which must end as if never killed.

As in `test_faults`; takes some minutes.
"""

import collections
import random
import time

import pytest
from faults import BITS, assert_continues, complete, leftovers, watched

KILLS, STEPS, EVERY, LOOK = 50, 600, 5, 40
MAX_STEPS = 20  # maximum steps per launch until the kill
TIMEOUT = 8 * 60  # seconds, for all steps on a busy machine
FLAGS = (
  "--config=configs/digits.py",
  f"--config.steps={STEPS}",
  "--config.data.batch_size=16",
  "--config.log_every=1",
  f"--config.eval_every={LOOK}",
  "--config.eval_images=64",
  f"--config.checkpoint.every={EVERY}",
  "--config.checkpoint.keep_best=0",
)


@pytest.fixture(scope="module")
def straight(program, tmp_path_factory):
  """The undisturbed run."""
  folder = tmp_path_factory.mktemp("straight")
  with watched(program, *FLAGS, f"--workdir={folder}/run") as run:
    code, out, err = run.ended(TIMEOUT)
  assert (code, err) == (0, ""), (out, err)
  return folder / "run"


def kill_at_random(run, begin, rng, starts):
  """Kills a run at a random moment of its start, or of its steps."""
  if starts and rng.random() < 0.25:
    moment = run.began + rng.random() * min(starts)
    run.until(lambda: time.monotonic() > moment)
  else:
    run.at(begin + rng.randint(1, MAX_STEPS))
    starts.append(run.steps()[0][0] - run.began)
    # Then a fraction of the time that some steps and a save have taken.
    times = [when for when, _ in run.steps()[-EVERY - 1 :]]
    time.sleep(rng.random() * (times[-1] - times[0]))
  run.kill()


def interrupted(run, workdir):
  """Returns what the kill interrupted."""
  if not run.steps():
    return "start"
  if any("orbax" in name for name in leftovers(workdir)):
    return "save"
  last = run.steps()[-1][1]
  if last % LOOK == 0 and f"held out at {last}:" not in run.text()[0]:
    return "evaluation"
  return "step"


@pytest.mark.faults("kill -9 of a run of digits at random times")
def test_fifty_kills(program, straight, fault, tmp_path):
  """The next launch resumes from what was complete."""
  rng = random.Random(50)
  flags = (*FLAGS, f"--workdir={tmp_path}/run")
  workdir = tmp_path / "run"
  hits, lost, starts, newest = collections.Counter(), [], [], 0
  for _ in range(KILLS):
    with watched(program, *flags) as run:
      kill_at_random(run, newest, rng, starts)
      out, err = run.text()
    assert err == ""
    if "Devices" in out and run.steps():
      assert run.continued() == newest, out
    done = run.steps()[-1][1] if run.steps() else newest
    before, newest = newest, max(complete(workdir), default=0)
    assert newest >= before
    hits[interrupted(run, workdir)] += 1
    lost.append(max(done - newest, 0))
    # A save begins once the previous one is complete, and not later.
    assert lost[-1] <= 2 * EVERY
  assert 0 < newest < STEPS
  assert min(hits[k] for k in ("start", "save")) > 0, hits
  assert assert_continues(program, flags, straight, STEPS, TIMEOUT) == newest
  where = ", ".join(f"{n} during {k}" for k, n in sorted(hits.items()))
  fault.note(f"137 ({where})", lost, BITS, times=KILLS)

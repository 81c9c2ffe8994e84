"""Faults in one of two processes of a run, which is then resumed.

As in `test_faults`. The undisturbed run has two processes, and equals a
single-process run within the tolerances of `test_hosts`.
"""

import contextlib
import signal
import time

import numpy as np
import pytest
from faults import (
  BITS,
  EVERY,
  FLAGS,
  STEPS,
  assert_same_end,
  complete,
  leftovers,
  watched,
)
from program import numbers
from test_hosts import free_port
from test_resume import arrays

from gamix_jax.parallel import distributed

# Messages of the surviving process: it was in a step, or JAX noticed first.
WORDS = {
  distributed.LOST: "lost the others",
  -signal.SIGABRT: "Terminating process",
}


@contextlib.contextmanager
def two(program, workdir, fault=None, at=0, flags=FLAGS):
  """Starts both processes of a run, one of them with a fault."""
  address = f"--coordinator=localhost:{free_port()}"
  with contextlib.ExitStack() as stack:
    yield [
      stack.enter_context(
        watched(
          program,
          *flags,
          *(address, "--num_processes=2", f"--process_id={i}"),
          f"--workdir={workdir}",
          fault=fault if i == at else None,
        )
      )
      for i in range(2)
    ]


def assert_ends_well(both):
  for run in both:
    code, out, err = run.ended()
    assert (code, err) == (0, ""), (out, err)


@pytest.fixture(scope="module")
def straight(program, tmp_path_factory):
  """The undisturbed run, which equals that of one process."""
  folder = tmp_path_factory.mktemp("straight")
  with two(program, folder / "two") as both:
    assert_ends_well(both)
  program.done(*FLAGS, f"--workdir={folder}/one")
  ours, theirs = numbers(folder / "two"), numbers(folder / "one")
  for a, b in zip(ours, theirs, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      rtol = 2e-3 if "grad" in name else 2e-4
      np.testing.assert_allclose(
        a[name], b[name], rtol=rtol, atol=1e-4, err_msg=f"{a['step']} {name}"
      )
  ours, theirs = (arrays(folder / k, STEPS) for k in ("two", "one"))
  for name, x in ours.items():
    y = np.asarray(theirs[name], np.float64)
    off = np.max(np.abs(np.asarray(x, np.float64) - y), initial=0)
    assert off <= 2e-4 * np.max(np.abs(y), initial=0) + 1e-4, name
  return folder / "two"


def assert_two_continue(program, workdir, straight, at):
  """Resumes with two processes from this step on; checks the end."""
  with two(program, workdir) as both:
    assert_ends_well(both)
    assert both[0].continued() == at
    assert f"Done: step {STEPS} of {STEPS}" in both[0].text()[0]
  assert_same_end(workdir, straight, STEPS)


def survivor(run, since):
  """Returns how the surviving process ends: (code, seconds since)."""
  code, out, err = run.ended(2 * distributed.HEARTBEAT)
  seconds = time.monotonic() - since
  assert code in WORDS, (out, err)
  assert WORDS[code] in err
  return code, seconds


def describe(code, seconds):
  return f"{abs(code) if code > 0 else 128 - code} in {seconds:.0f} s"


@pytest.mark.faults("kill -9 of one of two processes, during a step")
@pytest.mark.parametrize("index", [0, 1])
def test_killed_in_a_step(program, straight, fault, tmp_path, index):
  workdir = tmp_path / "run"
  with two(program, workdir) as both:
    both[0].at(13)
    both[index].kill()
    code, seconds = survivor(both[1 - index], time.monotonic())
    done = both[0].steps()[-1][1]
  last = max(complete(workdir))
  print(code, seconds, done, last, both[1 - index].text())
  assert_two_continue(program, workdir, straight, last)
  fault.note(describe(code, seconds), done - last, BITS)


@pytest.mark.faults("kill -9 of one of two processes, during a save")
@pytest.mark.parametrize(
  ("index", "where"), [(0, "arrays"), (1, "arrays"), (0, "commit")]
)
def test_killed_in_a_save(program, straight, fault, tmp_path, index, where):
  """The third save: its partial files do not count, and are removed."""
  workdir = tmp_path / "run"
  with two(program, workdir, f"{where}:3", index) as both:
    assert both[index].ended()[0] == -signal.SIGKILL
    code, seconds = survivor(both[1 - index], time.monotonic())
    done = both[0].steps()[-1][1]
  print(code, seconds, done, leftovers(workdir), both[1 - index].text())
  assert complete(workdir) == [EVERY, 2 * EVERY]
  assert any(f"/{3 * EVERY}.orbax" in name for name in leftovers(workdir))
  assert_two_continue(program, workdir, straight, 2 * EVERY)
  fault.note(describe(code, seconds), done - 2 * EVERY, BITS)


@pytest.mark.faults("SIGTERM to one of two processes")
@pytest.mark.parametrize(
  ("when", "index"), [("start", 1), ("step", 0), ("step", 1)]
)
def test_asked_to_stop(program, straight, fault, tmp_path, index, when):
  """Both save the same step."""
  workdir = tmp_path / "run"
  with two(program, workdir) as both:
    if when == "start":
      both[0].line("Devices")
    else:
      both[0].at(13)
    both[index].process.send_signal(signal.SIGTERM)
    for run in both:  # JAX logs the signal, and how it was shared
      code, out, err = run.ended()
      assert code == 0, (out, err)
      assert "Traceback" not in err
      assert "gamix_jax: " not in err
    done = both[0].steps()[-1][1]
    assert f"Asked to stop: saving step {done}." in both[0].text()[0]
  assert max(complete(workdir)) == done < STEPS
  print(done)
  assert leftovers(workdir) == []
  assert_two_continue(program, workdir, straight, done)
  fault.note("0, both saved the same step", 0, BITS)


@pytest.mark.faults("one of two processes paused for 10 s (SIGSTOP)")
@pytest.mark.parametrize("index", [1])
def test_slow(program, straight, fault, tmp_path, index):
  """Shorter than the heartbeat limit: the other waits."""
  workdir = tmp_path / "run"
  with two(program, workdir) as both:
    both[0].at(13)
    both[index].process.send_signal(signal.SIGSTOP)
    time.sleep(10)
    both[index].process.send_signal(signal.SIGCONT)
    assert_ends_well(both)
  assert_same_end(workdir, straight, STEPS)
  fault.note("0", 0, BITS)


@pytest.mark.faults("one of two processes paused for longer than HEARTBEAT")
@pytest.mark.parametrize("index", [0, 1])
def test_too_slow(program, straight, fault, tmp_path, index):
  """It counts as dead: the other exits, and then it does, too."""
  workdir = tmp_path / "run"
  with two(program, workdir) as both:
    both[0].at(13)
    both[index].process.send_signal(signal.SIGSTOP)
    code, seconds = survivor(both[1 - index], time.monotonic())
    assert seconds > distributed.HEARTBEAT / 2
    both[index].process.send_signal(signal.SIGCONT)
    slow = survivor(both[index], time.monotonic())
    done = both[0].steps()[-1][1]
  last = max(complete(workdir))
  print(code, seconds, slow, done, last, leftovers(workdir))
  print(both[0].text(), both[1].text())
  assert_two_continue(program, workdir, straight, last)
  ended = f"{describe(code, seconds)}; itself {describe(*slow)} after resuming"
  fault.note(ended, done - last, BITS)

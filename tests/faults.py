"""Shared by the fault tests: a run that is watched while it runs.

All waiting is limited: a run that does not get as far as expected in time is
killed, and the test fails.
"""

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

from program import ROOT, SMALL, WARNINGS, numbers
from test_resume import assert_equal

from gamix_jax.files import PART

CHILD = Path(__file__).with_name("faults_child.py")
TIMEOUT = 120  # seconds, on a busy machine; a start takes six
STEP = re.compile(r"\s*(\d+)/\d+ ")
BITS = "bit for bit"
STEPS, EVERY = 40, 4
FLAGS = (
  *SMALL,
  f"--config.steps={STEPS}",
  f"--config.checkpoint.every={EVERY}",
  "--config.eval_every=20",
)


class Watched:
  """A running command and its output lines with their times.

  Attributes:
    process: the Popen.
    out: [(when, line)] of standard output.
    err: the same of standard error.
  """

  def __init__(self, argv, env, **kwargs):
    self.process = subprocess.Popen(
      argv,
      env=env,
      cwd=ROOT,
      text=True,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      **kwargs,
    )
    self.began = time.monotonic()
    self.out, self.err = [], []
    self._readers = [
      threading.Thread(target=self._read, args=pair, daemon=True)
      for pair in (
        (self.process.stdout, self.out),
        (self.process.stderr, self.err),
      )
    ]
    for reader in self._readers:
      reader.start()

  def _read(self, stream, lines):
    with stream:
      for line in stream:
        if not line.startswith("[Gloo]"):
          lines.append((time.monotonic(), line))

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.process.kill()
    self.process.wait()
    for reader in self._readers:
      reader.join(TIMEOUT)

  def text(self):
    """Returns (standard output, standard error) so far."""
    return tuple("".join(x for _, x in lines) for lines in (self.out, self.err))

  def until(self, happened, limit=TIMEOUT):
    """Waits until `happened()` is truthy and returns its value.

    Fails if the command ends before that, or at the limit.
    """
    end = time.monotonic() + limit
    while not (found := happened()):
      if self.process.poll() is not None:
        for reader in self._readers:
          reader.join(limit)
        if found := happened():  # with its last output
          return found
        raise AssertionError((self.process.returncode, *self.text()))
      assert time.monotonic() < end, self.text()
      time.sleep(0.002)
    return found

  def line(self, begins, limit=TIMEOUT):
    """Waits for the first line with this prefix: (when, line)."""

    def there():
      found = (x for x in list(self.out) if x[1].strip().startswith(begins))
      return next(found, None)

    return self.until(there, limit)

  def steps(self):
    """Returns the steps reported so far: [(when, step)]."""
    found = [(when, STEP.match(line)) for when, line in list(self.out)]
    return [(when, int(m[1])) for when, m in found if m]

  def at(self, step, limit=TIMEOUT):
    """Waits until it has reported a step."""
    self.until(lambda: any(n >= step for _, n in self.steps()), limit)

  def continued(self):
    """Returns the step that it resumed from; 0 for a new run."""
    found = re.search(r"Continuing at step (\d+)\.", self.text()[0])
    return int(found[1]) if found else 0

  def ended(self, limit=TIMEOUT):
    """Returns (exit code, stdout, stderr); kills it and fails at the limit."""
    try:
      self.process.wait(limit)
    except subprocess.TimeoutExpired:
      self.process.kill()
      raise AssertionError(("did not end", *self.text())) from None
    for reader in self._readers:
      reader.join(limit)
    return (self.process.returncode, *self.text())

  def kill(self):
    """Sends SIGKILL."""
    self.process.kill()
    self.ended()


def watched(program, *flags, fault=None, devices=1, **kwargs):
  """Starts `main`, or `main` with a fault of `faults_child`."""
  argv = program.argv(*flags)
  if fault is not None:
    warnings = [f"-W{w}" for w in WARNINGS]
    argv = [sys.executable, *warnings, str(CHILD), fault, *map(str, flags)]
  return Watched(argv, program.env(devices), **kwargs)


def complete(workdir):
  """Returns the steps with a complete checkpoint, judging by their names."""
  found = (workdir / "checkpoints").glob("[0-9]*")
  return sorted(int(p.name) for p in found if p.name.isdecimal())


def leftovers(workdir):
  """Returns temporary files that a resumed run must remove."""
  return sorted(
    str(p.relative_to(workdir))
    for p in workdir.rglob("*")
    if "tmp" in p.name or p.name.startswith(PART) or "probe" in p.name
  )


def assert_continues(program, flags, straight, steps, limit=TIMEOUT):
  """Resumes the run and checks its end against the undisturbed run.

  Returns:
    The step that it resumed from.
  """
  workdir = Path(flags[-1].removeprefix("--workdir="))
  with watched(program, *flags) as run:
    code, out, err = run.ended(limit)
  assert (code, err) == (0, ""), (out, err)
  assert f"Done: step {steps} of {steps}" in out
  assert_same_end(workdir, straight, steps)
  return run.continued()


def assert_same_end(workdir, straight, steps):
  """Asserts that all arrays and metrics are equal, and nothing else exists."""
  assert_equal(workdir, straight, steps)
  assert numbers(workdir) == numbers(straight)
  assert leftovers(workdir) == [], leftovers(workdir)


def twice(program, workdir, straight, offset):
  """Starts the same command twice, with a delay: (codes, errors)."""
  flags = (*FLAGS, f"--workdir={workdir}")
  with watched(program, *flags) as one:
    time.sleep(offset)
    with watched(program, *flags) as other:
      ends = [other.ended(), one.ended()]
  assert_same_end(workdir, straight, STEPS)
  assert numbers(workdir) == numbers(straight)
  return ends


def assert_one_won(ends):
  """Asserts that one succeeded, and the other was refused or came later."""
  codes = sorted(code for code, _, _ in ends)
  assert codes in ([0, 2], [0, 0]), ends
  for code, out, err in ends:
    if code == 2:
      assert "is in use: process" in err, err
      assert len(err.splitlines()) == 2, err
    else:
      assert f"Done: step {STEPS} of {STEPS}" in out
  return codes

"""What the tests of faults share: a run that is watched while it runs.

Nothing here waits without a limit: a run that does not get where it should in
time is killed, and the test fails.
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
LIMIT = 120  # seconds, on a machine that is busy; a start takes six
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
  """A command, its lines as they come, and when each came.

  Attributes:
    process: the Popen.
    out: [(when, line)] of standard output; `err` of the other.
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
      reader.join(LIMIT)

  def text(self):
    """(standard output, standard error) so far."""
    return tuple("".join(x for _, x in lines) for lines in (self.out, self.err))

  def until(self, happened, limit=LIMIT):
    """Waits for what `happened()` says is true; returns it.

    It fails when the command ends before, or at the limit.
    """
    end = time.monotonic() + limit
    while not (found := happened()):
      if self.process.poll() is not None:
        for reader in self._readers:
          reader.join(limit)
        if found := happened():  # with the last that it said
          return found
        raise AssertionError((self.process.returncode, *self.text()))
      assert time.monotonic() < end, self.text()
      time.sleep(0.002)
    return found

  def line(self, begins, limit=LIMIT):
    """The first line that begins so, when it is there: (when, line)."""

    def there():
      found = (x for x in list(self.out) if x[1].strip().startswith(begins))
      return next(found, None)

    return self.until(there, limit)

  def steps(self):
    """The steps it has reported: [(when, step)]."""
    found = [(when, STEP.match(line)) for when, line in list(self.out)]
    return [(when, int(m[1])) for when, m in found if m]

  def at(self, step, limit=LIMIT):
    """Waits until it has reported a step."""
    self.until(lambda: any(n >= step for _, n in self.steps()), limit)

  def continued(self):
    """The step that it went on from; 0: it began anew."""
    found = re.search(r"Continuing at step (\d+)\.", self.text()[0])
    return int(found[1]) if found else 0

  def ended(self, limit=LIMIT):
    """(exit code, stdout, stderr); killed, and failed, at the limit."""
    try:
      self.process.wait(limit)
    except subprocess.TimeoutExpired:
      self.process.kill()
      raise AssertionError(("did not end", *self.text())) from None
    for reader in self._readers:
      reader.join(limit)
    return (self.process.returncode, *self.text())

  def kill(self):
    """kill -9."""
    self.process.kill()
    self.ended()


def watched(program, *flags, fault=None, devices=1, **kwargs):
  """Starts `main`, or `main` with something of `faults_child` done to it."""
  argv = program.argv(*flags)
  if fault is not None:
    warnings = [f"-W{w}" for w in WARNINGS]
    argv = [sys.executable, *warnings, str(CHILD), fault, *map(str, flags)]
  return Watched(argv, program.env(devices), **kwargs)


def complete(workdir):
  """The steps with a complete checkpoint, as their names say."""
  found = (workdir / "checkpoints").glob("[0-9]*")
  return sorted(int(p.name) for p in found if p.name.isdecimal())


def leftovers(workdir):
  """What a killed run can leave and a continued one is to take away."""
  return sorted(
    str(p.relative_to(workdir))
    for p in workdir.rglob("*")
    if "tmp" in p.name or p.name.startswith(PART) or "probe" in p.name
  )


def assert_continues(program, flags, straight, steps, limit=LIMIT):
  """The same command brings it to the end of the run never disturbed.

  Returns:
    The step that it went on from.
  """
  workdir = Path(flags[-1].removeprefix("--workdir="))
  with watched(program, *flags) as run:
    code, out, err = run.ended(limit)
  assert (code, err) == (0, ""), (out, err)
  assert f"Done: step {steps} of {steps}" in out
  assert_same_end(workdir, straight, steps)
  return run.continued()


def assert_same_end(workdir, straight, steps):
  """Every array and every number on the way, and nothing besides."""
  assert_equal(workdir, straight, steps)
  assert numbers(workdir) == numbers(straight)
  assert leftovers(workdir) == [], leftovers(workdir)


def twice(program, workdir, straight, offset):
  """The same command, and again after some seconds: (codes, errors)."""
  flags = (*FLAGS, f"--workdir={workdir}")
  with watched(program, *flags) as one:
    time.sleep(offset)
    with watched(program, *flags) as other:
      ends = [other.ended(), one.ended()]
  assert_same_end(workdir, straight, STEPS)
  assert numbers(workdir) == numbers(straight)
  return ends


def assert_one_won(ends):
  """One ended well; the other was refused, or came when that was over."""
  codes = sorted(code for code, _, _ in ends)
  assert codes in ([0, 2], [0, 0]), ends
  for code, out, err in ends:
    if code == 2:
      assert "is in use: process" in err, err
      assert len(err.splitlines()) == 2, err
    else:
      assert f"Done: step {STEPS} of {STEPS}" in out
  return codes

"""Faults in a single-process run, which is then resumed.

`pytest -m faults` runs these and the multi-process ones; it prints each fault,
how often, and what was lost, and writes the table to FAULTS_TABLE=FILE.

Runs the real command. The reference is an undisturbed run: every bit of every
array, and every metric on the way.
"""

import contextlib
import errno
import os
import re
import resource
import shutil
import signal
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults import (
  BITS,
  EVERY,
  FLAGS,
  STEPS,
  assert_continues,
  assert_one_won,
  assert_same_end,
  complete,
  leftovers,
  twice,
  watched,
)
from program import ROOT, SMALL, files, hundred, numbers, rows
from test_resume import arrays

from gamix_jax.checkpoint import Checkpoints, integrity
from gamix_jax.errors import UserError
from gamix_jax.parallel import distributed
from gamix_jax.step import finite

KEEP = "--config.checkpoint.keep=99"
TESTS = ROOT / "tests"


def command(folder, *flags):
  """Returns a run's command; the workdir is its last word."""
  return (*FLAGS, *flags, f"--workdir={folder}/run")


@pytest.fixture(scope="module")
def straight(program, tmp_path_factory):
  """The undisturbed run, with all its checkpoints."""
  folder = tmp_path_factory.mktemp("straight")
  program.done(*command(folder, KEEP))
  return folder / "run"


def wait_for_save(run, workdir):
  """Waits for the first complete checkpoint."""
  run.until(lambda: complete(workdir))


def assert_stopped(run, *words):
  """Asserts a user error (2, two lines); returns the step it had reached."""
  code, out, err = run.ended()
  assert code == 2, (out, err)
  lines = err.rstrip("\n").split("\n")
  assert len(lines) <= 2, err
  assert lines[0].startswith("gamix_jax: "), err
  for word in words:
    assert word in err
  return run.steps()[-1][1]


def assert_complete(workdir):
  """Returns the newest step; all are complete and no partial one remains."""
  assert leftovers(workdir) == []
  steps = complete(workdir)
  for done in steps:
    assert integrity.verify(workdir / "checkpoints" / str(done)) is None
  return max(steps)


# ------------------------------------------------------------ the disk


@contextlib.contextmanager
def disk(at, size):
  """Mounts a small disk at a folder."""
  at.mkdir(parents=True)
  mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", at]
  if subprocess.run(mount, check=False, capture_output=True).returncode:
    pytest.skip("a disk cannot be mounted here")
  try:
    yield
  finally:
    subprocess.run(["umount", "-l", at], check=True)


def fill(path, leave):
  """Writes a file until the disk has at most so many bytes free."""
  with path.open("wb", buffering=0) as file:
    while True:
      at = os.statvfs(path)
      free = at.f_bavail * at.f_frsize - leave
      if free <= 0:
        return
      file.write(bytes(min(free, 1 << 16)))


@pytest.mark.faults("a full disk during a save")
def test_full_disk(program, straight, fault, tmp_path):
  """While it trains; later there is space again."""
  workdir = tmp_path / "run"
  flags = command(tmp_path, KEEP)
  with disk(workdir, "16m"):
    with watched(program, *flags) as run:
      wait_for_save(run, workdir)
      fill(workdir / "filler", 48 << 10)
      # Of the checkpoint, or of the metrics if they were written first.
      done = assert_stopped(
        run, "No space left on device while", "the same command continues"
      )
    last = assert_complete(workdir)
    (workdir / "filler").unlink()
    assert assert_continues(program, flags, straight, STEPS) == last
  fault.note("2, message of two lines", done - last, BITS)


@pytest.mark.faults("a file size limit (quota) during a save")
def test_file_too_large(program, straight, fault, tmp_path):
  """The limit is below a checkpoint's largest file, above the first logs' size.

  So it is set before the first save, while the logs are small.
  """
  checkpoint = straight / "checkpoints" / str(EVERY)
  sizes = [p.stat().st_size for p in checkpoint.rglob("*") if p.is_file()]
  flags = command(tmp_path, KEEP)
  with watched(program, *flags) as run:
    run.at(1)
    hard = resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE)[1]
    limit = (max(sizes) - 1, hard)
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, limit)
    done = assert_stopped(
      run, "File too large while saving the checkpoint", "continues"
    )
  # None is complete, unless the first save was faster than the limit.
  last = max(complete(tmp_path / "run"), default=0)
  assert leftovers(tmp_path / "run") == []
  assert assert_continues(program, flags, straight, STEPS) == last
  fault.note("2, message of two lines", done - last, BITS)


@contextlib.contextmanager
def read_only(folder):
  """Root ignores permissions, but not a read-only mount."""
  if os.geteuid():
    folder.chmod(0o555)
    try:
      yield "Permission denied"
    finally:
      folder.chmod(0o755)
    return
  bind = ["mount", "--bind", folder, folder]
  if subprocess.run(bind, check=False, capture_output=True).returncode:
    pytest.skip("nothing can be mounted here")
  try:
    again = ["mount", "-o", "remount,ro,bind", folder]
    for _ in range(1000):  # refused while a file there is being written
      if not subprocess.run(again, check=False, capture_output=True).returncode:
        break
    else:
      raise AssertionError(f"{folder} cannot be made read-only")
    yield "Read-only file system"
  finally:
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.faults("the checkpoints' folder made read-only during training")
def test_read_only(program, straight, fault, tmp_path):
  flags = command(tmp_path, KEEP)
  folder = tmp_path / "run" / "checkpoints"
  with watched(program, *flags) as run:
    wait_for_save(run, tmp_path / "run")
    with read_only(folder) as reason:
      done = assert_stopped(
        run, f"{reason} while saving the checkpoint of step", "continues"
      )
      last = max(complete(tmp_path / "run"))
  assert assert_continues(program, flags, straight, STEPS) == last
  fault.note("2, message of two lines", done - last, BITS)


# ------------------------------------------------------------ files


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def truncate(path):
  path.write_bytes(path.read_bytes()[:-1])


DAMAGES = {"changed": flip, "truncated": truncate, "missing": os.unlink}


def damaged(workdir, step, damage):
  """Damages a step's largest array file; returns its name."""
  folder = workdir / "checkpoints" / str(step)
  found = folder.rglob("d/*")
  path = max(found, key=lambda p: (p.stat().st_size, p))
  DAMAGES[damage](path)
  return str(path.relative_to(folder))


@pytest.mark.faults("an array file with a flipped bit, truncated or deleted")
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage(program, straight, fault, tmp_path, damage):
  """Damage to the newest checkpoint is named, and the previous one is used."""
  run = shutil.copytree(straight, tmp_path / "run")
  name = damaged(run, STEPS, damage)
  with watched(program, *command(tmp_path, KEEP)) as again:
    code, _, err = again.ended()
  assert code == 0, err
  assert f"checkpoint of step {STEPS} in" in err
  assert name in err
  assert "Moved the damaged checkpoint" in err
  assert again.continued() == STEPS - EVERY
  assert_same_end(run, straight, STEPS)
  fault.note("0, message names the file", EVERY, BITS)


@pytest.mark.faults("an array file damaged in every checkpoint")
def test_damage_to_all(program, straight, fault, tmp_path):
  """Refused and left unchanged; a good copy put back is resumed from."""
  run = shutil.copytree(straight, tmp_path / "run")
  for i, step in enumerate(complete(run)):
    damaged(run, step, list(DAMAGES)[i % len(DAMAGES)])
  before = {
    p: p.read_bytes() for p in (run / "checkpoints").rglob("*") if p.is_file()
  }
  flags = command(tmp_path, KEEP)
  with watched(program, *flags) as again:
    code, out, err = again.ended()
  assert code == 2, (out, err)
  assert "Traceback" not in err
  *named, last, advice = err.rstrip("\n").split("\n")
  assert len(named) == STEPS // EVERY
  assert "Every checkpoint in" in last
  assert "or start a new run in another workdir" in advice
  for path, content in before.items():
    assert path.read_bytes() == content
  assert numbers(run) == numbers(straight)
  good = STEPS - 2 * EVERY
  target = run / "checkpoints" / str(good)
  shutil.rmtree(target)
  shutil.copytree(straight / "checkpoints" / str(good), target)
  with watched(program, *flags) as again:
    code, _, err = again.ended()
  assert code == 0, err
  assert again.continued() == good
  assert_same_end(run, straight, STEPS)
  fault.note("2, message names each checkpoint", STEPS - good, BITS)


@pytest.mark.faults("an image file deleted during training")
def test_deleted_image(program, fault, tmp_path):
  """The file is named; once restored, the run continues."""
  hundred(tmp_path / "images", broken=0)
  flags = (*files(tmp_path)[:-1], *FLAGS[len(SMALL) :], KEEP)
  program.done(*flags, f"--workdir={tmp_path}/straight")
  path = tmp_path / "images" / "042.jpg"
  with watched(program, *flags, f"--workdir={tmp_path}/run") as run:
    wait_for_save(run, tmp_path / "run")
    path.rename(tmp_path / "away.jpg")
    done = assert_stopped(run, f"Cannot read {path}", "Put it back")
  last = assert_complete(tmp_path / "run")
  (tmp_path / "away.jpg").rename(path)
  flags = (*flags, f"--workdir={tmp_path}/run")
  went_on = assert_continues(program, flags, tmp_path / "straight", STEPS)
  assert went_on == last
  fault.note("2, message names the file", done - last, BITS)


# ------------------------------------------------------------ signals


@pytest.mark.faults("SIGTERM during evaluation")
def test_asked_to_stop_in_an_evaluation(program, straight, fault, tmp_path):
  flags = command(tmp_path, KEEP)
  with watched(program, *flags, fault="looking:1") as run:
    code, out, err = run.ended()
  assert (code, err) == (0, ""), (out, err)
  done = run.steps()[-1][1]
  assert f"Asked to stop: saving step {done}." in out
  assert done == 21  # the first validation is at step 20
  assert assert_complete(tmp_path / "run") == done
  assert assert_continues(program, flags, straight, STEPS) == done
  fault.note("0, saved", 0, BITS)


@pytest.mark.faults("SIGTERM during compilation")
def test_asked_to_stop_while_compiling(program, straight, fault, tmp_path):
  flags = command(tmp_path, KEEP)
  with watched(program, *flags, fault="compiling") as run:
    code, out, err = run.ended()
  assert (code, err) == (0, ""), (out, err)
  assert "Asked to stop: saving step 1." in out
  assert assert_complete(tmp_path / "run") == 1
  assert assert_continues(program, flags, straight, STEPS) == 1
  fault.note("0, saved", 0, BITS)


@pytest.mark.faults("SIGTERM during startup")
def test_asked_to_stop_in_its_start(program, straight, fault, tmp_path):
  """There is nothing to save yet, and the signal may kill it."""
  flags = command(tmp_path, KEEP)
  with watched(program, *flags) as run:
    run.line("Devices")
    run.process.send_signal(signal.SIGTERM)
    code, out, err = run.ended()
  assert code in (0, -signal.SIGTERM), (out, err)
  assert err == ""
  assert leftovers(tmp_path / "run") == []
  saved = complete(tmp_path / "run")
  assert saved == ([1] if code == 0 else [])
  went_on = assert_continues(program, flags, straight, STEPS)
  assert went_on == max(saved, default=0)
  fault.note(str(code if code == 0 else 128 - code), 0, BITS)


# ------------------------------------------------------------ numbers


def skips(workdir):
  """Returns {step: updates skipped until then, and in a row}."""
  return {
    r["step"]: (r["nonfinite/total"], r["nonfinite/consecutive"])
    for r in rows(workdir)
    if "nonfinite/total" in r
  }


def floats(workdir, step):
  found = arrays(workdir, step)
  return {n: x for n, x in found.items() if np.asarray(x).dtype == np.float32}


@pytest.mark.faults("a NaN in one pixel of two float batches")
def test_nan_in_a_batch(program, straight, fault, tmp_path):
  """Two updates are skipped, without other effects.

  The checkpoint before them equals the undisturbed run's, and a run resumed
  from there reaches the same end.
  """
  flags = command(tmp_path, KEEP)
  workdir = tmp_path / "run"
  with watched(program, *flags, fault="batch:14:15") as run:
    code, out, err = run.ended()
  assert (code, err) == (0, ""), (out, err)
  assert "1 updates skipped, not finite." in out
  seen = skips(workdir)
  assert [seen[t] for t in (13, 14, 15, 16, STEPS)] == [
    (0, 0),
    (1, 1),
    (2, 2),
    (2, 0),
    (2, 0),
  ]
  for name, value in floats(workdir, STEPS).items():
    assert np.all(np.isfinite(value)), name
  counts = [
    int(x) for n, x in arrays(workdir, STEPS).items() if n.endswith("count")
  ]
  assert counts
  assert set(counts) == {STEPS - 2}
  for step in complete(workdir):
    if step > 12:
      shutil.rmtree(workdir / "checkpoints" / str(step))
  assert assert_continues(program, flags, straight, STEPS) == 12
  same = "two updates fewer; bit for bit from the checkpoint before them"
  fault.note("0, both updates skipped and counted", 0, same)


POISONED = 22


def poison(program, workdir, *flags, **kwargs):
  flags = (*FLAGS, KEEP, *flags, f"--workdir={workdir}")
  return watched(program, *flags, fault=f"weights:{POISONED}", **kwargs)


@pytest.mark.faults("a NaN in a weight")
def test_nan_in_a_weight(program, straight, fault, tmp_path):
  """Some skips, then it stops; the last checkpoint is from before."""
  workdir = tmp_path / "run"
  with poison(program, workdir, "--config.guard.max_nonfinite=5") as run:
    done = assert_stopped(run, "not finite in the 5 steps", "is kept")
  assert [skips(workdir).get(t) for t in range(21, 26)] == [
    (i, i) for i in range(5)
  ]
  last = assert_complete(workdir)
  assert last == 20
  assert_continues(program, command(tmp_path, KEEP), straight, STEPS)
  fault.note(
    "2 after 5 skipped updates, message of two lines", done - last, BITS
  )


@pytest.mark.faults("a NaN in a weight, then SIGTERM")
def test_nan_in_a_weight_then_asked_to_stop(program, straight, fault, tmp_path):
  """A state that cannot be resumed from is not saved."""
  workdir = tmp_path / "run"
  with poison(program, workdir) as run:
    run.at(POISONED)
    run.process.send_signal(signal.SIGTERM)
    done = assert_stopped(run, "weights are not finite", "continues")
  last = assert_complete(workdir)
  assert last == 20
  assert_continues(program, command(tmp_path, KEEP), straight, STEPS)
  fault.note("2, message of two lines", done - last, BITS)


@pytest.mark.faults("a NaN in a weight, shortly before the end")
def test_nan_in_a_weight_at_the_end(program, straight, fault, tmp_path):
  """The run is not reported as finished."""
  workdir = tmp_path / "run"
  with poison(program, workdir, "--config.steps=24") as run:
    done = assert_stopped(run, "weights are not finite", "continues")
  assert done == 24
  last = assert_complete(workdir)
  assert last == 20
  assert_continues(program, command(tmp_path, KEEP), straight, STEPS)
  fault.note("2, message of two lines", done - last, BITS)


# ------------------------------------------------------------ at no cost


@pytest.mark.parametrize(
  ("number", "logged"), [(errno.ENOSPC, False), (errno.EROFS, True)]
)
def test_a_full_disk_is_reported_once(
  tmp_path, monkeypatch, caplog, number, logged
):
  """A failed save is logged only if something else ended the run."""

  def full(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(integrity, "write_checksums", full)
  store = Checkpoints(tmp_path / "checkpoints", keep=1)
  with pytest.raises(UserError, match="numbers"), store:
    store.save(1, {"x": jnp.zeros(2)})
    try:
      raise OSError(number, os.strerror(number))
    except OSError as e:
      raise UserError("The numbers cannot be written.") from e
  assert ("saving the checkpoint of step 1" in caplog.text) == logged


def test_who_lost_the_others_waits_for_no_save(tmp_path, monkeypatch):
  store = Checkpoints(tmp_path, keep=1)
  waited = []
  monkeypatch.setattr(store, "wait", lambda: waited.append(1))
  for several in (True, False):
    monkeypatch.setattr(
      distributed, "is_multiprocess", lambda several=several: several
    )
    with pytest.raises(jax.errors.JaxRuntimeError), store:
      raise jax.errors.JaxRuntimeError("Gloo: connection closed by peer")
    assert waited == [1] * (not several)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.0])
def test_finite(value):
  state = {"step": jnp.int32(3), "w": jnp.zeros(3).at[1].set(value)}
  assert bool(finite(state)) == np.isfinite(value)


@pytest.mark.faults("the same command started twice in one workdir")
def test_two_starts_at_ten_offsets(program, straight, fault, tmp_path):
  """The owner of the workdir ends as if alone; the other changes nothing."""
  offsets = [0.0, 0.3, 0.7, 1.1, 1.6, 2.1, 2.7, 3.4, 4.2, 5.0]
  codes = [
    assert_one_won(twice(program, tmp_path / f"run{i}", straight, offset))
    for i, offset in enumerate(offsets)
  ]
  refused = codes.count([0, 2])
  assert refused > 0
  fault.note(
    "0; the second start 2, message of two lines", 0, BITS, times=refused
  )


# --------------------------------------------------- docs/faults.md


def test_document_has_every_fault():
  """The table is the output of `pytest -m faults`, so every row must exist."""
  table = (ROOT / "docs" / "faults.md").read_text()
  marked = re.findall(
    r'mark\.faults\(\s*"(.*?)"\s*\)',
    "".join(p.read_text() for p in sorted(TESTS.glob("test_faults*.py"))),
  )
  assert len(marked) > 15
  for what in marked:
    assert f"\n| {what} | " in table, what

"""A folder has one owner: in a process, between processes, for whole runs."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from faults import FLAGS, assert_one_won, twice, watched
from program import assert_refused

from gamix_jax import files
from gamix_jax.errors import UserError
from gamix_jax.files import Lock

HOLDER = """
import sys, time
from pathlib import Path
from gamix_jax.files import Lock
Lock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(60)
"""


def all_files(folder):
  """Returns every file: its bytes and its modification time."""
  return {
    p: (p.read_bytes(), p.stat().st_mtime_ns)
    for p in sorted(folder.rglob("*"))
    if p.is_file()
  }


def test_the_second_is_refused_and_touches_nothing(tmp_path):
  with Lock(tmp_path) as first:
    first.acquire()
    first.acquire()  # already its own
    before = all_files(tmp_path)
    for attempt in (Lock(tmp_path).acquire, Lock(tmp_path).check):
      with pytest.raises(UserError) as error:
        attempt()
      for words in (
        str(tmp_path),
        f"process {os.getpid()} on {socket.gethostname()}",
        f"kill {os.getpid()}",
        "--workdir",
      ):
        assert words in str(error.value)
    assert all_files(tmp_path) == before
  with Lock(tmp_path) as second:
    second.check()
    second.acquire()
  assert [p.name for p in tmp_path.iterdir()] == [files.LOCK_FILE]


def test_looking_makes_no_file(tmp_path):
  Lock(tmp_path).check()
  Lock(tmp_path / "none").check()
  assert list(tmp_path.iterdir()) == []


def test_the_system_frees_it_when_its_holder_is_killed(tmp_path):
  holder = subprocess.Popen(
    [sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True
  )
  with holder:
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"process {holder.pid} on"):
      Lock(tmp_path).acquire()
    holder.send_signal(signal.SIGKILL)
  with Lock(tmp_path) as mine:
    mine.acquire()
    assert (
      json.loads((tmp_path / files.LOCK_FILE).read_text())["pid"] == os.getpid()
    )


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_without_locks_that_is_said(tmp_path, monkeypatch, caplog, number):
  def refuse(file, how):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(fcntl, "flock", refuse)
  with Lock(tmp_path) as mine:
    mine.acquire()
  assert "cannot be locked" in caplog.text
  assert os.strerror(number) in caplog.text


def test_a_crashed_other_host_is_named(tmp_path, caplog):
  """As on a file system where locks are visible to their own host only."""
  held = {"pid": 7, "host": "another", "since": "yesterday"}
  (tmp_path / files.LOCK_FILE).write_text(json.dumps(held))
  with Lock(tmp_path) as mine:
    mine.acquire()
  assert "process 7 on another" in caplog.text
  assert "does not share locks" in caplog.text
  caplog.clear()
  with Lock(tmp_path) as mine:  # released properly
    mine.acquire()
  assert caplog.text == ""


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"[]", b"{", b"7 a host"])
def test_a_damaged_note_of_the_holder_says_less(tmp_path, text):
  with Lock(tmp_path) as first:
    first.acquire()
    (tmp_path / files.LOCK_FILE).write_bytes(text)
    with pytest.raises(UserError, match="in use"):
      Lock(tmp_path).acquire()


# -------------------------------------------------------------- trainings


@pytest.fixture(scope="module")
def straight(program, tmp_path_factory):
  """An undisturbed run."""
  folder = tmp_path_factory.mktemp("straight")
  program.done(*FLAGS, f"--workdir={folder}")
  return folder


@pytest.mark.parametrize("offset", [0.0, 2.0])
def test_two_starts_in_one_workdir(program, straight, tmp_path, offset):
  """The owner of the workdir ends as if alone, bit for bit."""
  ends = twice(program, tmp_path / "run", straight, offset)
  assert_one_won(ends)


def test_an_active_run_refuses_another(program, tmp_path):
  """At once, before it reads data, and without changing a file."""
  flags = (*FLAGS, "--config.steps=100000", f"--workdir={tmp_path}/run")
  with watched(program, *flags) as run:
    run.at(4)
    os.kill(run.process.pid, signal.SIGSTOP)  # stop it from writing meanwhile
    before = all_files(tmp_path)
    ran = program.run(*flags, "--config.data.source=folder:/nowhere")
    assert_refused(ran, f"process {run.process.pid} on", "give another")
    assert all_files(tmp_path) == before
    os.kill(run.process.pid, signal.SIGCONT)
    run.process.send_signal(signal.SIGTERM)
    code, out, err = run.ended()
  assert (code, err) == (0, ""), (out, err)

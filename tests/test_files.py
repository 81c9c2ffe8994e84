"""Atomic writes: complete or not at all. Locks are in test_lock.py."""

import os
import subprocess
import sys
import threading

import pytest

from gamix_jax import files

HOLDER = """
import sys
from pathlib import Path
from gamix_jax import files
with files.exclusive(Path(sys.argv[1])):
  print("held", flush=True)
  sys.stdin.read()
"""


def names(folder):
  return sorted(p.name for p in folder.iterdir())


def write_file(path):
  path.write_text("new")


def write_folder(path):
  path.mkdir()
  (path / "a").write_text("new")


def test_a_file_replaces_a_file(tmp_path):
  path = tmp_path / "a.txt"
  path.write_text("old")
  with files.atomic(path) as temporary:
    assert temporary.parent == path.parent
    assert temporary.suffix == path.suffix
    write_file(temporary)
    assert path.read_text() == "old"
  assert path.read_text() == "new"
  assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("empty", [False, True])
def test_a_folder_takes_a_free_path(tmp_path, empty):
  path = tmp_path / "a"
  if empty:
    path.mkdir()
  with files.atomic(path) as temporary:
    write_folder(temporary)
  assert (path / "a").read_text() == "new"
  assert names(tmp_path) == ["a"]


def test_a_folder_never_replaces_files(tmp_path):
  path = tmp_path / "a"
  write_folder(path)
  (path / "a").write_text("old")
  with pytest.raises(OSError, match="not empty"), files.atomic(path) as part:
    write_folder(part)
  assert (path / "a").read_text() == "old"
  assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("write", [write_file, write_folder])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_nothing(tmp_path, write, error):
  with pytest.raises(error), files.atomic(tmp_path / "a") as temporary:
    write(temporary)
    raise error
  assert names(tmp_path) == []


def test_what_a_killed_process_left_does_not_stop_the_next(tmp_path):
  with files.atomic(tmp_path / "a") as temporary:
    left = temporary
    write_folder(temporary)
  (tmp_path / "a").rename(left)  # as if killed before the rename
  with files.atomic(tmp_path / "a") as temporary:
    assert temporary == left
    write_folder(temporary)
  assert names(tmp_path) == ["a"]


def test_delete_parts(tmp_path):
  write_file(tmp_path / f"{files.PART}1-a.txt")
  write_folder(tmp_path / f"{files.PART}2-a")
  write_file(tmp_path / "a.txt")
  files.delete_parts(tmp_path)
  assert names(tmp_path) == ["a.txt"]
  files.delete_parts(tmp_path / "missing")


def test_exclusive_waits_for_the_holder(tmp_path):
  path, order = tmp_path / "lock", []
  holder = subprocess.Popen(
    [sys.executable, "-c", HOLDER, path],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )

  def take():
    with files.exclusive(path):
      order.append("second")

  with holder:
    assert holder.stdout.readline() == "held\n"
    second = threading.Thread(target=take)
    second.start()
    second.join(0.3)
    assert second.is_alive()
    order.append("first")
    holder.kill()  # the system releases a dead process's lock
    second.join(20)
  assert order == ["first", "second"]
  assert os.listdir(tmp_path) == ["lock"]

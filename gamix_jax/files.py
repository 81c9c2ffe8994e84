"""Atomic writes and file locks.

atomic, write_text, write_bytes   a file or folder, complete or not at all
writing                           an OSError as a message for the user
exclusive                         a lock file that others wait for
Lock                              a folder's owner; others are refused

All locks are the operating system's (`flock`). It frees them when their holder
ends, however it ends, so lock files are never deleted.
"""

import contextlib
import errno
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from gamix_jax.errors import UserError

LOCK_FILE = ".lock"
PART = ".part-"  # how the names of incomplete files and folders begin
_HELD = (errno.EAGAIN, errno.EACCES)
# The file system has no locks, or its lock service does not answer.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.EIO)
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
  """Yields a temporary path that becomes `path` when the block ends.

      with atomic(path) as temporary:
        temporary.write_bytes(data)

  The block makes a file or a folder of the temporary path. A file replaces the
  one at `path`; a folder needs that path to be free, or an empty folder. If the
  block raises, the temporary path is deleted and `path` stays as it was.

  The temporary path is in the same folder. Its name has the process id, since
  two commands may write the same file at a time, and the suffix of `path`,
  since some writers choose the format by it.

  Raises:
    OSError: `path` cannot be replaced.
  """
  temporary = path.with_name(f"{PART}{os.getpid()}-{path.name}")
  # A killed process with the same id may have left a folder.
  shutil.rmtree(temporary, ignore_errors=True)
  try:
    yield temporary
    if temporary.is_dir() and path.is_dir():
      path.rmdir()  # Windows does not rename over an empty folder
    temporary.replace(path)
  finally:
    _delete(temporary)


def _delete(path: Path) -> None:
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)


def delete_parts(folder: Path) -> None:
  """Deletes the incomplete files that killed processes left in a folder.

  Only for the holder of the folder's `Lock`: it does not ask whether a process
  still writes one.

  Raises:
    OSError: one cannot be deleted.
  """
  for path in folder.glob(f"{PART}*"):
    _delete(path)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
  """Around code that writes `path`.

  Raises:
    UserError: in place of an OSError; it names the path.
  """
  try:
    yield
  except OSError as e:
    raise UserError(
      f"{e.strerror or e} while writing {path}; what was complete before is "
      "kept.\nFix that, and the same command continues the run."
    ) from e


def write_text(path: Path, text: str) -> None:
  """Writes a file as UTF-8, complete or not at all.

  Raises:
    UserError: it cannot be written.
  """
  write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, data: bytes) -> None:
  """Writes a file, complete or not at all.

  Raises:
    UserError: it cannot be written.
  """
  with writing(path), atomic(path) as temporary:
    temporary.write_bytes(data)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
  """Holds a lock file; other processes of this host wait for it.

  Windows has no `flock`. There nothing is locked, so callers must stay correct
  when two processes do the same work.

  Args:
    path: the lock file; created if missing.

  Raises:
    OSError: it cannot be created or locked.
  """
  with path.open("w") as file:
    with contextlib.suppress(ImportError):
      _flock(file.fileno(), wait=True)
    yield


def _flock(file: int, *, shared: bool = False, wait: bool = False) -> None:
  """Locks an open file.

  Raises:
    ImportError: this system has no `flock`.
    OSError: another process holds the lock and `wait` is False, or the file
      system has no locks.
  """
  import fcntl  # noqa: PLC0415

  how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
  fcntl.flock(file, how if wait else how | fcntl.LOCK_NB)


class Lock:
  """The right to write to a folder, from `acquire` to `release`.

  The lock is on the file `.lock` in the folder, which names the holder. On a
  shared file system such as NFS it counts between hosts. Where locks do not
  work, a warning says so and the folder is not locked.
  """

  def __init__(self, folder: Path) -> None:
    """Does not touch the folder yet."""
    self._folder, self._path = folder, folder / LOCK_FILE
    self._file: int | None = None

  def check(self) -> None:
    """Checks that no other process holds the lock; writes nothing.

    Raises:
      UserError: another process holds it; the message names it.
    """
    if self._file is not None or not self._path.is_file():
      return
    try:
      file = os.open(self._path, os.O_RDWR)
    except OSError:
      return  # `acquire` reports what is wrong with the folder
    try:
      self._try_lock(file, shared=True)  # closing the file unlocks it
    finally:
      os.close(file)

  def acquire(self) -> None:
    """Takes the lock, or leaves everything as it was.

    Raises:
      UserError: another process holds it; the message names it.
      OSError: the folder cannot be written to.
    """
    if self._file is not None:
      return
    # Not truncated: until it is locked, its text is the other holder's.
    file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
      if self._try_lock(file):
        self._warn_if_unreleased(_read_holder(file))
        _write_holder(file, _this_process())
    except BaseException:
      os.close(file)
      raise
    self._file = file

  def release(self) -> None:
    """Gives the lock back, if it is held."""
    if self._file is not None:
      _write_holder(self._file, {})
      os.close(self._file)
      self._file = None

  def __enter__(self) -> Self:
    """Does not acquire: the caller decides when."""
    return self

  def __exit__(self, *exc: object) -> None:
    """Releases."""
    self.release()

  def _try_lock(self, file: int, *, shared: bool = False) -> bool:
    """Whether the file is locked now; False where there are no locks.

    Raises:
      UserError: another process holds it.
    """
    try:
      _flock(file, shared=shared)
    except ImportError:
      self._warn_without_lock("this system has no file locks")
      return False
    except OSError as e:
      if e.errno in _HELD:
        raise UserError(_in_use(self._folder, file)) from e
      if e.errno not in _NO_LOCKS:
        raise
      self._warn_without_lock(f"its file system has no locks ({e.strerror})")
      return False
    return True

  def _warn_without_lock(self, why: str) -> None:
    _log.warning(
      "%s cannot be locked: %s. Do not start a second training in it while "
      "this one runs.",
      self._folder,
      why,
    )

  def _warn_if_unreleased(self, before: dict) -> None:
    """Another host's process was killed, or its lock is not visible here."""
    host = before.get("host")
    if host and host != socket.gethostname():
      _log.warning(
        "%s was last written by process %s on %s, which did not exit normally. "
        "If it still runs, this file system does not share locks between "
        "hosts: stop one of the two.",
        self._folder,
        before.get("pid"),
        host,
      )


def _this_process() -> dict:
  return {
    "pid": os.getpid(),
    "host": socket.gethostname(),
    "since": time.strftime("%Y-%m-%d %H:%M:%S"),
  }


def _read_holder(file: int) -> dict:
  """What the last holder wrote; {} after a release, or if it is damaged."""
  try:
    found = json.loads(os.pread(file, 1 << 16, 0))
  except ValueError:  # empty, not JSON, not UTF-8
    return {}
  return found if isinstance(found, dict) else {}


def _write_holder(file: int, holder: dict) -> None:
  text = (json.dumps(holder) + "\n").encode()
  os.ftruncate(file, 0)
  os.pwrite(file, text, 0)


def _in_use(folder: Path, file: int) -> str:
  """The message for a folder that another process has locked."""
  deadline = time.monotonic() + 2.0
  while not (holder := _read_holder(file)) and time.monotonic() < deadline:
    time.sleep(0.05)  # the holder locks first and then writes its name
  if not holder:
    return (
      f"{folder} is in use by another process. Wait for it to end, or give "
      "another folder."
    )
  pid, host, since = (holder.get(k) for k in ("pid", "host", "since"))
  return (
    f"{folder} is in use: process {pid} on {host} has been training there "
    f"since {since}.\nWait for it to end, stop it (on {host}: kill {pid}), or "
    "give another --workdir."
  )

"""One owner for a folder: a second training in it is refused, not mixed in.

The lock is the operating system's (`flock`) on the file `.lock`, which is never
deleted. The system frees it when its holder ends, however it ends, so there
is nothing to clear away by hand. On a shared file system (NFS, for example) it
counts between hosts. Where locks do not work, or may not, that is said.
"""

import errno
import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import Self

from gamix_jax.errors import UserError

NAME = ".lock"
_HELD = (errno.EAGAIN, errno.EACCES)
# Locks that the file system does not have, or whose service does not answer.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.EIO)
_log = logging.getLogger(__name__)


class Lock:
  """The right to write in a folder, from `acquire` to `release`."""

  def __init__(self, folder: Path) -> None:
    """Changes nothing yet."""
    self._folder, self._path = folder, folder / NAME
    self._file: int | None = None

  def check(self) -> None:
    """Looks whether another process holds it; writes nothing.

    Raises:
      UserError: one does; the message names it.
    """
    if self._file is not None or not self._path.is_file():
      return
    try:
      file = os.open(self._path, os.O_RDWR)
    except OSError:
      return  # `acquire` will say what is wrong with the folder
    try:
      self._lock(file, shared=True)  # closing gives it back
    finally:
      os.close(file)

  def acquire(self) -> None:
    """Takes it, or leaves everything as it was.

    Raises:
      UserError: another process holds it; the message names it.
      OSError: the folder cannot be written to.
    """
    if self._file is not None:
      return
    # Not truncated: until it is locked, what it says is another's.
    file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
      locked = self._lock(file)
      if locked:
        self._tell_unreleased(_read(file))
        _write(file, _self())
    except BaseException:
      os.close(file)
      raise
    self._file = file

  def release(self) -> None:
    """Gives it back, if it is held."""
    if self._file is not None:
      _write(self._file, {})
      os.close(self._file)
      self._file = None

  def __enter__(self) -> Self:
    """Nothing happens yet: when it is taken is for the user of it to say."""
    return self

  def __exit__(self, *ended: object) -> None:
    """Releases."""
    self.release()

  def _lock(self, file: int, *, shared: bool = False) -> bool:
    """Whether the file is locked now; False where there are no locks.

    Raises:
      UserError: another process has it.
    """
    try:
      import fcntl  # noqa: PLC0415

      how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
      fcntl.flock(file, how | fcntl.LOCK_NB)
    except ImportError:
      self._tell_without("this system has no file locks")
      return False
    except OSError as e:
      if e.errno in _HELD:
        raise UserError(_refusal(self._folder, file)) from e
      if e.errno not in _NO_LOCKS:
        raise
      self._tell_without(f"its file system has no locks ({e.strerror})")
      return False
    return True

  def _tell_without(self, why: str) -> None:
    _log.warning(
      "%s cannot be locked: %s. Do not start a second training in it while "
      "this one runs.",
      self._folder,
      why,
    )

  def _tell_unreleased(self, before: dict) -> None:
    """Another host's process ended without a word, or its lock is not seen."""
    host = before.get("host")
    if host and host != socket.gethostname():
      _log.warning(
        "%s was last written by process %s on %s, which did not end in order. "
        "If it still runs, this file system does not share locks between "
        "hosts: stop one of the two.",
        self._folder,
        before.get("pid"),
        host,
      )


def _self() -> dict:
  return {
    "pid": os.getpid(),
    "host": socket.gethostname(),
    "since": time.strftime("%Y-%m-%d %H:%M:%S"),
  }


def _read(file: int) -> dict:
  """What its last holder wrote; {} after a release, or if it is damaged."""
  try:
    found = json.loads(os.pread(file, 1 << 16, 0))
  except ValueError:  # empty, not JSON, not UTF-8
    return {}
  return found if isinstance(found, dict) else {}


def _write(file: int, what: dict) -> None:
  text = (json.dumps(what) + "\n").encode()
  os.ftruncate(file, 0)
  os.pwrite(file, text, 0)


def _refusal(folder: Path, file: int) -> str:
  deadline = time.monotonic() + 2.0
  while not (holder := _read(file)) and time.monotonic() < deadline:
    time.sleep(0.05)  # it has the lock and is about to write who it is
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

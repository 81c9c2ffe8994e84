"""Makes printing safe: closed pipes, full disks, unencodable characters."""

import errno
import io
import os
import select
import sys

_TEMPORARY = {errno.ENOSPC, errno.EDQUOT}  # the next write may succeed


class _SafeFile(io.FileIO):
  """A file whose writes never fail; data that cannot be written are dropped."""

  def write(self, data) -> int:
    """Returns the number of bytes that were written or dropped."""
    try:
      if (written := super().write(data)) is not None:
        return written
      select.select([], [self], [])  # another program made it non-blocking
      return self.write(data)
    except OSError as e:
      if e.errno not in _TEMPORARY:  # other writers to this file are safe, too
        _redirect_to_null(self.fileno())
      return len(data)


def _redirect_to_null(fd: int) -> None:
  null = os.open(os.devnull, os.O_RDWR)
  if null != fd:  # they are equal if `fd` was closed and is the lowest free one
    os.dup2(null, fd)
    os.close(null)


def guard() -> None:
  r"""Makes writes to the process's stdout and stderr unable to fail.

  A line that cannot be written is dropped: the reader has exited (`| head`),
  the disk is full, or the stream was closed from the start. A character that
  the stream cannot encode is written as `\xe9`. Streams that were replaced (by
  a notebook or a test) are not changed. A second call does nothing.
  """
  for fd, name in ((1, "stdout"), (2, "stderr")):
    stream = getattr(sys, name)
    if stream is None:  # closed from the start
      try:
        os.fstat(fd)
      except OSError:
        _redirect_to_null(fd)  # before another file gets this descriptor
      file = open(os.devnull, "w")  # noqa: SIM115
    elif (
      stream is getattr(sys, f"__{name}__")
      and isinstance(stream, io.TextIOWrapper)
      and not isinstance(getattr(stream.buffer, "raw", None), _SafeFile)
      and stream.fileno() == fd
    ):
      file = io.TextIOWrapper(
        io.BufferedWriter(_SafeFile(fd, "wb", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace",
        newline="\n",
        line_buffering=stream.line_buffering or stream.write_through,
      )
      stream.flush()
    else:
      continue
    setattr(sys, name, file)
    setattr(sys, f"__{name}__", file)

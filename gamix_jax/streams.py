"""What a command prints never ends it: a closed pipe, a full disk, a letter."""

import errno
import io
import os
import select
import sys

_LATER = {errno.ENOSPC, errno.EDQUOT}  # what may be over by the next line


class _Kept(io.FileIO):
  """A stream's file, whose failures to write nobody has to care about."""

  def write(self, data) -> int:
    """How many bytes are dealt with: written, or dropped for good."""
    try:
      if (written := super().write(data)) is not None:
        return written
      select.select([], [self], [])  # another program set it not to wait
      return self.write(data)
    except OSError as e:
      if e.errno not in _LATER:  # whoever else writes there is spared, too
        _to_null(self.fileno())
      return len(data)


def _to_null(fd: int) -> None:
  null = os.open(os.devnull, os.O_RDWR)
  if null != fd:  # which it is if `fd` was closed and the first that is free
    os.dup2(null, fd)
    os.close(null)


def guard() -> None:
  r"""From now on, writing to the process's stdout and stderr cannot fail.

  A line that cannot be written is dropped: the reader has gone (`| head`), the
  disk is full, the stream was closed from the start. A letter that the stream
  has no code for is written as `\xe9`. Streams that are not the process's own
  (a notebook's, a test's) stay as they are; a second call does nothing.
  """
  for fd, name in ((1, "stdout"), (2, "stderr")):
    stream = getattr(sys, name)
    if stream is None:  # closed from the start
      try:
        os.fstat(fd)
      except OSError:
        _to_null(fd)  # before a file of the run gets that number
      file = open(os.devnull, "w")  # noqa: SIM115
    elif (
      stream is getattr(sys, f"__{name}__")
      and isinstance(stream, io.TextIOWrapper)
      and not isinstance(getattr(stream.buffer, "raw", None), _Kept)
      and stream.fileno() == fd
    ):
      file = io.TextIOWrapper(
        io.BufferedWriter(_Kept(fd, "wb", closefd=False)),
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

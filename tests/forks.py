"""Runs commands as forks of one process that has imported the package.

Importing JAX takes most of the time of a refused command. A fork is still a
separate process: flags, folder, streams, environment and exit code are the
command's own, and JAX is not initialised before it.

Reads one JSON command per line from stdin; when a command has ended, writes a
line with its id and exit code.
"""

import json
import os
import runpy
import select
import sys
import warnings


def serve() -> dict | None:
  """Forks for each command; returns the command in a fork, None at the end."""
  running: dict[int, int] = {}
  buffer, more = b"", True
  while more or running:
    if more and select.select([0], [], [], 0.02)[0]:
      part = os.read(0, 1 << 16)
      more, buffer = bool(part), buffer + part
    *lines, buffer = buffer.split(b"\n")
    for line in lines:
      command = json.loads(line)
      with warnings.catch_warnings():
        # About threads; this process has none.
        warnings.simplefilter("ignore")
        pid = os.fork()
      if pid == 0:
        return command
      running[pid] = command["id"]
    while running and (ended := os.waitpid(-1, os.WNOHANG))[0]:
      code = os.waitstatus_to_exitcode(ended[1])
      print(running.pop(ended[0]), code, flush=True)
  return None


def become(command: dict) -> None:
  """Runs the command up to its exit."""
  os.chdir(command["cwd"])
  os.environ.clear()
  os.environ.update(command["env"])
  for fd, path in ((1, command["stdout"]), (2, command["stderr"])):
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, fd)
    os.close(file)
  null = os.open(os.devnull, os.O_RDONLY)
  os.dup2(null, 0)
  os.close(null)
  sys.argv[:] = ["-m", *command["flags"]]
  runpy.run_module(command["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  import gamix_jax.training.loop  # noqa: F401  (what takes its time)

  if (mine := serve()) is not None:
    become(mine)

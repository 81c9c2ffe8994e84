"""Runs `main` and logs every file that Python opens or creates, as JSON lines.

python tests/audited.py LOG FLAG ...
"""

import json
import os
import sys
import threading

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def listen(out):
  """Starts logging [kind, path]: "read", "write", or "make" for a folder."""
  busy = threading.local()

  def hook(event, args):
    if event not in ("open", "os.mkdir") or getattr(busy, "on", False):
      return
    path = args[0]
    if not isinstance(path, str | bytes | os.PathLike):
      return  # an open file descriptor
    kind = "make" if event == "os.mkdir" else "read"
    if event == "open" and (args[2] or 0) & WRITES:
      kind = "write"
    busy.on = True
    os.write(out, (json.dumps([kind, os.fsdecode(path)]) + "\n").encode())
    busy.on = False

  sys.addaudithook(hook)


if __name__ == "__main__":
  log = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
  from gamix_jax import cli, main

  listen(log)
  sys.exit(cli.run(main.main, sys.argv))

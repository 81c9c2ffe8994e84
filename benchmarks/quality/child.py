"""Processes that train, one at a time, and what finished ones left."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gamix_jax.errors import UserError

ROOT = Path(__file__).parents[2]
USER_ERROR = 2  # exit code


def say(line: str) -> None:
  """What is being done, and since when, to stderr."""
  print(f"{time.strftime('%T')} {line}", file=sys.stderr, flush=True)


def cores() -> int:
  """How many this process, and so its children, may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def run(
  module: str, flags: Sequence[str], log: Path, **env: str
) -> dict[str, float]:
  """Runs `python -m module flags` to its end; its lines are shown and kept.

  Args:
    module: of the command.
    flags: of it.
    log: file that its output goes to.
    **env: variables that it has besides this process's.

  Returns:
    {"cpu_seconds": user and system time of the whole process, with all its
    threads and children; "wall_seconds"}.

  Raises:
    UserError: that was its end (exit code 2).
    RuntimeError: it failed in another way.
  """
  path = os.environ.get("PYTHONPATH")
  env["PYTHONPATH"] = f"{ROOT}{os.pathsep}{path}" if path else str(ROOT)
  before, start = _of_children(), time.monotonic()
  with (
    log.open("w") as kept,
    subprocess.Popen(
      [sys.executable, "-m", module, *flags],
      env=os.environ | env,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    ) as process,
  ):
    try:
      for line in process.stdout:
        kept.write(line)
        print(f"  | {line}", end="", file=sys.stderr, flush=True)
    except BaseException:
      process.terminate()  # it is not to train beside what comes next
      process.wait()
      raise
  used = _of_children() - before
  if process.returncode:
    text = log.read_text()
    if process.returncode == USER_ERROR and "gamix_jax: " in text:
      raise UserError(text.rpartition("gamix_jax: ")[2].strip())
    raise RuntimeError(
      f"{module} failed with exit code {process.returncode}:\n{text[-4_000:]}"
    )
  return {"cpu_seconds": used, "wall_seconds": time.monotonic() - start}


def _of_children() -> float:
  """CPU-seconds of all children that have ended."""
  usage = resource.getrusage(resource.RUSAGE_CHILDREN)
  return usage.ru_utime + usage.ru_stime


def finished(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
  """What a finished run wrote to `path`; None: there is none.

  Raises:
    UserError: it was made with other settings.
  """
  if not path.is_file():
    return None
  saved = json.loads(path.read_text())
  was, now = saved["settings"], json.loads(json.dumps(settings))
  differing = sorted(
    k for k in was.keys() | now.keys() if was.get(k) != now.get(k)
  )
  if differing:
    shown = ", ".join(
      f"{k}: {was.get(k)!r} there, {now.get(k)!r} now" for k in differing[:4]
    )
    raise UserError(
      f"{path} was made with other settings ({shown}).\n"
      "Delete it to have it made again, or give another --out."
    )
  return saved

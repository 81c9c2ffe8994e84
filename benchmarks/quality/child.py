"""Runs training processes one at a time, and finds finished results."""

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
  """Prints the current stage and the time, to stderr."""
  print(f"{time.strftime('%T')} {line}", file=sys.stderr, flush=True)


def cores() -> int:
  """Returns the number of cores that this process and its children may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def run(
  module: str, flags: Sequence[str], log: Path, **env: str
) -> dict[str, float]:
  """Runs `python -m module flags` to its end; prints and logs its output.

  Args:
    module: the module to run.
    flags: its flags.
    log: file for its output.
    **env: environment variables to add to this process's.

  Returns:
    {"cpu_seconds": user and system time of the whole process, with all its
    threads and children; "wall_seconds"}.

  Raises:
    UserError: if it ended with one (exit code 2).
    RuntimeError: if it failed in another way.
  """
  path = os.environ.get("PYTHONPATH")
  env["PYTHONPATH"] = f"{ROOT}{os.pathsep}{path}" if path else str(ROOT)
  before, start = _children_cpu_seconds(), time.monotonic()
  with (
    log.open("w") as log_file,
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
        log_file.write(line)
        print(f"  | {line}", end="", file=sys.stderr, flush=True)
    except BaseException:
      process.terminate()  # it must not run alongside the next one
      process.wait()
      raise
  cpu_seconds = _children_cpu_seconds() - before
  if process.returncode:
    text = log.read_text()
    if process.returncode == USER_ERROR and "gamix_jax: " in text:
      raise UserError(text.rpartition("gamix_jax: ")[2].strip())
    raise RuntimeError(
      f"{module} failed with exit code {process.returncode}:\n{text[-4_000:]}"
    )
  return {"cpu_seconds": cpu_seconds, "wall_seconds": time.monotonic() - start}


def _children_cpu_seconds() -> float:
  """Returns the CPU-seconds of all children that have ended."""
  usage = resource.getrusage(resource.RUSAGE_CHILDREN)
  return usage.ru_utime + usage.ru_stime


def finished(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
  """Returns what a finished run wrote to `path`, or None if there is none.

  Raises:
    UserError: if its settings were different.
  """
  if not path.is_file():
    return None
  saved = json.loads(path.read_text())
  old, new = saved["settings"], json.loads(json.dumps(settings))
  differing = sorted(
    k for k in old.keys() | new.keys() if old.get(k) != new.get(k)
  )
  if differing:
    shown = ", ".join(
      f"{k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in differing[:4]
    )
    raise UserError(
      f"{path} was made with other settings ({shown}).\n"
      "Delete it to run it again, or use another --out."
    )
  return saved

"""Runs the commands as a user does, in subprocesses.

Compiling dominates the cost of a run, so all runs of a session share one
compilation cache, and most of them share one program, that of SMALL.
"""

import concurrent.futures
import functools
import importlib.util
import io
import json
import os
import shlex
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from gamix_jax import presets

ROOT = Path(__file__).parents[1]

# The tiny variant, simplified: no norm, the cheapest population term.
SMALL = shlex.split("""
  --config=configs/digits.py:tiny
  --config.model.norm=none
  --config.objective.population=means
  --config.eval_every=1000
  --config.checkpoint.every=1000
  --config.checkpoint.keep_best=0
  --config.data.cache=none
""")

# With these settings, a run can be resumed to a different number of steps.
ANY_LENGTH = (
  "--config.adversarial.disc_start=1",
  "--config.ramp.collapse_penalty=0",
  "--config.optim.vae.schedule=constant",
  "--config.optim.disc.schedule=constant",
)

# XLA's options for the fastest compilation.
QUICK = {
  "xla_backend_optimization_level": 0,
  "xla_cpu_parallel_codegen_split_count": 1,  # tiny programs, few cores
}
if jax.__version_info__ < (0, 11):  # later versions have no other emitters
  QUICK["xla_cpu_use_fusion_emitters"] = False

# Warnings are errors, except for those inside libraries.
WARNINGS = (
  "error",
  "ignore:the load_module() method is deprecated:DeprecationWarning",
  # JAX writes cache entries in place, so another process may read half an
  # entry.
  "ignore:Error reading persistent compilation cache entry:UserWarning",
)


class Program:
  """Runs python -m gamix_jax.<command>."""

  def __init__(self, cache: Path):
    """`cache` is the compilation cache."""
    self.pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    self._env = {
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "JAX_COMPILATION_CACHE_DIR": str(cache),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
      "XLA_FLAGS": " ".join(
        f"--{k}={str(v).lower()}" for k, v in QUICK.items()
      ),
    }

  def env(self, devices: int = 1, **more: str) -> dict[str, str]:
    """Returns the environment of a process."""
    env = self._env | more
    if devices > 1:
      env["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
    return env

  def argv(self, *flags: str, module: str = "gamix_jax.main") -> list[str]:
    """Returns the arguments of a command."""
    warnings = [f"-W{w}" for w in WARNINGS]
    return [sys.executable, *warnings, "-m", module, *map(str, flags)]

  def run(
    self,
    *flags: str,
    devices: int = 1,
    cwd: Path = ROOT,
    module: str = "gamix_jax.main",
    env: dict[str, str] | None = None,
    **kwargs,
  ):
    """Runs a command to its end: .returncode, .stdout, .stderr."""
    return subprocess.run(
      self.argv(*flags, module=module),
      env=self.env(devices) if env is None else env,
      cwd=cwd,
      capture_output=True,
      text=True,
      timeout=300,
      check=False,
      **kwargs,
    )

  def script(self, code: str, *words, **kwargs):
    """Runs Python code in a subprocess; returns the same as `run`."""
    return subprocess.run(
      [sys.executable, "-c", code, *map(str, words)],
      env=self.env(),
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
      **kwargs,
    )

  def forked(
    self, *flags: str, devices: int = 1, module: str = "gamix_jax.main"
  ):
    """Like `run`, but in a fork of a process that has imported JAX."""
    argv = self.argv(*flags, module=module)
    return self._forks.run(argv, self.env(devices))

  @functools.cached_property
  def _forks(self):
    return Forks(self.argv()[1:-2], self.env(OPENBLAS_NUM_THREADS="1"))

  def close(self) -> None:
    """Ends the forking process."""
    if "_forks" in vars(self):
      self._forks.close()

  def done(self, *flags: str, **kwargs) -> str:
    """Runs `main`, asserts success without stderr output, returns stdout."""
    ran = self.run(*flags, **kwargs)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    return ran.stdout

  def start(self, *flags: str, **kwargs) -> subprocess.Popen:
    """Starts `main`, to be waited for, killed or stopped."""
    return subprocess.Popen(
      self.argv(*flags),
      env=self.env(),
      cwd=ROOT,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      **kwargs,
    )


class Forks:
  """A process that has imported the package, and its forks; see `forks.py`."""

  def __init__(self, options: list[str], env: dict[str, str]):
    """`options` are those of the Python interpreter."""
    self._process = subprocess.Popen(
      [sys.executable, *options, ROOT / "tests" / "forks.py"],
      env=env | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
      cwd=ROOT,
      text=True,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
    )
    self._lock = threading.Lock()
    self._ends: list[concurrent.futures.Future] = []
    self._listener = threading.Thread(target=self._listen)
    self._listener.start()

  def close(self):
    """Waits for running commands."""
    self._process.stdin.close()
    self._listener.join()
    self._process.stdout.close()
    self._process.wait()

  def _listen(self):
    for line in self._process.stdout:
      number, code = map(int, line.split())
      self._ends[number].set_result(code)
    for end in self._ends:
      if not end.done():
        end.set_exception(RuntimeError("forks.py has ended"))

  def run(self, argv: list[str], env: dict[str, str]):
    """Runs `python -m module flags` like subprocess.run."""
    end = concurrent.futures.Future()
    at = argv.index("-m")
    with tempfile.TemporaryDirectory() as folder:
      out, err = Path(folder, "stdout"), Path(folder, "stderr")
      with self._lock:
        command = dict(id=len(self._ends), env=env, cwd=str(ROOT))
        command |= dict(module=argv[at + 1], flags=argv[at + 2 :])
        command |= dict(stdout=str(out), stderr=str(err))
        self._ends.append(end)
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
      code = end.result(timeout=300)
      return subprocess.CompletedProcess(
        argv, code, out.read_text(), err.read_text()
      )


def assert_refused(ran, *words: str) -> None:
  """Asserts exit code 2 and one or two lines that contain these words."""
  assert ran.returncode == 2, ran.stdout + ran.stderr
  lines = ran.stderr.rstrip("\n").split("\n")
  assert 1 <= len(lines) <= 2, ran.stderr
  assert lines[0].startswith("gamix_jax: "), ran.stderr
  for word in words:
    assert word in ran.stderr


def rows(workdir: Path) -> list[dict]:
  """Returns the rows of metrics.jsonl."""
  text = (workdir / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def numbers(workdir: Path) -> list[dict]:
  """Returns the rows of metrics.jsonl without the speed metrics."""
  return [
    {k: v for k, v in row.items() if not k.startswith(("speed/", "input/"))}
    for row in rows(workdir)
  ]


class Jobs:
  """Commands that run in parallel, each in its own folder.

  Attributes:
    table: {name: function of the folder that prepares it and returns the
      command's arguments}; a name with `@8` runs on eight devices.
  """

  def __init__(
    self,
    program: Program,
    table: dict,
    names: set,
    root: Path,
    forked: Callable[[str], bool] = lambda name: False,
  ):
    """Starts those in `names`; those in `forked` as forks."""
    self._forked = forked
    self._folders = {n: root / f"job{i}" for i, n in enumerate(sorted(names))}
    self._futures = {}
    for name in (n for n in table if n in names):  # in the order of the table
      self._folders[name].mkdir()
      self._futures[name] = program.pool.submit(
        self._run, program, table[name], name
      )

  def _run(self, program, prepare, name):
    flags = prepare(self._folders[name])
    run = program.forked if self._forked(name) else program.run
    return run(*flags, devices=8 if "@8" in name else 1)

  def __getitem__(self, name: str):
    """Returns the result of a command, and its folder."""
    return self._futures[name].result(), self._folders[name]


def chosen(session, path: Path) -> set:
  """Returns the values of `job` of a file's tests that are going to run."""
  found = set()
  for item in session.items:
    if item.path == path and hasattr(item, "callspec"):
      value = item.callspec.params.get("job", ())
      found |= {value} if isinstance(value, str) else set(value)
  return found


def config_of(name: str, variant: str = ""):
  """Returns the config of a file in configs/."""
  path = ROOT / "configs" / f"{name}.py"
  spec = importlib.util.spec_from_file_location(f"config_{name}", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(variant)


def complete_config_of(name: str, variant: str = ""):
  """Returns that config, completed by its preset."""
  return presets.complete(config_of(name, variant))


def events(folder):
  """Yields the records of event files: size, checksum, data, checksum."""
  for path in sorted(folder.glob("events.out.tfevents.*")):
    file = io.BytesIO(path.read_bytes())
    while head := file.read(12):
      size, check = struct.unpack("<QI", head)
      assert check == masked_crc32c(head[:8])
      data = file.read(size)
      assert file.read(4) == struct.pack("<I", masked_crc32c(data))
      yield Event.FromString(data)


# ------------------------------------------------------------ images


def save(path, image, **kwargs):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(image).save(path, **kwargs)


def noise(seed, *shape):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def hundred(folder, broken=1):
  """Writes a hundred JPEGs, of which the first ones are truncated."""
  for i in range(100):
    path = folder / f"{i:03d}.jpg"
    save(path, noise(i, 12, 12, 3))
    if i < broken:
      path.write_bytes(path.read_bytes()[:-200])


def files(folder, *flags):
  return [
    *SMALL,
    f"--config.data.source=folder:{folder}/images",
    f"--workdir={folder}/run",
    *flags,
  ]

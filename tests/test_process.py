"""The library does not modify its process; only commands configure it."""

import json

from program import complete_config_of

from gamix_jax import config

CODE = """
import json, logging, signal, sys, threading, warnings


def hooks():
  return [
    sys.unraisablehook, sys.excepthook, sys.displayhook, threading.excepthook,
    warnings.showwarning, warnings.formatwarning, sys.stdout, sys.stderr,
    *(signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)),
  ]


def logs():
  return [
    (list(log.filters), list(log.handlers), log.level)
    for log in map(logging.getLogger, ("", "absl", "asyncio", "gamix_jax"))
  ]


first, torch = hooks(), "torch" in sys.modules
import gamix_jax
from gamix_jax import config
from gamix_jax.training import loop
from gamix_jax.checkpoint import Checkpoints
imported = hooks() == first
was, filters = logs(), list(warnings.filters)
c = config.from_json(sys.stdin.read())
loop.train(c, sys.argv[1])
trained = hooks() == first, logs() == was, warnings.filters == filters
gamix_jax.load(sys.argv[1]).encode
loaded = hooks() == first, logs() == was, warnings.filters == filters
hidden = sys.modules.get("torch", 0) is None
print(json.dumps([imported, *trained, *loaded, not hidden]))
"""


def test_importing_training_and_loading_change_nothing(program, tmp_path):
  """No hooks, log filters, warning filters or signal handlers."""
  given = config.to_json(complete_config_of("digits", "tiny"))
  ran = program.script(CODE, tmp_path / "run", input=given)
  assert ran.returncode == 0, ran.stderr
  assert json.loads(ran.stdout.splitlines()[-1]) == [True] * 8


IMPORTS = """
import contextlib, sys, threading, time
from etils import epy
from gamix_jax import config
from gamix_jax.training import compiled_steps, loop

compiling = threading.Event()
compile_step, lazy_imports = compiled_steps.compile_step, epy.lazy_imports


def compile_slowly(*args):
  compiling.set()
  time.sleep(4)  # until other threads have imported what they need
  return compile_step(*args)


@contextlib.contextmanager
def note_imports(**kwargs):
  with lazy_imports(**kwargs):
    yield
  print("replaced", "late" if compiling.is_set() else "early")


compiled_steps.compile_step, epy.lazy_imports = compile_slowly, note_imports
loop.train(config.from_json(sys.stdin.read()), sys.argv[1])
"""


def test_imports_are_not_replaced_while_a_thread_compiles(program, tmp_path):
  """A library that replaces `builtins.__import__` makes JAX's imports fail."""
  given = config.to_json(complete_config_of("digits", "tiny"))
  ran = program.script(IMPORTS, tmp_path / "run", input=given)
  assert ran.returncode == 0, ran.stderr
  assert "replaced early" in ran.stdout  # Grain still does it
  assert "replaced late" not in ran.stdout

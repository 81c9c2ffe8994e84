"""Shared by all commands: flags, error messages and exit codes.

Exit codes:

0   finished, or stopped on request with everything saved
2   an error that the user can fix; the message says how
75  another process of the run exited; start the command again
    Any other code is a bug.
"""

import contextlib
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from gamix_jax import config as configs
from gamix_jax import hardware, paths, save_errors, situations, streams
from gamix_jax.config import ConfigDict
from gamix_jax.cpu import malloc
from gamix_jax.errors import UserError
from gamix_jax.locate import Location

PACKAGE = Path(__file__).parent
# Next to the package in a checkout, inside it in an installed wheel.
CONFIG_FOLDERS = (PACKAGE.parent / "configs", PACKAGE / "configs")
DEFAULT_CONFIG = "digits.py"
USER_ERROR = 2  # exit code
CACHE_BYTES = 1 << 30  # limit of the compilation cache; digits needs 1.5 MB


def shipped_config(name: str) -> Path:
  """Returns the path of one of this project's configs.

  Raises:
    UserError: the project has no config of that name.
  """
  for folder in CONFIG_FOLDERS:
    if (folder / name).is_file():
      return folder / name
  available = sorted(
    p.name for f in CONFIG_FOLDERS if f.is_dir() for p in f.glob("*.py")
  )
  raise UserError(
    f"--config={name}: there is no such file; the project's configs are: "
    f"{', '.join(available)}."
  )


def _find_config(argument: str) -> str:
  """Finds --config=configs/x.py[:variant] from any working directory."""
  path, colon, variant = argument.partition(":")
  if path.startswith("~"):
    path = str(paths.resolve(path))
  if not Path(path).is_file():
    if Path(path).parent not in (Path(), Path("configs")):
      raise UserError(f"--config={path}: there is no such file.")
    path = str(shipped_config(Path(path).name))
  return path + colon + variant


def parse(
  argv: Sequence[str], define: Callable[[], object] | None = None
) -> None:
  """Parses the command line.

  Args:
    argv: the program's name and its arguments.
    define: defines further flags; called after the first checks.

  Raises:
    UserError: an unknown flag or config key, a value of the wrong type, or a
      config file that does not exist or raises an error.
  """
  argv = list(argv)
  for i, word in enumerate(argv):
    name, equals, value = word.partition("=")
    if name.lstrip("-") != "config" or not name.startswith("-"):
      continue
    if equals:
      argv[i] = f"{name}={_find_config(value)}"
    elif i + 1 < len(argv):
      argv[i + 1] = _find_config(argv[i + 1])
  try:
    _check_overrides(argv)
    if define is not None:  # DEFINE_config_dict applies overrides immediately
      define()
    rest = flags.FLAGS(argv)
  except UserError:
    raise
  except Exception as e:
    message = _config_file_message(e, argv) or _flag_message(e)
    if message is None:
      raise
    raise UserError(message) from e
  if rest[1:]:
    raise UserError(f"{rest[1]!r} is not a flag; all flags begin with --.")
  if "workdir" in flags.FLAGS:
    _check_workdir(flags.FLAGS.workdir or "")


def _check_workdir(workdir: str) -> None:
  """Checks that the path is UTF-8, as the checkpoint libraries require.

  Raises:
    UserError: the path is not UTF-8.
  """
  path = os.path.abspath(workdir)
  try:
    path.encode()
  except UnicodeEncodeError as e:
    raise UserError(
      f"--workdir={workdir}: the path {path!a} is not UTF-8, which is needed "
      "to write checkpoints there; use another folder."
    ) from e


def _check_overrides(argv: Sequence[str]) -> None:
  """Checks config overrides, in addition to ml_collections.

  ml_collections accepts some of these mistakes and reports others unclearly.

  Raises:
    UserError: a section instead of one of its keys, a key below another key, or
      an empty value or None for a key that cannot be so.
  """
  schema = configs.base()
  for word in argv[1:]:
    match = re.fullmatch(r"--?config\.([^=]+)(?:=(.*))?", word, re.DOTALL)
    if not match:
      continue
    key, value = match.groups()
    node: Any = schema
    parts = key.split(".")
    for i, part in enumerate(parts):
      if not isinstance(node, ConfigDict):
        raise UserError(
          f"--config has no key {key!r}: {'.'.join(parts[:i])} is not a "
          f"section, but a key; its default is {node!r}."
        )
      if part not in node:
        return  # `parse` reports it, with similar keys
      node = node[part]
    if isinstance(node, ConfigDict):
      keys = list(configs.flat(node))
      example = "name" if "name" in keys else keys[0]
      raise UserError(
        f"--config.{key} is a section; set one of its keys, as "
        f"--config.{key}.{example}=VALUE. It has: {', '.join(keys)}."
      )
    if isinstance(node, str | tuple) and (
      value == "None" or (value == "" and node != "")
    ):
      raise UserError(
        f"--config.{key}={value}: this key cannot be {value or 'empty'}. Its "
        f"default is {node!r}; gamix_jax/config.py lists other values."
      )


def _config_file_message(
  error: BaseException, argv: Sequence[str]
) -> str | None:
  """Describes an error raised in a config file of `argv`; None for others."""
  files = {word.partition("=")[2].partition(":")[0] for word in argv}
  files |= {word.partition(":")[0] for word in argv[1:]}
  cause: BaseException | None = error
  while cause is not None:
    if isinstance(cause, UserError):  # wrapped by absl
      return str(cause)
    if isinstance(cause, SyntaxError) and cause.filename in files:
      return f"{cause.filename}, line {cause.lineno}: {cause.msg}."
    if isinstance(cause, SyntaxError) and cause.filename is None:
      return f"The file of --config is not valid Python: {cause.msg}."
    for frame in reversed(traceback.extract_tb(cause.__traceback__)):
      if frame.filename in files:
        problem = _suggestion(cause)
        problem = problem or f"{type(cause).__name__}: {_first_line(cause)}"
        return f"{frame.filename}, line {frame.lineno}: {problem}"
    cause = cause.__cause__ or cause.__context__
  return None


def _suggestion(error: BaseException) -> str | None:
  """Returns ml_collections' suggestion for a misspelt key, if there is one."""
  match = re.search(
    r'Did you mean "(.*?)" instead of "(.*?)"', str(error.args[:1])
  )
  return f"no key {match[2]!r}; did you mean {match[1]!r}?" if match else None


def _first_line(error: BaseException) -> str:
  """Returns the first line of an error's message."""
  text = str(error).strip().strip("'\"") or type(error).__name__
  return text.splitlines()[0]


# {part of an error message: description of the expected value}
_EXPECTED = {
  "invalid literal for int": "a whole number, in digits only",
  "could not convert string to float": "a number",
  "Non-boolean argument": "true or false",
  "as a ConfigDict": "of a key in that section, as --config.SECTION.KEY=VALUE",
}


def _flag_message(error: Exception) -> str | None:
  """Describes an error of absl or ml_collections in one or two lines."""
  text = str(error)
  if suggestion := _suggestion(error):
    return f"--config has {suggestion}"
  if "'get_config" in text or "get_config()" in text:
    return "--config must be a file with a function get_config(variant='')."
  if isinstance(error, AttributeError | KeyError):
    return (
      f"--config has no key {_first_line(error)!r}; gamix_jax/config.py lists "
      "all keys (gamix_jax/evaluate/settings.py those of evaluate)."
    )
  if not isinstance(error, flags.Error | TypeError | ValueError):
    return None
  flag = re.match(r"flag (--\S+?)=(.*?): ", text)
  if flag:
    for words, expected in _EXPECTED.items():
      if words in text:
        return f"{flag[1]}={flag[2]} must be {expected}."
  return "\n".join(text.strip().splitlines()[:2])


class _OnceFilter(logging.Filter):
  """Passes each log line of this package once; info only in one process."""

  def __init__(self):
    super().__init__()
    self._passed: set[tuple[str, str]] = set()

  def filter(self, record: logging.LogRecord) -> bool:
    """Whether the record passes."""
    if not record.name.startswith("gamix_jax"):
      return True
    line = record.name, record.getMessage()
    if line in self._passed:
      return False
    if record.levelno < logging.WARNING and not _is_main_process():
      return False
    self._passed.add(line)
    return True


def _is_main_process() -> bool:
  """Whether this is the main process of the run; does not import JAX."""
  if "jax" not in sys.modules:
    return True
  from gamix_jax.parallel import distributed  # noqa: PLC0415  (flags come before JAX)

  return distributed.is_main_process()


def _configure_logging() -> None:
  """Logs plain lines: this package's info to stdout, warnings to stderr."""
  once = _OnceFilter()
  info = logging.StreamHandler(sys.stdout)
  info.addFilter(lambda record: record.levelno < logging.WARNING)
  warning = logging.StreamHandler(sys.stderr)
  warning.setLevel(logging.WARNING)
  for handler in (info, warning):
    handler.addFilter(once)
  # Replaces handlers that a library may have installed.
  logging.basicConfig(
    format="%(message)s", handlers=[info, warning], force=True
  )
  logging.getLogger().setLevel(logging.WARNING)
  logging.getLogger("gamix_jax").setLevel(logging.INFO)


def leave_libtpu_alone() -> None:
  """Keeps JAX from starting libtpu on a machine without a TPU.

  libtpu would print warnings about what is missing.
  """
  variable = "JAX_PLATFORMS"
  if os.environ.get(variable) or not hardware.only_cpu():
    return
  if find_spec("libtpu") is None:
    return
  os.environ[variable] = "cpu"
  jax = sys.modules.get("jax")
  if jax and not jax.config.jax_platforms:  # it has read the variable
    jax.config.update("jax_platforms", "cpu")


def run(
  main: Callable[[], None],
  argv: Sequence[str] | None = None,
  define: Callable[[], object] | None = None,
  text: str | None = None,
) -> int:
  """Parses the flags, runs a command and returns the exit code.

  Args:
    main: the command.
    argv: its arguments; default: `sys.argv`.
    define: see `parse`.
    text: printed for --help, without running the command.
  """
  streams.guard()
  argv = sys.argv if argv is None else argv
  if text is not None and "--help" in argv:
    print(text)
    return 0
  _configure_logging()
  save_errors.silence_orbax()
  leave_libtpu_alone()
  try:
    parse(argv, define)
    main()
  except UserError as e:
    return _fail(str(e))
  except KeyboardInterrupt:
    return _fail("interrupted; the last complete checkpoint is kept.")
  except Exception as e:
    _exit_after_peer_failure(e)
    if message := situations.told(e):
      return _fail(message)
    _exit_if_multiprocess(e)
    raise
  return 0


def start(
  main: Callable[[], None], text: str | None, default: str = DEFAULT_CONFIG
) -> int:
  """Runs a command that has `--config`; its default is the config of digits.

  The default is added to the command line, since overrides
  (--config.key=value) need the file there.

  Args:
    main: the command.
    text: printed for --help.
    default: another default, the file's name.
  """
  argv = sys.argv
  if not any(a.split("=")[0].lstrip("-") == "config" for a in argv[1:]):
    argv = [argv[0], f"--config={default}", *argv[1:]]
  return run(main, argv, text=text)


def _exit_after_peer_failure(error: Exception) -> None:
  """Exits immediately if another process's exit caused the error.

  A normal exit would wait for the other processes, which wait for this one.
  """
  if "jax" in sys.modules:
    from gamix_jax.parallel import distributed  # noqa: PLC0415  (flags come before JAX)

    if message := distributed.peer_failure(error):
      _fail(message, distributed.LOST)  # exits


def _exit_if_multiprocess(error: Exception) -> None:
  """Prints an unexpected error and exits, in a multi-process run."""
  if "jax" in sys.modules:
    from gamix_jax.parallel import distributed  # noqa: PLC0415  (flags come before JAX)

    if distributed.is_multiprocess():
      traceback.print_exception(error)
      sys.stderr.flush()
      os._exit(1)


def _fail(message: str, code: int = USER_ERROR) -> int:
  """Prints an error and returns the exit code; exits in a multi-process run.

  A normal exit would wait for the other processes, which wait for this one.
  """
  print(f"gamix_jax: {message}", file=sys.stderr, flush=True)
  if "jax" in sys.modules:
    from gamix_jax.parallel import distributed  # noqa: PLC0415  (flags come before JAX)

    if distributed.is_multiprocess():
      os._exit(code)
  return code


def use_compilation_cache() -> None:
  """Enables JAX's compilation cache in ~/.cache/gamix_jax/compiled.

  JAX_COMPILATION_CACHE_DIR overrides the folder; "" disables the cache.
  """
  import jax  # noqa: PLC0415  (wrong flags are reported without importing JAX)

  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    # With JAX's default of one second a fast machine caches only the training
    # step, and compiles evaluation and pictures at every start.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    folder = paths.cache_folder("compiled")
    trim(folder, CACHE_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(folder))
  _delete_corrupt_entries()


def data_now() -> ConfigDict:
  """Returns the section `data` of commands that read the images of a run."""
  c = ConfigDict()
  c.source = ""  # current location; "": the same as in training
  c.fingerprint = ""  # any: accept images that the run was not trained on
  return c


def define_data() -> None:
  """Defines the flags --config.data.* of a command without --config=FILE."""
  c = ConfigDict()
  c.data = data_now()
  config_flags.DEFINE_config_dict("config", c.lock())


def keep_freed_memory(where: Location) -> None:
  """Keeps memory that a model frees between batches, on a CPU; see `malloc`.

  Call it before JAX starts its threads.

  Args:
    where: the model is. If its config cannot be read this does nothing;
      `inference.load` then reports the error.
  """
  from gamix_jax import modality  # noqa: PLC0415
  from gamix_jax.inference.device import default_batch_size  # noqa: PLC0415
  from gamix_jax.inference.load import saved_config  # noqa: PLC0415
  from gamix_jax.networks import layer_bytes  # noqa: PLC0415

  with contextlib.suppress(UserError):
    config = saved_config(where.folder)
    batch_size = default_batch_size(modality.of_config(config))
    malloc.keep_freed_on_cpu(layer_bytes(config, batch_size))


def _delete_corrupt_entries() -> None:
  """Makes JAX's warning on a corrupt cache entry delete that entry.

  JAX does not write entries atomically, so a killed process leaves a partial
  one, which another process may also read. JAX then compiles but does not
  replace existing files, so every later start would warn and compile again.
  """
  import jax  # noqa: PLC0415

  show = warnings.showwarning

  def show_or_delete(message, *args, **kwargs):
    match = re.match(
      r"Error reading persistent compilation cache entry for '(\w+)'",
      str(message),
    )
    if not match or not (folder := jax.config.jax_compilation_cache_dir):
      return show(message, *args, **kwargs)
    for path in Path(folder).glob(f"{match[1]}-*-cache"):
      path.unlink(missing_ok=True)

  warnings.showwarning = show_or_delete


def trim(folder: Path, max_bytes: int) -> None:
  """Deletes the oldest cache entries until at most `max_bytes` are left.

  JAX can limit its cache itself, but needs another package for that and a lock
  that every start waits for. Without the lock two processes may trim at the
  same time, and a deleted entry that one of them needs is compiled again.
  """
  files = []
  for path in folder.glob("*-cache"):
    with contextlib.suppress(FileNotFoundError):  # another process deleted it
      stat = path.stat()
      files.append((stat.st_mtime, stat.st_size, path))
  total = sum(size for _, size, _ in files)
  for _, size, path in sorted(files):
    if total <= max_bytes:
      return
    path.unlink(missing_ok=True)
    total -= size

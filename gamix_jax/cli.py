"""What the commands share: flags, messages, exit codes.

0: done, or stopped on request with everything saved. 2: a mistake the message
says how to fix. 75: another process of the run is gone; to be started again.
Anything else is a defect of this program.
"""

import contextlib
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from gamix_jax import config as configs
from gamix_jax import paths, save_errors, situations, streams
from gamix_jax.config import ConfigDict, image_shape
from gamix_jax.cpu import malloc
from gamix_jax.errors import UserError

PACKAGE = Path(__file__).parent
# A checkout has them beside the package, an installed wheel inside it.
CONFIG_FOLDERS = (PACKAGE.parent / "configs", PACKAGE / "configs")
DEFAULT_CONFIG = "digits.py"
USAGE = 2  # exit code
COMPILED_BYTES = 1 << 30  # of compiled programs kept; digits' are 1.5 MB


def shipped_config(name: str) -> Path:
  """Where one of this project's own configs lies.

  Raises:
    UserError: the project has no config of that name.
  """
  for folder in CONFIG_FOLDERS:
    if (folder / name).is_file():
      return folder / name
  have = sorted(
    p.name for f in CONFIG_FOLDERS if f.is_dir() for p in f.glob("*.py")
  )
  raise UserError(
    f"--config={name}: no such file; the project has: {', '.join(have)}."
  )


def _find_config(argument: str) -> str:
  """--config=configs/x.py[:variant] also from where there is no configs/."""
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
  """Parses the flags that were defined, or that `define` defines.

  Raises:
    UserError: an unknown flag, a config key that is none, a value of another
      type, a config file that is missing or wrong.
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
    if define is not None:  # of a config that is at hand: it is read at once
      define()
    rest = flags.FLAGS(argv)
  except UserError:
    raise
  except Exception as e:
    message = _fault_of_config(e, argv) or _flag_message(e)
    if message is None:
      raise
    raise UserError(message) from e
  if rest[1:]:
    raise UserError(f"{rest[1]!r} is not a flag; all flags begin with --.")
  if "workdir" in flags.FLAGS:
    _check_workdir(flags.FLAGS.workdir or "")


def _check_workdir(workdir: str) -> None:
  """Refuses a folder that the libraries that write checkpoints cannot name.

  Raises:
    UserError: its path is not UTF-8.
  """
  path = os.path.abspath(workdir)
  try:
    path.encode()
  except UnicodeEncodeError as e:
    raise UserError(
      f"--workdir={workdir}: the path {path!a} is not UTF-8, which is needed "
      "to write checkpoints there; give another folder."
    ) from e


def _check_overrides(argv: Sequence[str]) -> None:
  """Refuses what ml_collections takes, or refuses in words of its own.

  Raises:
    UserError: a section instead of one of its keys, a key of what is none, an
      empty word or None for a key that has none.
  """
  schema = configs.base()
  for word in argv[1:]:
    match = re.fullmatch(r"--?config\.([^=]+)(?:=(.*))?", word, re.DOTALL)
    if not match:
      continue
    key, value = match.groups()
    at: Any = schema
    parts = key.split(".")
    for i, part in enumerate(parts):
      if not isinstance(at, ConfigDict):
        raise UserError(
          f"--config has no key {key!r}: {'.'.join(parts[:i])} is no section, "
          f"but a key, by default {at!r}."
        )
      if part not in at:
        return  # what it might be is said where it is looked up
      at = at[part]
    if isinstance(at, ConfigDict):
      keys = list(configs.flat(at))
      example = "name" if "name" in keys else keys[0]
      raise UserError(
        f"--config.{key} is a section; give one of its keys, as "
        f"--config.{key}.{example}=VALUE. It has: {', '.join(keys)}."
      )
    if isinstance(at, str | tuple) and (
      value == "None" or (value == "" and at != "")
    ):
      raise UserError(
        f"--config.{key}={value}: this key is never {value or 'empty'}. By "
        f"default it is {at!r}; gamix_jax/config.py says what else it may be."
      )


def _fault_of_config(error: BaseException, argv: Sequence[str]) -> str | None:
  """Where in a config file of `argv` an error arose, and which; None: not."""
  files = {word.partition("=")[2].partition(":")[0] for word in argv}
  files |= {word.partition(":")[0] for word in argv[1:]}
  seen: BaseException | None = error
  while seen is not None:
    if isinstance(seen, UserError):  # flags wrap it
      return str(seen)
    if isinstance(seen, SyntaxError) and seen.filename in files:
      return f"{seen.filename}, line {seen.lineno}: {seen.msg}."
    if isinstance(seen, SyntaxError) and seen.filename is None:
      return f"The file of --config is no Python: {seen.msg}."
    for frame in reversed(traceback.extract_tb(seen.__traceback__)):
      if frame.filename in files:
        what = _misspelt(seen) or f"{type(seen).__name__}: {_first(seen)}"
        return f"{frame.filename}, line {frame.lineno}: {what}"
    seen = seen.__cause__ or seen.__context__
  return None


def _misspelt(error: BaseException) -> str | None:
  """ml_collections' suggestion, if that is what went wrong."""
  match = re.search(
    r'Did you mean "(.*?)" instead of "(.*?)"', str(error.args[:1])
  )
  return f"no key {match[2]!r}; did you mean {match[1]!r}?" if match else None


def _first(error: BaseException) -> str:
  """The first line of what an error says."""
  text = str(error).strip().strip("'\"") or type(error).__name__
  return text.splitlines()[0]


_KINDS = {
  "invalid literal for int": "a whole number, in digits alone",
  "could not convert string to float": "a number",
  "Non-boolean argument": "true or false",
  "as a ConfigDict": "of a key in that section, as --config.SECTION.KEY=VALUE",
}


def _flag_message(error: Exception) -> str | None:
  """One or two lines of what absl and ml_collections say."""
  text = str(error)
  if found := _misspelt(error):
    return f"--config has {found}"
  if "'get_config" in text or "get_config()" in text:
    return "--config is a file with a function get_config(variant='')."
  if isinstance(error, AttributeError | KeyError):
    return (
      f"--config has no key {_first(error)!r}; gamix_jax/config.py lists all "
      "keys (gamix_jax/evaluate/settings.py those of evaluate)."
    )
  if not isinstance(error, flags.Error | TypeError | ValueError):
    return None
  flag = re.match(r"flag (--\S+?)=(.*?): ", text)
  if flag:
    for words, kind in _KINDS.items():
      if words in text:
        return f"{flag[1]}={flag[2]} must be {kind}."
  return "\n".join(text.strip().splitlines()[:2])


class _Told(logging.Filter):
  """Lets each of this package's lines through once; news of one process."""

  def __init__(self):
    super().__init__()
    self._told: set[tuple[str, str]] = set()

  def filter(self, record: logging.LogRecord) -> bool:
    """Whether the line is to be shown."""
    if not record.name.startswith("gamix_jax"):
      return True
    line = record.name, record.getMessage()
    if line in self._told or (record.levelno < logging.WARNING and _other()):
      return False
    self._told.add(line)
    return True


def _other() -> bool:
  """Whether this is another process of the run than the first."""
  if "jax" not in sys.modules:
    return False
  from gamix_jax.parallel import distributed  # noqa: PLC0415  (flags come before JAX)

  return not distributed.is_main_process()


def _show_log() -> None:
  """As plain lines: what ours says on stdout, warnings of all on stderr."""
  once = _Told()
  news = logging.StreamHandler(sys.stdout)
  news.addFilter(lambda record: record.levelno < logging.WARNING)
  warned = logging.StreamHandler(sys.stderr)
  warned.setLevel(logging.WARNING)
  for handler in (news, warned):
    handler.addFilter(once)
  # In place of what a library may have set up by a line of its own.
  logging.basicConfig(format="%(message)s", handlers=[news, warned], force=True)
  logging.getLogger().setLevel(logging.WARNING)
  logging.getLogger("gamix_jax").setLevel(logging.INFO)


def run(
  main: Callable[[], None],
  argv: Sequence[str] | None = None,
  define: Callable[[], object] | None = None,
  text: str | None = None,
) -> int:
  """Parses the flags and runs a command; the process's exit code.

  Args:
    main: of the command.
    argv: its words; the process's if left out.
    define: see `parse`.
    text: printed for --help, instead of all that.
  """
  streams.guard()
  argv = sys.argv if argv is None else argv
  if text is not None and "--help" in argv:
    print(text)
    return 0
  _show_log()
  save_errors.silence_orbax()
  try:
    parse(argv, define)
    main()
  except UserError as e:
    return _say(str(e))
  except KeyboardInterrupt:
    return _say("interrupted; the last complete checkpoint is kept.")
  except Exception as e:
    _end_if_lost(e)
    if message := situations.told(e):
      return _say(message)
    _end_if_several(e)
    raise
  return 0


def start(main: Callable[[], None], text: str | None) -> int:
  """`run` of a command that has `--config`, by default digits'.

  That is filled in here rather than declared, since overrides
  (--config.key=value) need the file on the command line.

  Args:
    main: of the command.
    text: printed for --help.
  """
  argv = sys.argv
  if not any(a.split("=")[0].lstrip("-") == "config" for a in argv[1:]):
    argv = [argv[0], f"--config={DEFAULT_CONFIG}", *argv[1:]]
  return run(main, argv, text=text)


def _end_if_lost(error: Exception) -> None:
  """Ends one of several processes if the error is another one's end.

  At once: the usual way out would wait for the others, who wait for this one.
  """
  if "jax" in sys.modules:
    from gamix_jax.parallel import distributed  # noqa: PLC0415  (flags come before JAX)

    if message := distributed.peer_failure(error):
      _say(message, distributed.LOST)  # ends: there are several


def _end_if_several(error: Exception) -> None:
  """The same of a defect, which every process tells."""
  if "jax" in sys.modules:
    from gamix_jax.parallel import distributed  # noqa: PLC0415  (flags come before JAX)

    if distributed.is_multiprocess():
      traceback.print_exception(error)
      sys.stderr.flush()
      os._exit(1)


def _say(message: str, code: int = USAGE) -> int:
  """The exit code; of one of several processes, the end of it.

  The usual way out would wait for the others, who wait for this one.
  """
  print(f"gamix_jax: {message}", file=sys.stderr, flush=True)
  if "jax" in sys.modules:
    from gamix_jax.parallel import distributed  # noqa: PLC0415  (flags come before JAX)

    if distributed.is_multiprocess():
      os._exit(code)
  return code


def use_compilation_cache() -> None:
  """Keeps compiled steps between runs, unless JAX is told where already.

  JAX_COMPILATION_CACHE_DIR says where; set and empty, there is no cache.
  """
  import jax  # noqa: PLC0415  (flags are refused before jax is there)

  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    # JAX's own is a second, by which a fast machine keeps the step alone and
    # compiles evaluation and pictures at every start.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "gamix_jax" / "compiled"
    trim(folder, COMPILED_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(folder))
  _replace_torn()


def data_now() -> ConfigDict:
  """The section `data` of a command that reads the images of a run."""
  c = ConfigDict()
  c.source = ""  # where they lie now; "": where they lay when it was trained
  c.fingerprint = ""  # any: take others than the run was trained on
  return c


def define_data() -> None:
  """The flags --config.data.*, of a command that has no other --config."""
  c = ConfigDict()
  c.data = data_now()
  config_flags.DEFINE_config_dict("config", c.lock())


def keep_freed_memory(workdir: str) -> None:
  """Has memory kept that a trained model frees between chunks, on a CPU.

  To be called before JAX starts its threads; see `malloc`.

  Args:
    workdir: the run's, or a folder of exported weights. One without a readable
      config changes nothing: `inference.load` is about to refuse it.
  """
  from gamix_jax.inference.device import default_batch_size  # noqa: PLC0415
  from gamix_jax.inference.load import saved_config  # noqa: PLC0415
  from gamix_jax.networks import layer_bytes  # noqa: PLC0415

  with contextlib.suppress(UserError):
    config = saved_config(paths.resolve(workdir))
    batch_size = default_batch_size(image_shape(config))
    malloc.keep_freed_on_cpu(layer_bytes(config, batch_size))


def _replace_torn() -> None:
  """Deletes a kept program that cannot be read, instead of JAX's warning.

  JAX writes in place, so a kill leaves half an entry (and another process may
  meet one). It then compiles, but never writes where there is a file: every
  start to come would warn and compile again.
  """
  import jax  # noqa: PLC0415

  show = warnings.showwarning

  def hear(message, *args, **kwargs):
    found = re.match(
      r"Error reading persistent compilation cache entry for '(\w+)'",
      str(message),
    )
    if not found or not (folder := jax.config.jax_compilation_cache_dir):
      return show(message, *args, **kwargs)
    for path in Path(folder).glob(f"{found[1]}-*-cache"):
      path.unlink(missing_ok=True)

  warnings.showwarning = hear


def trim(folder: Path, most: int) -> None:
  """Deletes what was longest not written, until `most` bytes are left.

  JAX could bound its cache itself, with a lock that every start waits for and
  that needs a package more. Here two processes may do the same work, and a
  program that one of them wanted is compiled again.
  """
  files = []
  for path in folder.glob("*-cache"):
    with contextlib.suppress(FileNotFoundError):  # another one was quicker
      stat = path.stat()
      files.append((stat.st_mtime, stat.st_size, path))
  total = sum(size for _, size, _ in files)
  for _, size, path in sorted(files):
    if total <= most:
      return
    path.unlink(missing_ok=True)
    total -= size

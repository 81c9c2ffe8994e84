"""Where metrics and images of a run are shown: `config.track`.

`tensorboard`, `wandb` and `mlflow`, one or several, or `none`:

    --config.track=tensorboard,wandb

A tracker is a `Writer` that is opened with the workdir, the step that the run
continues from, and the config. A line registers one:

    @trackers.TRACKERS.register("mine")
    class Mine(Writer): ...

Those that need another package (`Tracker`) import it when they are opened. A
run that is continued is the same run of them: its id is kept in trackers.json
in the workdir. One that fails later costs no training: a warning says so, and
metrics.jsonl and images/ have everything.

Only the main process of a job writes.
"""

import contextlib
import importlib.util
from pathlib import Path

from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.registry import Registry
from gamix_jax.training.mlflow_run import Mlflow
from gamix_jax.training.tensorboard import TensorBoard
from gamix_jax.training.tracker import Tracker
from gamix_jax.training.wandb_run import Wandb
from gamix_jax.training.writer import FileWriter, MultiWriter, Writer

NONE = "none"

# Called with (folder, step, config), see the module.
TRACKERS: Registry[type[Writer]] = Registry("track")
TRACKERS.register("tensorboard", TensorBoard)
TRACKERS.register("wandb", Wandb)
TRACKERS.register("mlflow", Mlflow)


def chosen(config: ConfigDict) -> tuple[type[Writer], ...]:
  """The trackers that a config names, each once.

  Raises:
    UserError: `track` is neither a string nor a list of strings, or names
      something else.
  """
  track = config.track
  names = track.split(",") if isinstance(track, str) else track
  if not isinstance(names, list | tuple) or not all(
    isinstance(name, str) for name in names
  ):
    raise UserError(
      f"track={track!r} must be names with commas between them, such as"
      f" tensorboard,wandb, or {NONE}."
    )
  names = [name.strip() for name in names]
  if names in ([NONE], []):
    return ()
  return tuple(TRACKERS.choose(name) for name in dict.fromkeys(names))


def check_installed(config: ConfigDict) -> None:
  """Checks that the packages of a config's trackers are there.

  They are not imported, which takes seconds.

  Raises:
    UserError: one is missing, or as `chosen`.
  """
  for tracker in chosen(config):
    if issubclass(tracker, Tracker):
      spec = importlib.util.find_spec(tracker.needs[0])
      # A folder of that name in the working directory, as wandb itself makes
      # one, is a package without a file.
      if spec is None or spec.origin is None:
        raise UserError(tracker.missing("which is not installed"))


def open_writer(folder: Path, step: int, config: ConfigDict) -> Writer:
  """Opens the files of a workdir and the trackers of its config.

  Args:
    folder: the workdir, which has config.json.
    step: the step of the restored checkpoint, or 0. Entries of later steps,
      which an interrupted run wrote, are dropped or repeated.
    config: complete.

  Raises:
    UserError: the workdir cannot be written to, or a tracker cannot begin.
  """
  with contextlib.ExitStack() as stack:
    writers: list[Writer] = [FileWriter(folder, step)]
    stack.callback(writers[0].close)
    for tracker in chosen(config):
      writers.append(tracker(folder, step, config))
      stack.callback(writers[-1].close)
    stack.pop_all()  # all are open
  return MultiWriter(writers)

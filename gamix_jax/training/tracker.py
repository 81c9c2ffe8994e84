"""What trackers of other packages have in common; `trackers` is the table."""

import importlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from gamix_jax import files
from gamix_jax.errors import UserError
from gamix_jax.training.writer import Writer

log = logging.getLogger(__name__)

IDS = "trackers.json"  # in the workdir: the id of the run in each tracker


class Tracker(Writer):
  """A run of another package, which outlives processes.

  Attributes:
    name: in `config.track`.
    needs: the package, and the extra of this project that installs it.
  """

  name: ClassVar[str]
  needs: ClassVar[tuple[str, str]]

  @classmethod
  def module(cls) -> ModuleType:
    """The package.

    Raises:
      UserError: it cannot be imported.
    """
    name, _ = cls.needs
    try:
      return importlib.import_module(name)
    except ImportError as e:
      raise UserError(cls.missing(f"which cannot be imported ({e})")) from e

  @classmethod
  def missing(cls, why: str) -> str:
    """The message for a package that is not there."""
    name, extra = cls.needs
    return (
      f"track={cls.name} needs the package {name}, {why}: pip install"
      f" 'gamix_jax[{extra}]', or leave it out of --config.track."
    )

  def saved_id(self, folder: Path) -> str | None:
    """The id that `save_id` has kept in a workdir; None without.

    Raises:
      UserError: the file cannot be read.
    """
    return _ids(folder / IDS).get(self.name)

  def save_id(self, folder: Path, run: str) -> None:
    """Keeps the id of the run, for when it is continued.

    Raises:
      UserError: the workdir cannot be written to.
    """
    path = folder / IDS
    ids = _ids(path) | {self.name: run}
    files.write_text(path, json.dumps(ids, indent=1) + "\n")

  def send(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Calls; an error becomes a warning, since training must go on."""
    try:
      call(*args, **kwargs)
    # A tracker's client raises whatever its server and the network do.
    except Exception as e:
      log.warning(
        "track=%s could not send values (%s: %s). metrics.jsonl and images/ in"
        " the workdir have them.",
        *(self.name, type(e).__name__, first_line(e)),
      )


def first_line(e: BaseException) -> str:
  """The first line of an error's text, without its full stop."""
  lines = str(e).strip().splitlines() or ["no reason given"]
  return lines[0][:200].rstrip(".")


def _ids(path: Path) -> dict[str, str]:
  """The ids by the names of trackers.

  Raises:
    UserError: the file cannot be read.
  """
  if not path.exists():
    return {}
  try:
    ids = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(ids, dict) and all(isinstance(v, str) for v in ids.values()):
      return ids
    reason = "it is not what gamix_jax wrote"
  except (OSError, ValueError) as e:
    reason = getattr(e, "strerror", None) or str(e)
  raise UserError(
    f"{path} cannot be read ({reason}). It has the ids of this run in trackers;"
    " delete it to have new runs there."
  )

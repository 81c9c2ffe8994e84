"""Paths of the command line, and the folder of caches."""

import os
from pathlib import Path

from gamix_jax.errors import UserError

# Before the colon of a model that is not a folder; see `locate`.
MODEL_KINDS = ("pretrained", "hf")


def resolve(path: str | os.PathLike[str]) -> Path:
  """Makes a path absolute and expands `~` and `~name`.

  Links are not resolved. Characters such as [, *, ? and spaces have no special
  meaning.

  Raises:
    UserError: `~name` of a user that does not exist on this machine; the name
      of a model, such as `pretrained:digits`, where a folder is needed.
  """
  kind, colon, _ = str(os.fspath(path)).partition(":")
  if colon and kind in MODEL_KINDS:
    raise UserError(
      f"{path} is the name of a trained model, and a folder or file is needed "
      f"here. A folder of this name is ./{path}."
    )
  try:
    return Path(path).expanduser().absolute()
  except RuntimeError as e:  # pathlib cannot determine the home folder
    raise UserError(
      f"{path}: that home folder is not known here. Use the full path."
    ) from e


def cache_folder(name: str) -> Path:
  """~/.cache/gamix_jax/<name>, or in XDG_CACHE_HOME; it may not exist."""
  home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  return Path(home) / "gamix_jax" / name

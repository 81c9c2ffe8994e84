"""What a path on a command line means: the same in every command."""

import os
from pathlib import Path

from gamix_jax.errors import UserError


def resolve(path: str | os.PathLike[str]) -> Path:
  """An absolute path: `~` and `~name` are home folders, links stay links.

  Whatever else a name holds ([, *, ?, spaces) is part of the name.

  Raises:
    UserError: `~name` of a user whom this machine does not know.
  """
  try:
    return Path(path).expanduser().absolute()
  except RuntimeError as e:  # pathlib's, of a home that is not known
    raise UserError(
      f"{path}: that home folder is not known here. Give the full path."
    ) from e

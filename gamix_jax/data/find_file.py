"""Finds the one file that a source reads."""

from pathlib import Path

from gamix_jax import paths
from gamix_jax.data.formatting import printable
from gamix_jax.errors import UserError


def find_file(path: str, source: str, example: str) -> Path:
  """The file at a path.

  Args:
    path: as given.
    source: its name in `data.source`, for messages.
    example: what to give, for messages.

  Raises:
    UserError: there is no such file.
  """
  usage = f"Give one with --config.data.source={example}"
  if not path:
    raise UserError(f"data.source={source}: names no file. {usage}")
  file = paths.resolve(path)
  try:
    if file.is_file():
      return file
    there = file.exists()
  except (OSError, ValueError):  # a name too long, a NUL in it
    there = False
  what = "is no file" if there else "does not exist"
  raise UserError(f"The file {printable(file)} {what}. {usage}")

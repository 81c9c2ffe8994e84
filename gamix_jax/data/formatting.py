"""File names and lists of them, as text for messages."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path

MAX_LISTED = 10  # names of a list that a message has


def printable(name: str | Path) -> str:
  r"""A file name as valid UTF-8: other bytes become escapes such as \xe9."""
  return os.fsencode(name).decode("utf-8", "backslashreplace")


def listed(names: Collection[str], limit: int = MAX_LISTED) -> str:
  """The first `limit` names in one line, and how many more there are."""
  first = ", ".join(map(printable, list(names)[:limit]))
  more = len(names) - limit
  return f"{first} and {more} more" if more > 0 else first


def reasons(faults: Mapping[str, str], limit: int = MAX_LISTED) -> str:
  """A line for each of the first `limit` files: "name: reason"."""
  lines = [f"\n  {name}: {why}" for name, why in list(faults.items())[:limit]]
  more = len(faults) - limit
  return "".join(lines) + (f"\n  and {more} more" if more > 0 else "")

"""Names in what users are told: any file's name can be printed, lists end."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path

MOST = 10  # of a list that are named


def shown(name: str | Path) -> str:
  r"""A name that any text file can hold: bytes that are not UTF-8 as \xe9."""
  return os.fsencode(name).decode("utf-8", "backslashreplace")


def listed(names: Collection[str], most: int = MOST) -> str:
  """The first of some names in one line, and how many more there are."""
  first = ", ".join(map(shown, list(names)[:most]))
  more = len(names) - most
  return f"{first} and {more} more" if more > 0 else first


def reasons(faults: Mapping[str, str], most: int = MOST) -> str:
  """A line for each of the first files, its name and what ails it."""
  lines = [f"\n  {name}: {why}" for name, why in list(faults.items())[:most]]
  more = len(faults) - most
  return "".join(lines) + (f"\n  and {more} more" if more > 0 else "")

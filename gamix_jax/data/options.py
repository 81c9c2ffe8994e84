"""Options of a source: `polymnist:idx:/data/mnist?translated=1&rows=5000`.

They follow the last `?`, as `key=value` joined by `&`. A `?` that a slash
follows is part of a path.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from gamix_jax.errors import UserError

_LARGEST = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class Integer:
  """A whole number from `low` to `high`, both included; None: no default."""

  default: int | None
  low: int
  high: int = _LARGEST

  def parse(self, text: str) -> int | None:
    """The value; None if the text is none."""
    if not (text.isascii() and text.isdecimal()):
      return None
    return int(text) if self.low <= int(text) <= self.high else None

  def __str__(self) -> str:
    if self.high == _LARGEST:
      return f"a whole number, {self.low} or more"
    return f"a whole number from {self.low} to {self.high}"


@dataclasses.dataclass(frozen=True)
class Choice:
  """One of several words; the first is the default."""

  words: tuple[str, ...]

  @property
  def default(self) -> str:
    """The first word."""
    return self.words[0]

  def parse(self, text: str) -> str | None:
    """The value; None if the text is none."""
    return text if text in self.words else None

  def __str__(self) -> str:
    return " or ".join(self.words)


@dataclasses.dataclass(frozen=True)
class Word:
  """A word of any kind; none by default."""

  default: None = None

  def parse(self, text: str) -> str | None:
    """The value; None if the text is none."""
    return text or None

  def __str__(self) -> str:
    return "a word"


def split(rest: str) -> tuple[str, str]:
  """What comes before the options, and the options without their `?`."""
  where, mark, options = rest.rpartition("?")
  if not mark or "/" in options:
    return rest, ""
  return where, options


def parse(
  source: str, options: str, known: Mapping[str, Integer | Choice | Word]
) -> dict[str, Any]:
  """The values of all options.

  Args:
    source: its name, for messages.
    options: `key=value` joined by `&`; "" for none.
    known: what there is, by name.

  Raises:
    UserError: an unknown option, one that is given twice, or a value that it
      does not take.
  """
  values = {}
  for item in options.split("&") if options else ():
    key, _, text = item.partition("=")
    if key not in known:
      near = difflib.get_close_matches(key, known, 1)
      raise UserError(
        f"data.source={source}: there is no option {item!r}. "
        + (f"Did you mean {near[0]}=?" if near else _listed(known))
      )
    value = known[key].parse(text)
    if value is None or key in values:
      why = "is given twice" if key in values else f"must be {known[key]}"
      raise UserError(f"data.source={source}: the option {item!r} {why}.")
    values[key] = value
  return {key: values.get(key, option.default) for key, option in known.items()}


def _listed(known: Mapping[str, Integer | Choice | Word]) -> str:
  if not known:
    return "There are no options."
  each = [
    f"{key} ({option}"
    + (")" if option.default is None else f"; {option.default})")
    for key, option in known.items()
  ]
  return f"The options, with their defaults, are {', '.join(each)}."

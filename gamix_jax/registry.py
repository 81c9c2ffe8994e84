"""Tables of named things that a configuration key chooses from."""

from collections.abc import Callable
from typing import TypeVar

from gamix_jax.errors import UserError

T = TypeVar("T")


class Registry(dict[str, T]):
  """A dict of entries by name, which a configuration key chooses from.

      SOURCES = Registry("data.source")

      @SOURCES.register("mine")
      class Mine(Source): ...

  Attributes:
    key: of the configuration, such as "posterior.name"; for messages.
  """

  def __init__(self, key: str) -> None:
    """An empty table."""
    super().__init__()
    self.key = key

  def register(self, name: str, value: T | None = None) -> Callable[[T], T] | T:
    """Adds an entry: `register(name, value)`, or a decorator without `value`.

    Raises:
      ValueError: the name is taken.
    """
    if value is None:
      return lambda value: self.register(name, value)
    if name in self:
      raise ValueError(f"{self.key}={name!r} is registered already")
    self[name] = value
    return value

  def choose(self, name: str) -> T:
    """The entry of a name.

    Raises:
      UserError: there is none; the message lists the names.
    """
    if name not in self:
      raise UserError(f"{self.key}={name!r} must be one of {', '.join(self)}.")
    return self[name]

"""Tables of parts that a config names: posteriors, networks, data sources...

A part is one file, and one line registers it:

    @gamix_jax.posterior.POSTERIORS.register("laplace")
    class LaplaceHead(Head): ...

Users' own modules do the same. The `settings` of such a part become keys of the
config, and the config names the module, so that other commands can import it to
open the run. See docs/extending.md.
"""

import importlib
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar, overload

from gamix_jax.errors import UserError

T = TypeVar("T")

# The modules and config keys of parts from outside this package.
_modules: list[str] = []
_keys: dict[str, Any] = {}


class Registry(dict[str, T], Generic[T]):
  """A dict of parts by name, from which a config key chooses."""

  def __init__(self, key: str) -> None:
    """A table for a config key, such as "posterior.name"."""
    super().__init__()
    self.key = key

  @overload
  def register(self, name: str) -> Callable[[T], T]: ...
  @overload
  def register(self, name: str, part: T) -> T: ...
  def register(self, name: str, part: T | None = None) -> Any:
    """Adds a part; without `part`, returns a decorator that adds one.

    A module that is reloaded, as in a notebook, replaces its parts.

    Raises:
      ValueError: if another module has registered the name.
    """
    if part is None:
      return lambda part: self.register(name, part)
    module = part.__module__
    if name in self and self[name].__module__ != module:
      raise ValueError(
        f"{self.key}={name!r} is taken by {self[name].__module__}."
      )
    self[name] = part
    if module.partition(".")[0] != "gamix_jax":
      if module not in _modules:
        _modules.append(module)
      _keys.update(self.config_keys(name, part))
    return part

  def config_keys(self, name: str, part: T) -> dict[str, Any]:
    """The config keys of a part, with their defaults."""
    section = self.key.rpartition(".")[0]
    settings = getattr(part, "settings", {})
    return {f"{section}.{name}.{k}": v for k, v in settings.items()}

  def choose(self, name: str) -> T:
    """The part with a name.

    Raises:
      UserError: if there is none; the message lists all names.
    """
    check_choice(self.key, name, self)
    return self[name]


def check_choice(key: str, value: Any, choices: Iterable[str]) -> None:
  """Checks that the value of a config key is one of `choices`.

  Raises:
    UserError: if not; the message lists them.
  """
  if value not in choices:
    raise UserError(f"{key}={value!r} must be one of {', '.join(choices)}.")


def extension_modules() -> tuple[str, ...]:
  """The modules outside this package that have registered parts."""
  return tuple(_modules)


def extension_keys() -> dict[str, Any]:
  """The config keys of their parts, with defaults."""
  return dict(_keys)


def import_extensions(modules: Iterable[str]) -> None:
  """Imports modules that register parts.

  Raises:
    UserError: if there is no such module.
  """
  for module in modules:
    try:
      importlib.import_module(module)
    except ModuleNotFoundError as e:
      if e.name != module.partition(".")[0] and e.name != module:
        raise
      raise UserError(
        f"The config's extensions name the module {module!r}, which cannot be "
        "imported; put its folder on PYTHONPATH."
      ) from e

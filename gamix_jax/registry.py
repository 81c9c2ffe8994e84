"""Tables of parts that a config names: posteriors, networks, data sources...

A part is written in one file and registered by one line:

    @gamix_jax.posterior.POSTERIORS.register("laplace")
    class LaplaceHead(Head): ...

A user's own module does the same. Keys of its own that such a part has
(`settings`) become keys of the config, and the config names the module, so
that a run can be opened wherever the module can be imported. See
docs/extending.md.
"""

import importlib
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar, overload

from gamix_jax.errors import UserError

T = TypeVar("T")

# Of parts from outside this package: their modules, and their config keys.
_modules: list[str] = []
_keys: dict[str, Any] = {}


class Registry(dict[str, T], Generic[T]):
  """Parts by the name that a config key gives them."""

  def __init__(self, key: str) -> None:
    """A table for a config key, such as "posterior.name"."""
    super().__init__()
    self.key = key

  @overload
  def register(self, name: str) -> Callable[[T], T]: ...
  @overload
  def register(self, name: str, part: T) -> T: ...
  def register(self, name: str, part: T | None = None) -> Any:
    """Adds a part; without one, a decorator that does.

    A module that is imported again, as in a notebook, replaces its parts.

    Raises:
      ValueError: the name is taken by a part of another module.
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
    """Config keys that a part brings with it, with their defaults."""
    section = self.key.rpartition(".")[0]
    settings = getattr(part, "settings", {})
    return {f"{section}.{name}.{k}": v for k, v in settings.items()}

  def choose(self, name: str) -> T:
    """The part of a name.

    Raises:
      UserError: there is none; names those that there are.
    """
    check_choice(self.key, name, self)
    return self[name]


def check_choice(key: str, value: Any, choices: Iterable[str]) -> None:
  """Refuses a config key's value that is none of some names.

  Raises:
    UserError: as said; it lists them.
  """
  if value not in choices:
    raise UserError(f"{key}={value!r} must be one of {', '.join(choices)}.")


def extension_modules() -> tuple[str, ...]:
  """Modules outside this package that have registered parts."""
  return tuple(_modules)


def extension_keys() -> dict[str, Any]:
  """The config keys of their parts, with defaults."""
  return dict(_keys)


def import_extensions(modules: Iterable[str]) -> None:
  """Imports modules that register parts.

  Raises:
    UserError: one cannot be found.
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

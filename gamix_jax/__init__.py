"""GAMIX-VAE in JAX and Flax."""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["Model", "load"]


def __getattr__(name: str) -> Any:
  # On demand, so that `import gamix_jax` and the commands' flags do not wait
  # for JAX.
  if name in __all__:
    return getattr(importlib.import_module("gamix_jax.inference"), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

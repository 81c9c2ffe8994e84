"""GAMIX-VAE in JAX and Flax."""

import importlib
from typing import Any

__version__ = "0.2.0"
__all__ = ["Model", "MultimodalModel", "load", "train"]
_HOME = {
  "Model": "inference",
  "MultimodalModel": "inference",
  "load": "inference",
  "train": "training.loop",
}


def __getattr__(name: str) -> Any:
  # On demand, so that `import gamix_jax` and the commands' flags do not wait
  # for JAX.
  if name in _HOME:
    module = importlib.import_module(f"gamix_jax.{_HOME[name]}")
    return getattr(module, name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

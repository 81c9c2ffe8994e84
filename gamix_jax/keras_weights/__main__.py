"""Imports the reference's Keras weights: python -m gamix_jax.keras_weights.

--weights=FILE.h5            the reference's .weights.h5
--config=configs/celeba_hq.py     config of the model, or a saved config.json
--config.data.source=folder:faces      any key, see gamix_jax/config.py
--workdir=runs/published     the workdir to create; gamix_jax.load opens it,
                             gamix_jax.main continues the training
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from gamix_jax import cli
from gamix_jax import config as configs
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError


def get_config(path: str) -> ConfigDict:
  """Reads a saved config; `config_flags` calls it for FILE.py:PATH."""
  if not Path(path).is_file():
    raise UserError(f"--config={path}: there is no such file.")
  return configs.read(Path(path))


def _with_json(argv: Sequence[str]) -> Iterator[str]:
  """Replaces --config=x.json with --config=(this file):x.json."""
  previous = ""
  for arg in argv:
    name, equals, value = arg.rpartition("=")
    is_json = "--config" in (name, previous) and value.endswith(".json")
    yield f"{name}{equals}{__file__}:{value}" if is_json else arg
    previous = arg


def main() -> None:
  """Imports the weights that the flags specify."""
  from gamix_jax.keras_weights import (  # noqa: PLC0415  (flags come first)
    import_weights,
  )

  given = flags.FLAGS
  for name in ("weights", "config", "workdir"):
    if getattr(given, name) is None:
      raise UserError(f"--{name} is missing; --help shows the command.")
  imported = import_weights(given.weights, given.config, given.workdir)
  count = sum(value.size for value in imported.values.values())
  moments = "with" if imported.adam else "without"
  print(
    f"{given.workdir}: {count:,} weights at step {imported.step}, {moments} "
    "Adam's moments."
  )


if __name__ == "__main__":
  # Here, because `config_flags` loads this file again to call `get_config`.
  flags.DEFINE_string("weights", None, "The reference's .weights.h5.")
  flags.DEFINE_string("workdir", None, "The workdir to create.")
  config_flags.DEFINE_config_file(
    "config", None, "A config file, or a config.json."
  )
  sys.exit(cli.run(main, list(_with_json(sys.argv)), text=__doc__))

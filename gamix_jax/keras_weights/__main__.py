"""The reference's weights in, a workdir out: python -m gamix_jax.keras_weights.

--weights=FILE.h5            the reference's .weights.h5
--config=configs/celeba_hq.py     the model's config, or a saved config.json
--config.data.source=folder:faces      any key, see gamix_jax/config.py
--workdir=runs/published     the folder to make; `gamix_jax.load` opens it and
                             gamix_jax.main continues it
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
  """A saved config, for `config_flags`: it reads FILE.py:PATH by this."""
  if not Path(path).is_file():
    raise UserError(f"--config={path}: there is no such file.")
  return configs.read(Path(path))


def _with_json(argv: Sequence[str]) -> Iterator[str]:
  """--config=x.json becomes --config=(this file):x.json."""
  before = ""
  for word in argv:
    name, equals, value = word.rpartition("=")
    mine = "--config" in (name, before) and value.endswith(".json")
    yield f"{name}{equals}{__file__}:{value}" if mine else word
    before = word


def main() -> None:
  """Imports as the flags say."""
  from gamix_jax.keras_weights import (  # noqa: PLC0415  (flags come first)
    import_weights,
  )

  given = flags.FLAGS
  for name in ("weights", "config", "workdir"):
    if getattr(given, name) is None:
      raise UserError(f"--{name} is missing; --help shows the command.")
  found = import_weights(given.weights, given.config, given.workdir)
  count = sum(value.size for value in found.values.values())
  moments = "with" if found.adam else "without"
  print(
    f"{given.workdir}: {count:,} weights at step {found.step}, {moments} "
    "Adam's moments."
  )


if __name__ == "__main__":
  # Not above, for `get_config` is reached by loading this file once more.
  flags.DEFINE_string("weights", None, "The reference's .weights.h5.")
  flags.DEFINE_string("workdir", None, "The folder to make.")
  config_flags.DEFINE_config_file("config", None, "A config, or config.json.")
  sys.exit(cli.run(main, list(_with_json(sys.argv)), text=__doc__))

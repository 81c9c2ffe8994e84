"""Compares families and objectives: python -m gamix_jax.compare.

--families=gaussian/elbo,mixture:4/gamix:quadratic
                             posterior[:components]/objective[:population],
                             and after it, if need be, weights of terms:
                             gaussian/elbo@kl=0.5 or
                             gaussian/gamix@population_kl=30@collapse_penalty=0.3.
                             Other weights are the config's, or its preset's
--config=configs/digits.py   what all share; digits if left out
--config.steps=300           any key, see gamix_jax/config.py
--seeds=3                    runs of each, with config.seed, +1, +2
--workdir=runs/compare       all that is written: compare.md, compare.csv,
                             compare.png, front.png (reconstruction against
                             samples), and every run in a folder; the same
                             command again continues it
"""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from gamix_jax import cli, paths, presets
from gamix_jax.cpu import malloc
from gamix_jax.errors import UserError


def main() -> None:
  """Compares as the flags say.

  Raises:
    UserError: before any training, whatever is wrong with flags and config.
  """
  given = flags.FLAGS
  if not given.families:
    raise UserError("--families is missing; --help shows the command.")
  if given.seeds < 1:
    raise UserError(f"--seeds={given.seeds} must be 1 or more.")
  # Of a copy: what a preset leaves open is each family's own.
  shared = presets.complete(given.config.copy_and_resolve_references())
  cli.use_compilation_cache()
  # Here, since the comparison uses JAX before its first training does this.
  from gamix_jax.networks import layer_bytes  # noqa: PLC0415  (flags come first)

  malloc.keep_freed_on_cpu(layer_bytes(shared))
  from gamix_jax.compare.loop import compare  # noqa: PLC0415

  name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
  workdir = paths.resolve(given.workdir or f"runs/compare_{name}")
  compare(given.config, given.families, given.seeds, workdir)


if __name__ == "__main__":
  flags.DEFINE_list("families", None, "What to compare.")
  flags.DEFINE_integer("seeds", 3, "Runs of each.")
  flags.DEFINE_string("workdir", None, "Where the comparison is kept.")
  config_flags.DEFINE_config_file("config", None, "A config, and its keys.")
  sys.exit(cli.start(main, __doc__))

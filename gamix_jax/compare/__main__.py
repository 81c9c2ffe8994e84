"""Compares families and objectives: python -m gamix_jax.compare.

--families=gaussian/elbo,mixture:4/gamix:quadratic
                             posterior[:components]/objective[:population],
                             optionally followed by weights of terms:
                             gaussian/elbo@kl=0.5 or
                             gaussian/gamix@population_kl=30@collapse_penalty=0.3.
                             Other weights are the config's, or its preset's;
                             of several modalities (data.modalities)
                             fusion[:components]/objective[:variant], such as
                             separate/mmvm:surrogate,attention:4/masked@kl=2
--config=configs/digits.py   config that all runs share; default: digits
--config.steps=300           any key, see gamix_jax/config.py
--sources=gmm,two_stage      also judge samples from these latent sources,
                             fitted to each model: population, gmm, two_stage;
                             samples of the prior always are
--classifier_steps=4000      of training the classifier whose features judge;
                             default: as evaluate
--seeds=3                    runs per family, with config.seed, +1, +2
--workdir=runs/compare       output folder: compare.md, compare.csv,
                             compare.png, front.png (reconstruction against
                             samples; of several modalities against probes
                             and coherences), and one folder per run; the
                             same command continues the comparison
"""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from gamix_jax import cli, paths, presets
from gamix_jax.cpu import malloc
from gamix_jax.errors import UserError


def main() -> None:
  """Runs the comparison that the flags specify.

  Raises:
    UserError: if flags or config are invalid, before any training.
  """
  given = flags.FLAGS
  if not given.families:
    raise UserError("--families is missing; --help shows the command.")
  if given.seeds < 1:
    raise UserError(f"--seeds={given.seeds} must be 1 or more.")
  # A copy: values that a preset chooses may differ between families.
  shared = presets.complete(given.config.copy_and_resolve_references())
  cli.use_compilation_cache()
  # Here, since the comparison uses JAX before the first training does this.
  from gamix_jax.networks import layer_bytes  # noqa: PLC0415  (flags come first)

  malloc.keep_freed_on_cpu(layer_bytes(shared))
  from gamix_jax.compare.loop import compare  # noqa: PLC0415

  name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
  workdir = paths.resolve(given.workdir or f"runs/compare_{name}")
  compare(
    given.config,
    given.families,
    given.seeds,
    workdir,
    given.sources,
    given.classifier_steps,
  )


if __name__ == "__main__":
  flags.DEFINE_list("families", None, "The families to compare.")
  flags.DEFINE_list("sources", [], "Further sources of latents.")
  flags.DEFINE_integer("seeds", 3, "Runs per family.")
  flags.DEFINE_integer(
    "classifier_steps", 0, "Of the judge's training.", lower_bound=0
  )
  flags.DEFINE_string("workdir", None, "Output folder.")
  config_flags.DEFINE_config_file("config", None, "A config file.")
  sys.exit(cli.start(main, __doc__))

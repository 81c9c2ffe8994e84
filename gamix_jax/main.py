"""Trains a model: python -m gamix_jax.main [--config=FILE] [--workdir=DIR].

--config=configs/digits.py          what to train; digits if left out
--config=configs/celeba.py:tiny     its tiny variant, on synthetic images
--config.optim.vae.learning_rate=1e-3     any key, see gamix_jax/config.py
--workdir=runs/digits               all that the run writes; the same command
                                    again continues it
--multihost     one of several processes, as a TPU pod, srun or a JobSet say
--coordinator=HOST:PORT --num_processes=N --process_id=I     where none does

Compiled steps are kept in ~/.cache/gamix_jax/compiled, up to 1 GiB; the
variable JAX_COMPILATION_CACHE_DIR names another folder, or none if it is empty.
"""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from gamix_jax import cli, presets
from gamix_jax.cpu import malloc

CONFIG = config_flags.DEFINE_config_file(
  "config", default=None, help_string="A file of configs/, and its keys."
)
WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where the run is kept; runs/<config> if left out."
)
MULTIHOST = flags.DEFINE_bool(
  "multihost", False, "Whether this is one of several processes."
)
COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "Address and port of process 0."
)
NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "Of the run, on all hosts."
)
PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "This one's number, from 0."
)


def main() -> None:
  """Trains as the flags say."""
  presets.complete(CONFIG.value)
  from gamix_jax.networks import layer_bytes  # noqa: PLC0415  (flags come first)

  malloc.keep_freed_on_cpu(layer_bytes(CONFIG.value))
  cli.use_compilation_cache()
  from gamix_jax.parallel import distributed  # noqa: PLC0415

  distributed.initialize(
    MULTIHOST.value, COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value
  )
  from gamix_jax.training import loop  # noqa: PLC0415

  name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
  loop.train(CONFIG.value, WORKDIR.value or f"runs/{name}")


if __name__ == "__main__":
  sys.exit(cli.start(main, __doc__))

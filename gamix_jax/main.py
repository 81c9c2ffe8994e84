"""Trains a model: python -m gamix_jax.main [--config=FILE] [--workdir=DIR].

--config=configs/digits.py          what to train; default: digits
--config=configs/celeba.py:tiny     its tiny variant, on synthetic images
--config.optim.vae.learning_rate=1e-3     any key, see gamix_jax/config.py
--workdir=runs/digits               output folder; the same command continues
                                    the run in it
--multihost     fail if no TPU pod, Slurm step or JobSet is detected
--coordinator=HOST:PORT --num_processes=N --process_id=I     set them by hand

Compiled steps are cached in ~/.cache/gamix_jax/compiled, up to 1 GiB. Set
JAX_COMPILATION_CACHE_DIR to use another folder, or to "" to disable the cache.
"""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from gamix_jax import cli, presets
from gamix_jax.cpu import malloc

CONFIG = config_flags.DEFINE_config_file(
  "config", default=None, help_string="A config file; its keys are flags, too."
)
WORKDIR = flags.DEFINE_string(
  "workdir", None, "Output folder of the run; default: runs/<config>."
)
MULTIHOST = flags.DEFINE_bool(
  "multihost", False, "Fail if no TPU pod, Slurm step or JobSet is detected."
)
COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "Address and port of process 0."
)
NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "Number of processes of the run, on all hosts."
)
PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "Index of this process, from 0."
)


def main() -> None:
  """Trains with the config and workdir of the flags."""
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

"""Times the training step: python -m benchmarks.step, from a checkout's root.

--config=configs/celeba.py      the config; default: digits
--config.dtype=float32          any key, as for gamix_jax.main
--batch=8                       images per step; default: data.batch_size
--steps=20                      minimum number of steps to time
--against=torch                 also time the same step in PyTorch, in turns;
                                needs pip install -e '.[bench]'
--against=eager-jax             also time two separate gradients without jit
--torch_compile                 compile PyTorch's networks; default: eager
--torch_layout=contiguous       NCHW in memory; default: channels-last
--only=torch                    time one of the two (ours, torch), unchecked
--cached                        load our step from the compilation cache, as a
                                second start does, instead of compiling it
--nofirst                       do not measure the time to the first step
--json=FILE                     also write the results to this file

The step is the one that training runs, on images that are on the device.
Another step is timed only after its results were found to agree. Beside
PyTorch the learning rate is constant.
"""

import json
import os
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from benchmarks import first_step, flops
from gamix_jax import cli, config, presets
from gamix_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file("config", default=None)
BATCH = flags.DEFINE_integer("batch", None, "Images per step.")
STEPS = flags.DEFINE_integer(
  "steps", 20, "Minimum number of steps to time.", lower_bound=1
)
AGAINST = flags.DEFINE_enum("against", None, ["torch", "eager-jax"], "")
TORCH_COMPILE = flags.DEFINE_bool("torch_compile", False, "")
TORCH_LAYOUT = flags.DEFINE_enum(
  "torch_layout", "channels_last", ["channels_last", "contiguous"], ""
)
ONLY = flags.DEFINE_enum("only", None, ["ours", "torch"], "")
CACHED = flags.DEFINE_bool("cached", False, "")
TIME_FIRST = flags.DEFINE_bool("first", True, "Whether to time the first step.")
JSON = flags.DEFINE_string("json", None, "Also write the results to this file.")


def main() -> None:
  """Runs the measurements that the flags ask for and prints a table."""
  c = CONFIG.value
  if BATCH.value is not None:
    c.data.batch_size = BATCH.value
  if AGAINST.value == "torch":
    for net in (c.optim.vae, c.optim.disc):
      net.warmup, net.schedule = 0, "constant"
  presets.complete(c)
  flops.check(c)
  if ONLY.value and AGAINST.value != "torch":
    raise UserError("--only needs --against=torch, too.")
  if CACHED.value and AGAINST.value and ONLY.value != "ours":
    raise UserError("--cached applies to our step only: add --only=ours.")
  if AGAINST.value == "torch":
    # By default, JAX allocates three quarters of a GPU's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    _check_torch(c)

  from benchmarks import measure  # noqa: PLC0415 (after the checks)

  results = measure.measure(
    c,
    steps=STEPS.value,
    against=AGAINST.value,
    torch_compile=TORCH_COMPILE.value,
    torch_layout=TORCH_LAYOUT.value,
    only=ONLY.value,
    cached=CACHED.value,
  )
  if TIME_FIRST.value and ONLY.value != "torch":
    measure.say("timing the first step, twice")
    results["first_step"] = first_step.measure(c)
  print(measure.table(results), flush=True)
  if JSON.value:
    Path(JSON.value).write_text(json.dumps(results, indent=1) + "\n")


def _check_torch(c: config.ConfigDict) -> None:
  """Checks that PyTorch is installed and that the baseline supports the config.

  Raises:
    UserError: if not; says what to install or to change.
  """
  try:
    import torch  # noqa: F401, PLC0415
  except ImportError as e:
    raise UserError(
      "--against=torch needs PyTorch: pip install -e '.[bench]'."
    ) from e
  from benchmarks import torch_baseline  # noqa: PLC0415

  torch_baseline.check(c)


if __name__ == "__main__":
  sys.exit(cli.start(main, __doc__))

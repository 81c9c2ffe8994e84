"""Times the training step: python -m benchmarks.step, from a checkout's root.

--config=configs/celeba.py      what is trained; digits if left out
--config.dtype=float32          any key, as for gamix_jax.main
--batch=8                       images a step; else data.batch_size
--steps=20                      to be timed of each, at least
--against=torch                 the same step in PyTorch, in turns; needs
                                pip install -e '.[bench]'
--against=eager-jax             with two separate gradients and nothing fused
--torch_compile                 PyTorch's compiled, else eager
--torch_layout=contiguous       NCHW in memory; else channels-last
--only=torch                    of the two one alone, unchecked (ours, torch)
--cached                        ours as a second start has it: not compiled, but
                                read from the compilation cache
--nofirst                       without the time to a first step
--json=FILE                     the numbers as well

The step is the one that a training runs, on images that are on the device.
Another step is timed beside it only after it was found to compute the same
numbers.
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
BATCH = flags.DEFINE_integer("batch", None, "Images a step.")
STEPS = flags.DEFINE_integer("steps", 20, "To be timed.", lower_bound=1)
AGAINST = flags.DEFINE_enum("against", None, ["torch", "eager-jax"], "")
TORCH_COMPILE = flags.DEFINE_bool("torch_compile", False, "")
TORCH_LAYOUT = flags.DEFINE_enum(
  "torch_layout", "channels_last", ["channels_last", "contiguous"], ""
)
ONLY = flags.DEFINE_enum("only", None, ["ours", "torch"], "")
CACHED = flags.DEFINE_bool("cached", False, "")
FIRST = flags.DEFINE_bool("first", True, "Whether to time a first step.")
JSON = flags.DEFINE_string("json", None, "Where the numbers go.")


def main() -> None:
  """Times as the flags say, prints a table."""
  c = CONFIG.value
  if BATCH.value is not None:
    c.data.batch_size = BATCH.value
  presets.complete(c)
  flops.check(c)
  if ONLY.value and AGAINST.value != "torch":
    raise UserError("--only chooses one of two: give --against=torch too.")
  if CACHED.value and AGAINST.value and ONLY.value != "ours":
    raise UserError("--cached is of ours alone: give --only=ours.")
  if AGAINST.value == "torch":
    # JAX would take three quarters of a GPU's memory for itself.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    _check_torch(c)

  from benchmarks import measure  # noqa: PLC0415 (mistakes are told first_step)

  found = measure.measure(
    c,
    steps=STEPS.value,
    against=AGAINST.value,
    torch_compile=TORCH_COMPILE.value,
    torch_layout=TORCH_LAYOUT.value,
    only=ONLY.value,
    cached=CACHED.value,
  )
  if FIRST.value and ONLY.value != "torch":
    measure.say("a first step, twice")
    found["first_step"] = first_step.measure(c)
  print(measure.table(found), flush=True)
  if JSON.value:
    Path(JSON.value).write_text(json.dumps(found, indent=1) + "\n")


def _check_torch(c: config.ConfigDict) -> None:
  """Refuses to begin without PyTorch, or with what the twin does not have.

  Raises:
    UserError: says what to install or to change.
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

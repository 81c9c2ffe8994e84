"""Times MMVM's training step beside the same model in plain PyTorch.

  python -m benchmarks.multimodal_step, from a checkout's root:

--config=configs/polymnist.py   the config; this is the default
--config.model.latent=32        any key, as for gamix_jax.main
--batch=64                      observations per step; default: data.batch_size
--steps=50                      minimum number of steps to time
--json=FILE                     also write the results to this file

The config's modalities must be images with the likelihood l1 or l2; its
objective, posterior and networks those of `torch_multimodal.SUPPORTED`. The
learning rate is constant. PyTorch is timed with images in both memory layouts,
and compared with the faster one. All run in turns, on batches that are on the
device, after the two were found to compute the same. Needs pip install -e
'.[bench]'.
"""

import json
import os
import platform
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from gamix_jax import cli, config, presets
from gamix_jax.cpu import malloc
from gamix_jax.errors import UserError

OURS, LAST, FIRST = "gamix_jax", "PyTorch, channels-last", "PyTorch, contiguous"


def define() -> None:
  """Defines the flags; not at import, since other commands have the same."""
  config_flags.DEFINE_config_file("config", default=None)
  flags.DEFINE_integer("batch", None, "Observations per step.", lower_bound=1)
  flags.DEFINE_integer(
    "steps", 50, "Minimum number of steps to time.", lower_bound=1
  )
  flags.DEFINE_string("json", None, "Also write the results to this file.")


def main() -> None:
  """Compares the two steps, times them and prints a table."""
  given = flags.FLAGS
  c = given.config
  if given.batch is not None:
    c.data.batch_size = given.batch
  c.optim.vae.warmup, c.optim.vae.schedule = 0, "constant"
  presets.complete(c)
  try:
    import torch  # noqa: F401, PLC0415
  except ImportError as e:
    raise UserError(
      "This comparison needs PyTorch: pip install -e '.[bench]'."
    ) from e
  results = measure(c, given.steps)
  print(table(results), flush=True)
  if given.json:
    Path(given.json).write_text(json.dumps(results, indent=1) + "\n")


def measure(c: config.ConfigDict, steps: int) -> dict:
  """Compares and times the steps of a complete config; see `table`.

  Raises:
    UserError: if the baseline does not support the config.
    MismatchError: if the two compute something else.
  """
  from gamix_jax.networks import layer_bytes  # noqa: PLC0415 (flags first)

  malloc.keep_freed_on_cpu(layer_bytes(c))
  import jax  # noqa: PLC0415
  import torch  # noqa: PLC0415

  from benchmarks import (  # noqa: PLC0415
    jax_step,
    timing,
    torch_baseline,
    torch_multimodal,
  )
  from benchmarks.measure import say  # noqa: PLC0415

  jax.config.update("jax_enable_compilation_cache", False)
  cores = len(os.sched_getaffinity(0))
  torch.set_num_threads(cores)  # XLA uses all cores, too
  ours = jax_step.JaxStep(c)
  torch_multimodal.check(c, ours.spec.modalities)
  device = torch_baseline.same_device()
  say("comparing with PyTorch, in float64")
  agreement = torch_multimodal.compare(c)
  say("compiling the step")
  batch = torch_multimodal.batch_of(ours.spec, c.data.batch_size, 0)
  ours.begin(batch)
  state = jax.device_get(ours.state)
  ours.compile()
  runners = {OURS: ours.run}
  for name, last in ((LAST, True), (FIRST, False)):
    runners[name], count = torch_multimodal.runner(
      c, ours.spec, state, last, device
    )
  parameters = sum(v.size for v in jax.tree.leaves(state.vae.params))
  if parameters != count:
    raise RuntimeError(f"{parameters} parameters here, {count} in PyTorch")
  say("timing")
  load = os.getloadavg()[0]
  spreads = timing.in_turns(runners, steps)
  medians = {k: v.median for k, v in spreads.items()}
  fastest = min((LAST, FIRST), key=medians.get)
  return {
    "machine": {
      "device": jax.devices()[0].device_kind,
      "cores": cores,
      "load": load,
      "python": platform.python_version(),
      "jax": jax.__version__,
      "torch": torch.__version__,
      "torch_threads": torch.get_num_threads(),
    },
    "config": {
      "modalities": list(c.data.modalities),
      "batch": c.data.batch_size,
      "latent": c.model.latent,
      "parameters": parameters,
    },
    "agreement": agreement,
    "rows": {
      k: v._asdict() | {"steps_per_second": 1 / v.median}
      for k, v in spreads.items()
    },
    "fastest": fastest,
    "ratio": medians[fastest] / medians[OURS],
  }


def table(results: dict) -> str:
  """Returns the results as text."""
  from benchmarks import timing  # noqa: PLC0415 (it imports JAX)

  machine, c = results["machine"], results["config"]
  lines = [
    f"{machine['device']}, {machine['cores']} cores, load {machine['load']:.1f}"
    f" before; Python {machine['python']}, jax {machine['jax']}, torch "
    f"{machine['torch']} with {machine['torch_threads']} threads",
    f"{len(c['modalities'])} modalities ({c['modalities'][0]}, ...), batch "
    f"{c['batch']}, latent {c['latent']}, {c['parameters']:,} parameters",
    "Both agree in float64, up to: "
    + ", ".join(f"{k} {v:.1g}" for k, v in results["agreement"].items()),
    "",
    f"{'':<24}{'ms/step (quartiles)':<26}{'steps/s':>8}",
  ]
  for name, row in results["rows"].items():
    spread = timing.Spread(*(row[k] for k in timing.Spread._fields))
    lines.append(
      f"{name:<24}{spread.milliseconds():<26}{row['steps_per_second']:>8.3g}"
    )
  lines.append(
    f"{OURS} is {results['ratio']:.3g} times as fast as: {results['fastest']}"
  )
  return "\n".join(lines)


if __name__ == "__main__":
  define()
  sys.exit(cli.start(main, __doc__, default="polymnist.py"))

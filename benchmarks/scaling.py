"""How a step's cost grows: python -m benchmarks.scaling, from the root.

--config=configs/celeba.py      where each row starts from; digits if left out
--steps=20                      to be timed of each row, at least
--axes=batch,latent             of size, batch, components, latent, devices
--json=FILE                     the rows as well

One thing is changed at a time, and each row is a process of its own, since what
the memory is kept for is said once a process. Beside each time stands the law:
the arithmetic counted by hand, which goes with pixels x batch and with the
decoder's passes, one for each component. Memory is the compiled program's, of a
device.

Devices are emulated where there is no accelerator: parts of one machine's
cores, so that the global batch is divided and summed as on several devices
while nothing gets quicker. Their rows show what dividing costs and that memory
a device shrinks, not how fast several devices are.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import config_flags

from benchmarks import flops
from gamix_jax import cli, config, presets
from gamix_jax.errors import UserError
from gamix_jax.networks.resnet import bottleneck_channels

AXES = {
  "size": (0.5, 1, 2, 4),  # times the config's
  "batch": (0.25, 0.5, 1, 2),
  "components": (1, 2, 4, 8),  # of a mixture
  "latent": (0.5, 1, 8, 32),
  "devices": (1, 2, 4),
}
UNITS = {
  "size": "pixel of a square image",
  "batch": "image",
  "components": "component",
  "latent": "latent",
}
ROOT = Path(__file__).parents[1]


def define() -> None:
  """The flags; not at import, so that other commands' are not in the way."""
  config_flags.DEFINE_config_file("config", default=None)
  flags.DEFINE_integer("steps", 20, "To be timed.", lower_bound=1)
  flags.DEFINE_list("axes", list(AXES), "What is changed.")
  flags.DEFINE_string("json", None, "Where the rows go.")


def changed(c: config.ConfigDict, axis: str, times: float) -> tuple:
  """A copy of a config with one thing changed, and the value it has now."""
  c = config.from_json(config.to_json(c))
  value = int(times)
  if axis == "size":
    h, w, _ = config.image_shape(c)
    c.data.image_size = (int(h * times), int(w * times))
    value = c.data.image_size[0]
  elif axis == "batch":
    value = c.data.batch_size = max(int(c.data.batch_size * times), 2)
  elif axis == "components":
    c.posterior.name, c.posterior.components = "mixture", value
  elif axis == "latent":
    if "resnet" in (c.model.encoder, c.model.decoder):
      # The features behind it are kept, else they would grow with it.
      c.model.bottleneck_channels = bottleneck_channels(c.model)
    value = c.model.latent = max(int(c.model.latent * times), 1)
  presets.complete(c)
  flops.check(c)
  return c, value


def by_hand(c: config.ConfigDict) -> float:
  """FLOP a step, without products with padding, which XLA does not count."""
  return flops.per_image(c, edges=True)["total"] * c.data.batch_size


def measure(c: config.ConfigDict, steps: int, devices: int | None) -> dict:
  """A row, from a process of its own; on some emulated devices if told."""
  env = dict(os.environ)
  if devices:
    flag = f"--xla_force_host_platform_device_count={devices}"
    env["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder)
    (path / "config.json").write_text(config.to_json(c))
    (path / "config.py").write_text(
      "from pathlib import Path\n"
      "from gamix_jax import config\n"
      "def get_config():\n"
      "  path = Path(__file__).with_name('config.json')\n"
      "  return config.from_json(path.read_text())\n"
    )
    ran = subprocess.run(
      [
        *(sys.executable, "-m", "benchmarks.step", "--nofirst"),
        *(f"--config={path}/config.py", f"--steps={steps}"),
        f"--json={path}/found.json",
      ],
      cwd=ROOT,
      env=env,
      capture_output=True,
      text=True,
      check=False,
    )
    if ran.returncode:
      raise RuntimeError(f"a row failed:\n{ran.stderr}")
    found = json.loads((path / "found.json").read_text())
  return {
    "ms": 1e3 * found["rows"]["gamix_jax"]["median"],
    "hand": by_hand(c),
    # Of the program of one.
    "xla": found["program_flop"] * found["machine"]["devices"],
    "mebibytes": found["memory"]["program"] / 2**20,
  }


def main() -> None:
  """Prints a table for each axis, and its laws."""
  given = flags.FLAGS
  if wrong := set(given.axes) - set(AXES):
    raise UserError(f"--axes={min(wrong)} must be one of {', '.join(AXES)}.")
  found = []
  print(
    f"{'':<12}{'':>6}{'ms a step':>11}{'GFLOP by hand':>15}{'by XLA':>9}"
    f"{'MiB':>8}{'ns/kFLOP':>10}"
  )
  for axis in given.axes:
    # All of them, so that a mistake is told before anything is timed.
    pairs = [changed(given.config, axis, times) for times in AXES[axis]]
    rows = []
    for c, value in pairs:
      devices = value if axis == "devices" else None
      row = {"axis": axis, "value": value} | measure(c, given.steps, devices)
      rows.append(row)
      print(
        f"{axis:<12}{row['value']:>6}{row['ms']:>11.4g}"
        f"{row['hand'] / 1e9:>15.4g}{row['xla'] / 1e9:>9.4g}"
        f"{row['mebibytes']:>8.1f}{1e9 * row['ms'] / row['hand']:>10.3g}",
        flush=True,
      )
    print(law(axis, rows) + "\n", flush=True)
    found += rows
  if given.json:
    Path(given.json).write_text(json.dumps(found, indent=1) + "\n")


def law(axis: str, rows: list[dict]) -> str:
  """What the rows of an axis follow, one line."""
  x = np.array([r["value"] for r in rows], float)
  ms, hand, mebibytes = (
    np.array([r[k] for r in rows]) for k in ("ms", "hand", "mebibytes")
  )
  said = f"{axis}: time ~ {axis}^{_slope(x, ms):.2f}"
  said += f", arithmetic ~ {axis}^{_slope(x, hand):.2f}"
  if axis == "size":
    x = x**2
  b, a = np.polyfit(x, mebibytes, 1)
  off = np.max(np.abs(a + b * x - mebibytes) / mebibytes)
  unit = UNITS.get(axis)
  said += (
    f"; memory {a:.4g} + {b:.3g} MiB for each {unit}, off by {off:.0%} at most"
    if axis != "devices"
    else f"; memory a device ~ devices^{_slope(x, mebibytes):.2f}"
  )
  return said


def _slope(x: np.ndarray, y: np.ndarray) -> float:
  """The exponent p of y ~ x^p."""
  if math.isclose(min(y), max(y)):
    return 0.0
  return float(np.polyfit(np.log(x), np.log(y), 1)[0])


if __name__ == "__main__":
  define()
  sys.exit(cli.start(main, __doc__))

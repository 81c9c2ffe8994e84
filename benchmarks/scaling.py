"""Measures how a step's cost grows.

  python -m benchmarks.scaling, from a checkout's root:

--config=configs/celeba.py      the base of all rows; default: digits
--steps=20                      minimum number of steps to time per row
--axes=batch,latent             of size, batch, components, latent, devices
--json=FILE                     also write the rows to this file

Each row changes one setting and is a process of its own, since malloc is
configured once per process. Next to each time is the analytic FLOP count, which
grows with pixels x batch and with the decoder's passes, one per component.
Memory is that of the compiled program, per device.

Without an accelerator, devices are emulated: they share one machine's cores, so
the global batch is divided and summed as on several devices, but nothing gets
faster. These rows show the cost of dividing and that memory per device shrinks,
not the speed of several devices.
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
  """Defines the flags; not at import, since other commands have the same."""
  config_flags.DEFINE_config_file("config", default=None)
  flags.DEFINE_integer(
    "steps", 20, "Minimum number of steps to time.", lower_bound=1
  )
  flags.DEFINE_list("axes", list(AXES), "Settings to vary.")
  flags.DEFINE_string("json", None, "Also write the rows to this file.")


def changed(c: config.ConfigDict, axis: str, times: float) -> tuple:
  """Returns a copy of a config with one setting changed, and its new value."""
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
      # Keep the bottleneck, which would grow with the latent size otherwise.
      c.model.bottleneck_channels = bottleneck_channels(c.model)
    value = c.model.latent = max(int(c.model.latent * times), 1)
  presets.complete(c)
  flops.check(c)
  return c, value


def by_hand(c: config.ConfigDict) -> float:
  """Returns the FLOPs per step without products with padding, as XLA counts."""
  return flops.per_image(c, edges=True)["total"] * c.data.batch_size


def measure(c: config.ConfigDict, steps: int, devices: int | None) -> dict:
  """Measures a row in its own process, optionally on emulated devices."""
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
    completed = subprocess.run(
      [
        *(sys.executable, "-m", "benchmarks.step", "--nofirst"),
        *(f"--config={path}/config.py", f"--steps={steps}"),
        f"--json={path}/results.json",
      ],
      cwd=ROOT,
      env=env,
      capture_output=True,
      text=True,
      check=False,
    )
    if completed.returncode:
      raise RuntimeError(f"a row failed:\n{completed.stderr}")
    results = json.loads((path / "results.json").read_text())
  return {
    "ms": 1e3 * results["rows"]["gamix_jax"]["median"],
    "hand": by_hand(c),
    # XLA's count is that of one device's program.
    "xla": results["program_flop"] * results["machine"]["devices"],
    "mebibytes": results["memory"]["program"] / 2**20,
  }


def main() -> None:
  """Prints a table for each axis, and the fitted growth."""
  given = flags.FLAGS
  if wrong := set(given.axes) - set(AXES):
    raise UserError(f"--axes={min(wrong)} must be one of {', '.join(AXES)}.")
  results = []
  print(
    f"{'':<12}{'':>6}{'ms/step':>11}{'GFLOP analytic':>15}{'XLA':>9}"
    f"{'MiB':>8}{'ns/kFLOP':>10}"
  )
  for axis in given.axes:
    # Check all configs before timing anything.
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
    results += rows
  if given.json:
    Path(given.json).write_text(json.dumps(results, indent=1) + "\n")


def law(axis: str, rows: list[dict]) -> str:
  """Returns one line about the growth along an axis."""
  x = np.array([r["value"] for r in rows], float)
  ms, hand, mebibytes = (
    np.array([r[k] for r in rows]) for k in ("ms", "hand", "mebibytes")
  )
  text = f"{axis}: time ~ {axis}^{_slope(x, ms):.2f}"
  text += f", FLOPs ~ {axis}^{_slope(x, hand):.2f}"
  if axis == "size":
    x = x**2
  b, a = np.polyfit(x, mebibytes, 1)
  off = np.max(np.abs(a + b * x - mebibytes) / mebibytes)
  unit = UNITS.get(axis)
  text += (
    f"; memory {a:.4g} + {b:.3g} MiB per {unit}, error at most {off:.0%}"
    if axis != "devices"
    else f"; memory per device ~ devices^{_slope(x, mebibytes):.2f}"
  )
  return text


def _slope(x: np.ndarray, y: np.ndarray) -> float:
  """Returns the exponent p of y ~ x^p."""
  if math.isclose(min(y), max(y)):
    return 0.0
  return float(np.polyfit(np.log(x), np.log(y), 1)[0])


if __name__ == "__main__":
  define()
  sys.exit(cli.start(main, __doc__))

"""The chips that `benchmarks.compile` compiles for, without having one.

XLA compiles for TPUs with libtpu and for GPUs with JAX's CUDA plugin; neither
needs the hardware.
"""

import importlib.util
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from gamix_jax.errors import UserError

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
  *("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
  *("8x8x8", "8x8x16", "8x16x16", "16x16x16"),
)


class Chip(NamedTuple):
  """The published figures of a chip.

  Attributes:
    platform: "tpu" or "cuda", JAX's name.
    slices: the topologies that are offered.
    flops: peak FLOP/s of bfloat16 products with float32 sums, dense.
    memory: bytes.
    bandwidth: of the memory, bytes/s.
    link: bytes/s out of a chip to other chips, over all its links.
    source: where the figures are published.
  """

  platform: str
  slices: tuple[str, ...]
  flops: float
  memory: float
  bandwidth: float
  link: float
  source: str


CHIPS = {
  "v5e": Chip(
    *("tpu", _FLAT, 197e12, 16e9, 819e9, 200e9),
    "docs.cloud.google.com/tpu/docs/v5e",
  ),
  "v5p": Chip(
    *("tpu", _CUBES, 459e12, 95e9, 2765e9, 600e9),
    "docs.cloud.google.com/tpu/docs/v5p",
  ),
  "v6e": Chip(
    *("tpu", _FLAT, 918e12, 32e9, 1638e9, 400e9),
    "docs.cloud.google.com/tpu/docs/v6e",
  ),
  # SXM. NVIDIA lists twice the rate for sparse matrices, and NVLink's 900 GB/s
  # in both directions together, as Google's 400, 1,200 and 800 of ICI.
  "h100": Chip(
    *("cuda", ("1", "2", "4", "8"), 989.4e12, 80e9, 3350e9, 450e9),
    "nvidia.com/en-us/data-center/h100",
  ),
}

_TPU_ENV = {
  "TPU_SKIP_MDS_QUERY": "1",  # not on a TPU VM: there is no metadata server
  # Else a second process aborts on libtpu's lock file.
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  # libtpu prints warnings without these two; the slice is that of --topology.
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
}
# Autotuning measures kernels, which needs a GPU.
_CUDA_FLAGS = "--xla_gpu_autotune_level=0"


class Target(NamedTuple):
  """A number of chips of a kind, connected in a shape."""

  name: str
  chip: Chip
  shape: tuple[int, ...]

  @property
  def chips(self) -> int:
    return math.prod(self.shape)


def parse(name: str) -> Target:
  """Returns the target that a flag names, such as `v5e:16x16` or `h100:8`.

  Raises:
    UserError: if there is no such chip or topology.
  """
  kind, _, size = name.partition(":")
  chip = CHIPS.get(kind)
  if chip is None or size not in chip.slices:
    kinds = [kind] if chip else CHIPS
    there = (f"{k}:{', '.join(CHIPS[k].slices)}" for k in kinds)
    raise UserError(f"--topology={name} must be one of {'; '.join(there)}.")
  return Target(name, chip, tuple(map(int, size.split("x"))))


def setup(target: Target) -> None:
  """Sets the environment to compile for a target.

  Call it before JAX looks for devices.

  Raises:
    UserError: if libtpu or JAX's CUDA plugin is not installed.
  """
  if target.chip.platform == "tpu":
    if importlib.util.find_spec("libtpu") is None:
      raise UserError(
        f"--topology={target.name} needs libtpu, which compiles for TPUs "
        "without one; install it with: pip install -e '.[tpu]'"
      )
    os.environ.update(_TPU_ENV)
    return
  if importlib.util.find_spec("jax_plugins") is None or not any(
    importlib.util.find_spec(f"jax_plugins.xla_cuda{n}") for n in (12, 13)
  ):
    raise UserError(
      f"--topology={target.name} needs JAX's CUDA plugin, which compiles for "
      "GPUs without one; install it with: pip install -e '.[cuda]'"
    )
  flags = os.environ.get("XLA_FLAGS", "")
  os.environ["XLA_FLAGS"] = f"{flags} {_CUDA_FLAGS}".strip()


def devices(target: Target) -> list[Any]:
  """Returns the target's devices; programs can be compiled for them, not run.

  Raises:
    UserError: if the compiler does not know the target.
  """
  import jax  # noqa: PLC0415
  from jax.experimental import topologies  # noqa: PLC0415

  try:
    if target.chip.platform == "tpu":
      # A host has up to 2x2x1 chips.
      host = (*map(min, target.shape, (2, 2, 1)), 1)[:3]
      found = topologies.get_topology_desc(
        target.name, "tpu", chips_per_host_bounds=host
      )
    else:
      found = topologies.get_topology_desc(
        target.name,
        "cuda",
        target_config=Path(__file__).with_name("h100.textproto").read_text(),
        topology=f"1x1x{target.chips}",  # partitions x hosts x GPUs per host
      )
  except jax.errors.JaxRuntimeError as e:
    reason = re.sub(r"^\w+: ", "", str(e).splitlines()[0])
    raise UserError(f"--topology={target.name}: {reason}") from e
  return found.devices

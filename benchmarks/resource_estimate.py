"""Estimates what a run needs on a TPU pod: bytes, FLOPs, time, input rate.

  python -m benchmarks.resource_estimate --config=configs/celeba_hq.py \
      --config.dtype=bfloat16

Calculated from shapes; nothing is run. The figures of a TPU v5e chip are
Google's (docs.cloud.google.com/tpu/docs/v5e):

    197 TFLOP/s in bfloat16, 16 GB of memory at 819 GB/s, 8 chips per host;
    1,600 Gbit/s, 200 GB/s, out of a chip over its four links

Times are lower bounds: all products at the peak rate, residuals written once
and read once, all links saturated. A rate assumes the larger of compute and
memory time, plus the communication time without overlap.
"""

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags

from benchmarks import communication, flops
from gamix_jax import cli, config, presets
from gamix_jax.config import ConfigDict

PEAK_FLOPS = 197e12  # FLOP/s
LINK_BANDWIDTH = 200e9  # bytes/s out of a chip
HBM_BYTES, HBM_BANDWIDTH = 16e9, 819e9  # bytes, and bytes/s
CHIPS_PER_HOST = 8  # chips


class ResourceEstimate(NamedTuple):
  """The needs of a config on any hardware.

  Attributes:
    state: bytes of one copy of the state.
    large: bytes of these in arrays that `mesh.fsdp` shards over a host's chips.
    gradient: bytes, of both networks.
    fixed: bytes of residuals that do not grow with the batch.
    image: bytes of residuals per image of the batch.
    flops: of a step, per image.
  """

  state: int
  large: int
  gradient: int
  fixed: int
  image: int
  flops: float


def _bytes(tree: Any) -> int:
  import jax  # noqa: PLC0415

  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def residuals(c: ConfigDict, batch: int) -> int:
  """Returns the bytes that the forward pass keeps for the backward pass.

  This is JAX's view: it knows neither what XLA recomputes instead of keeping,
  nor XLA's temporary buffers. In bfloat16 a copy of the parameters is included.
  """
  import jax  # noqa: PLC0415
  import numpy as np  # noqa: PLC0415

  from gamix_jax import build, step  # noqa: PLC0415

  spec = build.train_spec(c)
  state = jax.eval_shape(partial(step.init, spec))
  image = jax.ShapeDtypeStruct((batch, *config.image_shape(c)), np.uint8)

  def kept(state, batch):
    params = (state.vae.params, state.disc.params)
    _, pullback, _ = jax.vjp(
      partial(step.losses, spec, state, batch), params, has_aux=True
    )
    return pullback  # a pytree of the residuals

  held = jax.eval_shape(kept, state, {"image": image})
  return _bytes(held)


def needs(c: ConfigDict) -> ResourceEstimate:
  """Returns the estimate for a checked config."""
  import jax  # noqa: PLC0415

  from gamix_jax import build, step  # noqa: PLC0415
  from gamix_jax.parallel import mesh  # noqa: PLC0415

  state = jax.eval_shape(partial(step.init, build.train_spec(c)))
  host = jax.sharding.AbstractMesh((1, CHIPS_PER_HOST), (mesh.DATA, mesh.FSDP))
  shardings = jax.tree.leaves(
    mesh.ShardingPlan(host, c.mesh.fsdp_min_size).shardings(state)
  )
  large = [
    x
    for x, sharding in zip(jax.tree.leaves(state), shardings, strict=True)
    if not sharding.is_fully_replicated
  ]
  few, more = residuals(c, 4), residuals(c, 8)  # `debiased` needs four
  image = (more - few) // 4
  return ResourceEstimate(
    state=_bytes(state),
    large=_bytes(large),
    gradient=_bytes((state.vae.params, state.disc.params)),
    fixed=few - 4 * image,
    image=image,
    flops=flops.per_image(c)["total"],
  )


def _table(
  c: ConfigDict, estimate: ResourceEstimate, chips: int
) -> Iterator[str]:
  import jax  # noqa: PLC0415

  from gamix_jax import build, step  # noqa: PLC0415

  state = jax.eval_shape(partial(step.init, build.train_spec(c)))
  sent = estimate.gradient + communication.beside(c, state)
  sent += communication.codes(c) * 1.5  # a gather is half of a sum
  exchange = 2 * (chips - 1) / chips * sent / LINK_BANDWIDTH
  yield "|| images/chip || global batch | memory, GB | compute, ms | "
  yield "kept, ms | exchange, ms | images/s | |images/s/host ||\n"
  yield "|---|---|---|---|---|---|---|---|\n"
  each = 1
  while True:
    memory = (
      estimate.state
      + estimate.gradient
      + estimate.fixed
      + each * estimate.image
    )
    if memory > HBM_BYTES:
      break
    compute = each * estimate.flops / PEAK_FLOPS
    kept = 2 * each * estimate.image / HBM_BANDWIDTH
    rate = each * chips / (max(compute, kept) + exchange)
    yield (
      f"| {each} | {each * chips:,} | {memory / 1e9:.2f} "
      f"| {compute * 1e3:.3f} | {kept * 1e3:.3f} | {exchange * 1e3:.3f} "
      f"| {rate:,.0f} | {rate * min(CHIPS_PER_HOST, chips) / chips:,.0f} |\n"
    )
    each *= 2


def define() -> None:
  """Defines the flags."""
  config_flags.DEFINE_config_file("config", default=None)
  flags.DEFINE_integer("chips", 256, "Chips in the slice.")


def main() -> None:
  """Prints the estimate."""
  import jax  # noqa: PLC0415

  c, chips = flags.FLAGS.config, flags.FLAGS.chips
  presets.complete(c)
  flops.check(c)
  jax.config.update("jax_platforms", "cpu")
  estimate = needs(c)
  h, w, channels = config.image_shape(c)
  print(
    f"{config_flags.get_config_filename(flags.FLAGS['config'])}: {h}x{w}x"
    f"{channels}, {c.dtype}, {chips} chips\n\n"
    f"state       {estimate.state:>13,} bytes, of them {estimate.large:,} in "
    f"arrays of {c.mesh.fsdp_min_size:,} elements or more\n"
    f"gradient    {estimate.gradient:>13,} bytes\n"
    f"residuals   {estimate.image:>13,} bytes/image, plus {estimate.fixed:,}\n"
    f"operations  {estimate.flops / 1e9:>13,.4g} GFLOP/image\n"
  )
  print("".join(_table(c, estimate, chips)))
  sharded = estimate.state - estimate.large + estimate.large // CHIPS_PER_HOST
  print(
    f"With mesh.fsdp={CHIPS_PER_HOST}, a chip holds {sharded:,} bytes of state."
  )


if __name__ == "__main__":
  sys.exit(cli.run(main, define=define))

"""Counts the bytes that devices exchange per step, and the expected number.

  python -m benchmarks.communication --config=configs/celeba.py
  python -m benchmarks.communication --config=configs/celeba.py --fsdp=1,2,8 \
      --devices=8 --config.objective.population=quadratic --out=FILE.md

Compiles the training step for emulated CPU devices and reads the collective
operations from the compiled program's text. Nothing is run, so the result is
bytes, not time. The expected cost uses G bytes of gradient (VAE and
discriminator, float32), of which S bytes belong to arrays that `mesh.fsdp`
shards over F devices, on N devices:

    F = 1   all-reduce G over N
    F > 1   all-gather S over F: the parameters, once, for forward and backward
            reduce-scatter S over F, then all-reduce S / F over N / F
            all-reduce G - S over N

plus the moments and statistics (`beside`), and with the population form
`kernel`, which compares every pair of images, an all-gather of their codes and
an all-reduce of the gradient with respect to them. On the CPU, XLA compiles a
reduce-scatter to an all-reduce followed by slices: the same bytes, but a ring
would send twice as many. A CPU's program also computes in float32 and sends
float32 where a TPU's sends bfloat16; `benchmarks.compile` prints this table for
the program of a TPU or GPU.
"""

import itertools
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags

from benchmarks import collectives
from gamix_jax import cli, config, presets
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError

METRIC_BYTES = 2**10  # of metrics and losses, not in the expected cost


class CommCost(NamedTuple):
  """The expected cost of a step, in bytes of complete arrays.

  Attributes:
    gradient: G.
    spread: S; 0 if F = 1.
    parts: S / F, all-reduced over the replicas if there are several.
    beside: of moments and statistics.
    codes: of `kernel`, gathered, and as much back.
  """

  gradient: int
  spread: int
  parts: int
  beside: int
  codes: int

  @property
  def reduced(self) -> int:
    """Bytes that are summed over devices."""
    return self.gradient + self.parts + self.beside + self.codes

  @property
  def gathered(self) -> int:
    """Bytes that every device gets."""
    return self.spread + self.codes


def beside(c: ConfigDict, state: Any) -> int:
  """Returns the bytes summed over the global batch in addition to the gradient.

  For the population term: the mean and sigma^2 [d] and the variance [d] or the
  second moments [d, d] (with `debiased`, those of the mixture components, too),
  and one [d] back to each of the first. For the count of active units that is
  logged: the variance of the codes, [d] twice. For the explained variance: the
  mean image and the mean error. With norm="batch": a mean and a mean square per
  channel forward, and as much backward for each of the losses (the VAE's for
  both networks, the discriminator's for its own). This is an upper bound: some
  of the backward sums are already part of a gradient.
  """
  import jax  # noqa: PLC0415

  def size(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

  d = c.model.latent
  second = d
  if c.objective.population in ("debiased", "quadratic"):
    second = d * d
  if c.objective.population == "debiased" and c.posterior.components > 1:
    second *= 2
  total = 4 * (second + 6 * d + 2 * math.prod(config.image_shape(c)))
  if c.model.norm == "batch":
    total += 2 * size(state.vae.batch_stats) + 3 * size(state.disc.batch_stats)
  return total


def codes(c: ConfigDict) -> int:
  """Returns the bytes of the codes that every device needs.

  Means and variances of the global batch, [n k, d] each; of a mixture also the
  weights, once for the term and once for its gradient.
  """
  from gamix_jax.objectives import OBJECTIVES  # noqa: PLC0415

  reads = hasattr(OBJECTIVES.choose(c.objective.name), "population")
  if not reads or c.objective.population != "kernel":
    return 0
  numbers = 2 * c.model.latent + (2 if c.posterior.components > 1 else 0)
  return 4 * c.data.batch_size * c.posterior.components * numbers


def law(c: ConfigDict, layout: Any, state: Any) -> CommCost:
  """Returns what a config's step needs to send under a sharding plan."""
  import jax  # noqa: PLC0415

  params = (state.vae.params, state.disc.params)
  fsdp = layout.mesh.shape["fsdp"]
  gradient = spread = 0
  for leaf, sharding in zip(
    jax.tree.leaves(params),
    jax.tree.leaves(layout.shardings(params)),
    strict=True,
  ):
    gradient += leaf.size * leaf.dtype.itemsize
    if not sharding.is_fully_replicated:
      spread += leaf.size * leaf.dtype.itemsize
  parts = spread // fsdp if layout.mesh.size > fsdp else 0
  return CommCost(gradient, spread, parts, beside(c, state), codes(c))


def lower(c: ConfigDict, grid: Any, **options: Any) -> tuple[Any, CommCost]:
  """Lowers a config's training step for a mesh; returns the expected cost, too.

  Args:
    c: a checked config.
    grid: the mesh; its devices need not be there.
    **options: for `jax.jit`.

  Returns:
    What `jax.jit(...).lower(...)` returns, and the cost.
  """
  from functools import partial  # noqa: PLC0415

  import jax  # noqa: PLC0415

  from gamix_jax import build, step  # noqa: PLC0415
  from gamix_jax.parallel import mesh  # noqa: PLC0415

  spec = build.train_spec(c)
  layout = mesh.ShardingPlan(grid, c.mesh.fsdp_min_size)
  state = layout.with_shardings(jax.eval_shape(partial(step.init, spec)))
  sharding = mesh.batch_sharding(grid)
  batch = {
    name: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=sharding)
    for name, v in spec.batch_shapes(c.data.batch_size).items()
  }
  lowered = step.jit_train_step(spec, layout, **options).lower(state, batch)
  return lowered, law(c, layout, state)


def measured(
  c: ConfigDict, fsdp: int, devices: int, **options: Any
) -> tuple[list[collectives.Collective], CommCost]:
  """Returns the collectives of a config's compiled step, and the expected cost.

  Args:
    c: a checked config.
    fsdp: replaces the config's `mesh.fsdp`.
    devices: must be JAX's device count.
    **options: for `jax.jit`.
  """
  from gamix_jax.parallel import mesh  # noqa: PLC0415

  grid = mesh.create_mesh(c.data.batch_size, fsdp)
  if grid.size != devices:
    raise UserError(f"JAX has {grid.size} devices, not --devices={devices}.")
  lowered, expected = lower(c, grid, **options)
  return collectives.read(lowered.compile().as_text(), devices), expected


def total(operations: list[collectives.Collective], kind: str) -> int:
  """Returns the bytes per step of all operations of a kind."""
  return sum(o.bytes * o.times for o in operations if o.kind == kind)


class Row(NamedTuple):
  """All operations of a kind, among as many devices and of the same types.

  Attributes:
    kind: one of `collectives.KINDS`.
    group: the number of devices that take part.
    operations: per step; of combined arrays one.
    arrays: per step.
    bytes: of complete arrays, per step.
    sent: bytes that a device sends per step, if they form a ring.
    dtype: the element types.
    what: what is sent.
  """

  kind: str
  group: int
  operations: int
  arrays: int
  bytes: int
  sent: float
  dtype: str
  what: str


def rows(operations: list[collectives.Collective]) -> Iterator[Row]:
  """Yields the rows of a table.

  Raises:
    UserError: if it is not known how often an operation is executed.
  """
  unknown = [o for o in operations if o.times is None]
  if unknown:
    raise UserError(
      f"{unknown[0].kind} from {unknown[0].sources[0]} is in a loop whose "
      "length the program's text does not say; its bytes cannot be counted."
    )

  def key(op):
    return collectives.KINDS.index(op.kind), -op.group, op.what, op.dtype

  for _, same in itertools.groupby(sorted(operations, key=key), key):
    ops = list(same)
    yield Row(
      ops[0].kind,
      ops[0].group,
      sum(o.times for o in ops),
      sum(o.arrays * o.times for o in ops),
      sum(o.bytes * o.times for o in ops),
      sum(o.sent * o.times for o in ops),
      ops[0].dtype,
      ops[0].what,
    )


def table(found: list[Row], head: str) -> Iterator[str]:
  """Yields the lines of a Markdown table of rows."""
  yield (
    f"| {head} | among | operations | arrays | type | bytes | ring sends | of |"
  )
  yield "|---|---|---|---|---|---|---|---|"
  for row in found:
    yield (
      f"| {row.kind} | {row.group} | {row.operations} | {row.arrays} "
      f"| {row.dtype} | {row.bytes:,} | {row.sent:,.0f} | {row.what} |"
    )


def _table(
  fsdp: int, operations: list[collectives.Collective], expected: CommCost
):
  """Yields the Markdown lines of one sharding plan."""
  found = list(rows(operations))
  yield from table(found, f"fsdp={fsdp}")
  yield ""
  yield from summary(found, expected)
  yield ""


def summary(found: list[Row], expected: CommCost) -> Iterator[str]:
  """Yields two lines: the bytes summed and gathered, and the expected ones."""
  gathered = sum(r.bytes for r in found if r.kind == "all-gather")
  reduced = sum(
    r.bytes for r in found if r.kind in ("all-reduce", "reduce-scatter")
  )
  yield (
    f"Summed: {reduced:,} bytes; expected: up to {expected.reduced:,}"
    f" = gradient {expected.gradient:,}"
    + (
      f" + shards over the replicas {expected.parts:,}"
      if expected.parts
      else ""
    )
    + f" + moments and statistics {expected.beside:,}"
    + (f" + gradient of codes {expected.codes:,}" if expected.codes else "")
    + f" (off by {reduced - expected.reduced:+,})."
  )
  yield f"Gathered: {gathered:,} bytes; expected: {expected.gathered:,}."


def define() -> None:
  """Defines the flags; not at import, for tests that import other commands."""
  config_flags.DEFINE_config_file("config", default=None)
  flags.DEFINE_integer("devices", 8, "Emulated devices.")
  flags.DEFINE_list("fsdp", ["1", "2", "8"], "Values of mesh.fsdp.")
  flags.DEFINE_string(
    "out", None, "Also write the tables to this Markdown file."
  )


def main() -> None:
  """Prints the tables that the flags ask for."""
  import jax  # noqa: PLC0415

  c, devices = flags.FLAGS.config, flags.FLAGS.devices
  presets.complete(c)
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", devices)
  # These passes run after the partitioner, so they do not matter here.
  options = {"compiler_options": {"xla_backend_optimization_level": 0}}
  name = config_flags.get_config_filename(flags.FLAGS["config"])
  lines = [
    f"{name}, {devices} emulated CPU devices, batch {c.data.batch_size}, "
    f"population {c.objective.population}, {c.posterior.name} of "
    f"{c.posterior.components}, norm {c.model.norm}; JAX {jax.__version__}",
    "",
  ]
  print(*lines, sep="\n")
  for fsdp in map(int, flags.FLAGS.fsdp):
    operations, expected = measured(c, fsdp, devices, **options)
    table = list(_table(fsdp, operations, expected))
    print(*table, sep="\n", flush=True)
    lines += table
  if flags.FLAGS.out:
    Path(flags.FLAGS.out).write_text("\n".join(lines))


if __name__ == "__main__":
  sys.exit(cli.run(main, define=define))

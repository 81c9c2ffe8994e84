"""What the devices of a run send each other in a step, and what they need to.

  python -m benchmarks.communication --config=configs/celeba.py
  python -m benchmarks.communication --config=configs/celeba.py --fsdp=1,2,8 \
      --devices=8 --config.objective.population=quadratic --out=FILE.md

Compiles the training step for emulated CPU devices and reads the collective
operations from the compiled program's text; nothing is run, so it says what
is sent and not how long it takes. The law beside it, of G bytes of gradient
(VAE and discriminator, float32), S of them of arrays that `mesh.fsdp` spreads
over F devices, on N devices:

    F = 1   all-reduce G over N
    F > 1   all-gather S over F: the parameters, once, for forward and backward
            reduce-scatter S over F, then all-reduce S / F over N / F
            all-reduce G - S over N

and beside it moments and statistics (`beside`). On the CPU XLA writes a
reduce-scatter as an all-reduce whose parts are then taken; its bytes are the
same and a ring would send twice as many.
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

SMALL = 2**10  # bytes of metrics and losses, that the law leaves out


class CommCost(NamedTuple):
  """What a step needs to send, bytes of whole arrays.

  Attributes:
    gradient: G.
    spread: S; 0 with F = 1.
    parts: S / F, which is summed over the copies, where there are several.
    beside: of moments and statistics.
  """

  gradient: int
  spread: int
  parts: int
  beside: int

  @property
  def reduced(self) -> int:
    """Of sums over devices."""
    return self.gradient + self.parts + self.beside


def beside(c: ConfigDict, state: Any) -> int:
  """What is summed over the global batch besides the gradient, bytes.

  The population: of the mean and sigma^2 [d] and the variance [d] or the
  second moments [d, d] (with `debiased` those of mixtures' components, too),
  and one [d] back to each of the first; the variance of the codes that the log
  counts active units by, [d] twice; and the mean image and the mean error,
  which the variance that is explained is taken from. With
  norm="batch", a mean and a mean square a channel forward, as much backward
  for each of the losses: the VAE's for both networks, the discriminator's for
  its own. An upper bound: of the sums backward some are those of a gradient.
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


def law(c: ConfigDict, layout: Any, state: Any) -> CommCost:
  """What a config's step needs to send under a layout."""
  import jax  # noqa: PLC0415

  params = (state.vae.params, state.disc.params)
  fsdp = layout.mesh.shape["fsdp"]
  gradient = spread = 0
  for leaf, lies in zip(
    jax.tree.leaves(params),
    jax.tree.leaves(layout.shardings(params)),
    strict=True,
  ):
    gradient += leaf.size * leaf.dtype.itemsize
    if not lies.is_fully_replicated:
      spread += leaf.size * leaf.dtype.itemsize
  parts = spread // fsdp if layout.mesh.size > fsdp else 0
  return CommCost(gradient, spread, parts, beside(c, state))


def measured(
  c: ConfigDict, fsdp: int, devices: int, **options: Any
) -> tuple[list[collectives.Collective], CommCost]:
  """The collectives of a config's compiled step, and the law of it.

  Args:
    c: checked.
    fsdp: in the place of the config's `mesh.fsdp`.
    devices: as many as JAX has.
    **options: of `jax.jit`.
  """
  from functools import partial  # noqa: PLC0415

  import jax  # noqa: PLC0415
  import numpy as np  # noqa: PLC0415

  from gamix_jax import build, step  # noqa: PLC0415
  from gamix_jax.parallel import mesh  # noqa: PLC0415

  spec = build.train_spec(c)
  grid = mesh.create_mesh(c.data.batch_size, fsdp)
  if grid.size != devices:
    raise UserError(f"JAX has {grid.size} devices, not --devices={devices}.")
  layout = mesh.ShardingPlan(grid, c.mesh.fsdp_min_size)
  state = layout.with_shardings(jax.eval_shape(partial(step.init, spec)))
  shape = (c.data.batch_size, *config.image_shape(c))
  image = jax.ShapeDtypeStruct(
    shape, np.uint8, sharding=mesh.batch_sharding(grid)
  )
  lowered = step.jit_train_step(spec, layout, **options).lower(
    state, {"image": image}
  )
  found = collectives.read(lowered.compile().as_text(), devices)
  return found, law(c, layout, state)


def total(found: list[collectives.Collective], kind: str) -> int:
  """Bytes of all operations of a kind in a step."""
  return sum(o.bytes * o.times for o in found if o.kind == kind)


def rows(found: list[collectives.Collective]) -> Iterator[tuple]:
  """(kind, devices, operations, arrays, bytes, sent) of each kind."""

  def key(op):
    return collectives.KINDS.index(op.kind), -op.group

  for _, same in itertools.groupby(sorted(found, key=key), key):
    ops = list(same)
    yield (
      ops[0].kind,
      ops[0].group,
      sum(o.times for o in ops),
      sum(o.arrays * o.times for o in ops),
      sum(o.bytes * o.times for o in ops),
      sum(o.sent * o.times for o in ops),
    )


def _table(fsdp: int, found: list[collectives.Collective], due: CommCost):
  """Markdown lines of one layout."""
  unknown = [o for o in found if o.times is None]
  if unknown:
    raise UserError(
      f"{unknown[0].kind} from {unknown[0].source} is in a loop whose length "
      "the program's text does not say; its bytes cannot be counted."
    )
  yield f"| fsdp={fsdp} | among | operations | arrays | bytes | ring sends |"
  yield "|---|---|---|---|---|---|"
  for kind, group, ops, arrays, size, sent in rows(found):
    yield f"| {kind} | {group} | {ops} | {arrays} | {size:,} | {sent:,.0f} |"
  gathered = total(found, "all-gather")
  reduced = total(found, "all-reduce") + total(found, "reduce-scatter")
  yield ""
  yield (
    f"Summed: {reduced:,} bytes; by the law up to {due.reduced:,}"
    f" = gradient {due.gradient:,}"
    + (f" + parts over the copies {due.parts:,}" if due.parts else "")
    + f" + moments and statistics {due.beside:,}"
    + f" (off by {reduced - due.reduced:+,})."
  )
  yield f"Gathered: {gathered:,} bytes; by the law {due.spread:,}."
  yield ""


def define() -> None:
  """The flags; here, since tests import this beside other commands."""
  config_flags.DEFINE_config_file("config", default=None)
  flags.DEFINE_integer("devices", 8, "Emulated devices.")
  flags.DEFINE_list("fsdp", ["1", "2", "8"], "Values of mesh.fsdp.")
  flags.DEFINE_string("out", None, "A Markdown file to write, too.")


def main() -> None:
  """Prints the tables, as the flags say."""
  import jax  # noqa: PLC0415

  c, devices = flags.FLAGS.config, flags.FLAGS.devices
  presets.complete(c)
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", devices)
  # The partitioner has done its work before these passes.
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
    found, due = measured(c, fsdp, devices, **options)
    table = list(_table(fsdp, found, due))
    print(*table, sep="\n", flush=True)
    lines += table
  if flags.FLAGS.out:
    Path(flags.FLAGS.out).write_text("\n".join(lines))


if __name__ == "__main__":
  sys.exit(cli.run(main, define=define))

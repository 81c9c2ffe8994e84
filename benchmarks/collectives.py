"""Finds the collective operations of a compiled program in its HLO text."""

import dataclasses
import math
import re

from benchmarks import hlo

KINDS = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
# [2,4]<=[8]: two groups of four. {{0,1},{2,3}}: two listed groups of two.
# mesh['a'=2,'b'=4], device_ids=(...) {'b'}: along the named axes of a mesh, or
# along a part of one, {'b':(1)2}.
_GROUPS = re.compile(
  r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]+)\}"
  r"|mesh\[(.*?)\](?:, device_ids=\(.*?\))? \{(.*?)\})"
)
_AXIS = re.compile(r"'([^']+)'=(\d+)")
_CHAIN = re.compile(r'\bchain_id="(\d+)"')
_ALONG = re.compile(r"'([^']+)'(?::\(\d+\)(\d+))?")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation; one on several arrays counts once.

  Attributes:
    kind: one of KINDS.
    arrays: the number of arrays.
    shapes: the output shapes, as in the HLO text: `f32[3,3,128,128]`.
    bytes: of the complete arrays: before a scatter, after a gather.
    group: the number of devices in each replica group.
    times: executions per step; None inside a loop of unknown trip count.
    sources: the `op_name` in the program of the operation, and of each of its
      operands; "" if there is none.
  """

  kind: str
  shapes: tuple[str, ...]
  bytes: int
  group: int
  times: int | None
  sources: tuple[str, ...]

  @property
  def arrays(self) -> int:
    return len(self.shapes)

  @property
  def dtype(self) -> str:
    """The element type, or types: "f32", "bf16, f32"."""
    return ", ".join(
      sorted({hlo.ARRAY.fullmatch(shape)[1] for shape in self.shapes})
    )

  @property
  def what(self) -> str:
    """What a training step sends by it, by the names of what is sent."""
    if self.kind == "all-gather":
      return "parameters, codes"
    if self.kind == "reduce-scatter":
      return "gradients"
    backward = {"transpose(" in source for source in self.sources if source}
    names = {True: "gradients", False: "moments, statistics, metrics"}
    known = ", ".join(names[b] for b in sorted(backward, reverse=True))
    return known or "not named"

  @property
  def sent(self) -> float:
    """Bytes that a device sends per execution in a ring algorithm.

    A gather and a scatter move everything except a device's own part; an
    all-reduce is a scatter followed by a gather.
    """
    n = self.group
    if self.kind == "collective-permute":
      return float(self.bytes)
    rounds = 2 if self.kind == "all-reduce" else 1
    return rounds * (n - 1) / n * self.bytes


def _group(line: str, devices: int) -> int:
  """Returns the size of a replica group."""
  found = _GROUPS.search(line)
  if found is None:
    if "replica_groups={}" in line or "replica_groups" not in line:
      return devices
    raise ValueError(f"groups of an unknown form: {line.strip()[:200]}")
  tiled, listed, axes, along = found.groups()
  if tiled:
    return int(tiled)
  if listed:
    return len(listed.split(","))
  sizes = {name: int(n) for name, n in _AXIS.findall(axes)}
  return math.prod(
    int(part) if part else sizes[name] for name, part in _ALONG.findall(along)
  )


def read(text: str, devices: int) -> list[Collective]:
  """Returns the collectives that one run of a program executes.

  Args:
    text: the output of `jax.jit(...).lower(...).compile().as_text()`.
    devices: the total number, for operations that list no groups.

  Raises:
    ValueError: if an operation's replica groups have an unknown format.
  """
  program = hlo.Program(text)
  found, chains = [], set()
  for op in program.run():
    # Of an asynchronous pair the second has the result's shapes.
    name = op.op.removesuffix("-done")
    if name not in KINDS:
      continue
    start = op if name == op.op else program[op.operands[0]]
    line = start.line
    group = _group(line, devices)
    shapes = tuple(f"{k}[{d}]" for k, d in hlo.ARRAY.findall(op.type))
    # A TPU's program repeats one that overlaps with several fusions in each,
    # with the same chain. Channels do not tell them apart: combined ones share
    # one.
    if chain := _CHAIN.search(line):
      if chain[1] in chains:
        continue
      chains.add(chain[1])
    size = hlo.nbytes(op.type)
    if name == "reduce-scatter":
      size *= group
    if op.computation.startswith("all-reduce-scatter"):  # a TPU's
      name = "reduce-scatter"
    sources = (start.source, *map(program.source, start.operands))
    found.append(Collective(name, shapes, size, group, op.times, sources))
  return found

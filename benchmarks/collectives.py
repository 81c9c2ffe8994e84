"""Parses the collective operations of a compiled program from its HLO text."""

import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_OP = re.compile(
  rf"^ +(?:ROOT )?%?([\w.-]+) = (.*?) ({'|'.join(KINDS)})(\S*)\("
)
_CALLED = re.compile(
  r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)="
  r"%?([\w.-]+)"
)
_BRANCHES = re.compile(r"\bbranch_computations=\{(.*?)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# [2,4]<=[8]: two groups of four. {{0,1},{2,3}}: two listed groups of two.
# mesh['a'=2,'b'=4], device_ids=(...) {'b'}: along the named axes of a mesh, or
# along a part of one, {'b':(1)2}.
_GROUPS = re.compile(
  r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]+)\}"
  r"|mesh\[(.*?)\](?:, device_ids=\(.*?\))? \{(.*?)\})"
)
_AXIS = re.compile(r"'([^']+)'=(\d+)")
_ALONG = re.compile(r"'([^']+)'(?::\(\d+\)(\d+))?")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation; one on several arrays counts once.

  Attributes:
    kind: one of KINDS.
    arrays: the number of arrays.
    shapes: the output shapes, as in the HLO text: `f32[3,3,128,128]`.
    group: the number of devices in each replica group.
    times: executions per step; None inside a loop of unknown trip count.
    source: the operation's `op_name` in the program.
  """

  kind: str
  shapes: tuple[str, ...]
  group: int
  times: int | None
  source: str

  @property
  def arrays(self) -> int:
    return len(self.shapes)

  @property
  def bytes(self) -> int:
    """Bytes of the complete arrays: before a scatter, after a gather."""
    found = sum(map(_bytes, self.shapes))
    return found * self.group if self.kind == "reduce-scatter" else found

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


def _bytes(shape: str) -> int:
  kind, dims = _ARRAY.fullmatch(shape).groups()
  bits = re.search(r"\d+", kind)  # f32, bf16, s8; pred has no number
  size = math.prod(int(d) for d in dims.split(",") if d)
  return size * max(1, int(bits[0]) // 8 if bits else 1)


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


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  """Returns the lines of each computation, and the name of the entry."""
  found: dict[str, list[str]] = {}
  entry = name = ""
  for line in text.splitlines():
    if head := _COMPUTATION.match(line):
      name = head[2]
      found[name] = []
      entry = name if head[1] else entry
    elif name:
      found[name].append(line)
  return found, entry


def read(text: str, devices: int) -> list[Collective]:
  """Returns the collectives that one run of a program executes.

  Args:
    text: the output of `jax.jit(...).lower(...).compile().as_text()`.
    devices: the total number, for operations that list no groups.

  Raises:
    ValueError: if an operation is asynchronous, as on GPUs and TPUs (these
      come in pairs, and the first has other shapes), or if its groups have an
      unknown format.
  """
  computations, entry = _computations(text)
  return list(_walk(computations, entry, 1, devices))


def _walk(computations, name, times, devices) -> Iterator[Collective]:
  for line in computations[name]:
    if op := _OP.match(line):
      if op[4]:
        raise ValueError(f"{op[3]}{op[4]} is asynchronous: {line[:100]}")
      source = re.search(r'op_name="([^"]*)"', line)
      yield Collective(
        op[3],
        tuple(f"{k}[{d}]" for k, d in _ARRAY.findall(op[2])),
        _group(line, devices),
        times,
        source[1] if source else "",
      )
    inner = times
    if " while(" in line:
      trips = _TRIPS.search(line)
      inner = times * int(trips[1]) if trips and times else None
    called = _CALLED.findall(line)
    for branches in _BRANCHES.findall(line):
      called += re.findall(r"[\w.-]+", branches)
    for other in called:
      yield from _walk(computations, other, inner, devices)

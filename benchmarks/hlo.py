"""Reads the instructions of a compiled program from its HLO text."""

import dataclasses
import math
import re
from collections.abc import Iterator

# `f32[3,3,128,128]` of a type, which may be a tuple and have layouts.
ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(
  r"^ +(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\(([^()]*)"
)
_CALLED = re.compile(
  r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)="
  r"%?([\w.-]+)"
)
_BRANCHES = re.compile(r"\bbranch_computations=\{(.*?)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SOURCE = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
# What they call is executed; what a fusion, a reduction or another operation
# calls says what one kernel computes.
_CONTROL = ("while", "conditional", "call")


def nbytes(kind: str) -> int:
  """Returns the bytes of an array or a tuple of arrays, given its type."""
  total = 0
  for element, dims in ARRAY.findall(kind):
    bits = re.search(r"\d+", element)  # f32, bf16, s8; pred has no number
    size = max(1, int(bits[0]) // 8 if bits else 1)
    total += size * math.prod(int(d) for d in dims.split(",") if d)
  return total


@dataclasses.dataclass(frozen=True)
class Instruction:
  """An instruction of a program.

  Attributes:
    name: unique in the program.
    type: the output's, as in the text: `bf16[8,64]{1,0}` or a tuple.
    op: the opcode; of a custom call, its target.
    operands: the names of the operands.
    line: the complete text.
    computation: the name of the computation that it is in.
    times: executions per run; None inside a loop of unknown trip count.
  """

  name: str
  type: str
  op: str
  operands: tuple[str, ...]
  line: str
  computation: str
  times: int | None = 1

  @property
  def source(self) -> str:
    """The operation's `op_name` in the traced program, "" if it has none."""
    found = _SOURCE.search(self.line)
    return found[1] if found else ""


class Program:
  """The instructions of a program; `program[name]` is one of them."""

  def __init__(self, text: str):
    """`text` is that of `jax.jit(...).lower(...).compile().as_text()`."""
    self._computations: dict[str, list[Instruction]] = {}
    self._named: dict[str, Instruction] = {}
    self._entry = computation = ""
    for line in text.splitlines():
      if head := _COMPUTATION.match(line):
        computation = head[2]
        self._computations[computation] = []
        self._entry = computation if head[1] else self._entry
      elif computation and (found := _INSTRUCTION.match(line)):
        name, kind, op, operands = found.groups()
        if op == "custom-call" and (target := _TARGET.search(line)):
          op = target[1]
        names = tuple(re.findall(r"%([\w.-]+)", operands))
        self._named[name] = Instruction(
          name, kind, op, names, line, computation
        )
        self._computations[computation].append(self._named[name])

  def __getitem__(self, name: str) -> Instruction:
    return self._named[name]

  def source(self, name: str) -> str:
    """Returns the source of a value, if need be that of the tuple it is in."""
    found = self._named.get(name)
    if found is None:
      return ""
    if found.op == "get-tuple-element":
      return found.source or self.source(found.operands[0])
    return found.source

  def run(self) -> Iterator[Instruction]:
    """Yields what one run executes, in the order of the text.

    A computation that is called several times is yielded as often.
    """
    yield from self._walk(self._entry, 1)

  def kernels(self) -> Iterator[Instruction]:
    """Yields what `run` does, without the insides of fusions and the like."""
    for found in self._walk(self._entry, 1, _CONTROL):
      if found.op not in _CONTROL:
        yield found

  def _walk(
    self,
    computation: str,
    times: int | None,
    into: tuple[str, ...] | None = None,
  ) -> Iterator[Instruction]:
    for found in self._computations[computation]:
      yield dataclasses.replace(found, times=times)
      inner = times
      if found.op == "while":
        trips = _TRIPS.search(found.line)
        inner = times * int(trips[1]) if trips and times else None
      if found.op.endswith(("-update", "-done")):
        continue  # what was started was called then
      if into is not None and found.op not in into:
        continue
      called = _CALLED.findall(found.line)
      for branches in _BRANCHES.findall(found.line):
        called += re.findall(r"[\w.-]+", branches)
      for other in called:
        yield from self._walk(other, inner, into)

"""Reads the instructions of a compiled program from its HLO text."""

import dataclasses
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
  times: int | None

  @property
  def source(self) -> str:
    """The operation's name in the traced program."""
    return source(self.line)


def source(line: str) -> str:
  """Returns the `op_name` in an instruction's text, "" if it has none."""
  found = _SOURCE.search(line)
  return found[1] if found else ""


class Program:
  """The instructions of a program.

  Attributes:
    types: {name: output type} of all instructions.
    lines: {name: text} of all instructions.
  """

  def __init__(self, text: str):
    """`text` is that of `jax.jit(...).lower(...).compile().as_text()`."""
    self._computations: dict[str, list[tuple]] = {}
    self.types: dict[str, str] = {}
    self.lines: dict[str, str] = {}
    self._entry = name = ""
    for line in text.splitlines():
      if head := _COMPUTATION.match(line):
        name = head[2]
        self._computations[name] = []
        self._entry = name if head[1] else self._entry
      elif name and (found := _INSTRUCTION.match(line)):
        own, kind, op, operands = found.groups()
        if op == "custom-call" and (target := _TARGET.search(line)):
          op = target[1]
        names = tuple(re.findall(r"%([\w.-]+)", operands))
        self._computations[name].append((own, kind, op, names, line))
        self.types[own], self.lines[own] = kind, line

  def run(self) -> Iterator[Instruction]:
    """Yields what one run executes, in the order of the text.

    A computation that is called several times is yielded as often.
    """
    yield from self._walk(self._entry, 1)

  def _walk(self, name: str, times: int | None) -> Iterator[Instruction]:
    for own, kind, op, operands, line in self._computations[name]:
      yield Instruction(own, kind, op, operands, line, name, times)
      inner = times
      if op == "while":
        trips = _TRIPS.search(line)
        inner = times * int(trips[1]) if trips and times else None
      if op.endswith(("-update", "-done")):
        continue  # what was started was called then
      called = _CALLED.findall(line)
      for branches in _BRANCHES.findall(line):
        called += re.findall(r"[\w.-]+", branches)
      for other in called:
        yield from self._walk(other, inner)

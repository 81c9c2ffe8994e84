"""Counts the bytes that a program reads and writes, from its HLO text.

For GPUs: their compiler gives no count for a GPU that is not there.
"""

from benchmarks import hlo

# They move nothing: names for values, or for parts and other shapes of them.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")


def read(text: str) -> int:
  """Returns the bytes that one run of a program moves to and from the memory.

  Every kernel reads its operands once and writes its outputs once. That is too
  much for a kernel that reads only a part of an operand.

  Args:
    text: the output of `jax.jit(...).lower(...).compile().as_text()`.

  Raises:
    ValueError: if the program has a loop of an unknown number of rounds.
  """
  program = hlo.Program(text)
  total = 0
  for op in program.kernels():
    if op.op in _FREE:
      continue
    if op.times is None:
      raise ValueError(f"the number of rounds is not known: {op.line.strip()}")
    arrays = [op.type, *(program[name].type for name in op.operands)]
    total += op.times * sum(map(hlo.nbytes, arrays))
  return total

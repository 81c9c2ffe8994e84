"""Counts the convolutions and matrix products of a compiled program by type."""

import collections
from typing import NamedTuple

from benchmarks import hlo

# A TPU's program has convolutions only, some of which are matrix products; a
# GPU's has custom calls and fusions of these names, too.
_CONVOLUTIONS = ("convolution", "__cudnn$conv")
_PRODUCTS = ("dot", "__cublas$", "__triton_gemm")


class Kind(NamedTuple):
  """What is counted.

  Attributes:
    what: "convolution" or "product".
    operands: the types that are multiplied, such as "bf16" or "bf16, f32".
    output: the result's type.
  """

  what: str
  operands: str
  output: str


def read(text: str) -> dict[Kind, int]:
  """Returns the number of convolutions and products by kind.

  An operation counts as what the traced program says, in which a matrix product
  is a `dot_general`.

  Args:
    text: the output of `jax.jit(...).lower(...).compile().as_text()`.
  """
  program = hlo.Program(text)
  found: collections.Counter[Kind] = collections.Counter()
  for op in program.run():
    if not op.op.startswith((*_CONVOLUTIONS, *_PRODUCTS)):
      continue
    what = "convolution" if op.op.startswith(_CONVOLUTIONS) else "product"
    if op.source.endswith("dot_general"):
      what = "product"
    types = [program[name].type for name in op.operands[:2]]
    operands = sorted({_element(t) for t in types})
    found[Kind(what, ", ".join(operands), _element(op.type))] += 1
  return dict(sorted(found.items()))


def _element(kind: str) -> str:
  """Returns the element type of an array, or of the first in a tuple."""
  return hlo.ARRAY.search(kind)[1]

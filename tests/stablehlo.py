"""Reads programs that are lowered for platforms this machine need not have."""

import re

from jaxlib.mlir import passmanager


def resolved(lowered):
  """Returns the StableHLO text of a `jax.stages.Lowered` for its platform.

  Functions are inlined, and choices between platforms are made, as XLA does
  before it compiles.
  """
  module = lowered.compiler_ir("stablehlo")
  with module.context:
    passes = "builtin.module(inline,sccp,canonicalize)"
    passmanager.PassManager.parse(passes).run(module.operation)
  text = module.operation.get_asm(large_elements_limit=10)
  assert "stablehlo.case" not in text
  return text


def products(text, kind):
  """Returns (operands, result) as (shape, type) of each operation of a kind.

  A symbolic size is 0.
  """
  for line in re.findall(rf"stablehlo\.{kind}\W.*", text):
    types = []
    for tensor in re.findall(r"tensor<([^>]*)>", line.split(" : (")[-1]):
      *shape, dtype = tensor.replace("?", "0").split("x")
      types.append((tuple(map(int, shape)), dtype))
    assert len(types) == 3, line
    yield tuple(types)


def convolutions(text):
  """Returns the operands, window and types of each convolution, as text."""
  lines = re.findall(r"stablehlo\.convolution\W.*", text)
  return [line.partition("dim_numbers")[2] for line in lines]

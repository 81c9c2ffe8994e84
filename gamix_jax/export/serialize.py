"""Converts functions to bytes that run without this package, and runs them.

stablehlo   written by jax.export, read by jax.export.deserialize on CPU, CUDA
            and TPU
onnx        written by jax2onnx in float32, read by onnxruntime and many others

The batch size is symbolic: the result accepts any number of rows.
"""

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from importlib import metadata

import jax
import numpy as np

from gamix_jax.cpu import convolutions
from gamix_jax.errors import UserError
from gamix_jax.export.signatures import Part

PLATFORMS = ("cpu", "cuda", "tpu")
BATCH = "b"


def stablehlo(part: Part) -> bytes:
  """Exports a part, including its weights, with jax.export.

  Inputs and outputs are dicts by name, but a single input is that array, and a
  decoder of images returns the image itself.
  """
  from jax import export  # noqa: PLC0415

  def function(x):
    out = part.function(x)
    return out["image"] if set(out) == {"image"} else out

  (b,) = export.symbolic_shape(BATCH)
  exported = export.export(jax.jit(function), platforms=PLATFORMS)
  return bytes(exported(part.shapes(b)).serialize())


def _run_stablehlo(
  data: bytes, part: Part, x: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
  from jax import export  # noqa: PLC0415

  out = export.deserialize(bytearray(data)).call(part.pack(x))
  return jax.device_get(out if isinstance(out, dict) else {"image": out})


def onnx(part: Part) -> bytes:
  """Exports a part, including its weights, as ONNX with named outputs.

  Raises:
    UserError: if jax2onnx or onnxruntime is not installed, if jax2onnx cannot
      convert the part, or if an input and an output have the same name.
  """
  # jax2onnx reads traced functions and does not know platforms.
  with _quiet(), convolutions.only_cpu():
    needs("jax2onnx", "onnx")
    needs("onnxruntime", "onnx")
    from jax2onnx import to_onnx  # noqa: PLC0415

    names, inputs = list(part.outputs()), list(part.inputs)
    if same := sorted(set(names) & set(inputs)):
      raise UserError(
        f"The modality {same[0]!r} has the name of another value of the "
        f"{part.name}, and ONNX needs different ones; use --format=stablehlo."
      )

    def function(*arrays):
      out = part.function(part.pack(dict(zip(inputs, arrays, strict=True))))
      return tuple(map(out.get, names))

    try:
      proto = to_onnx(
        function,
        [(BATCH, *v.shape) for v in part.inputs.values()],
        model_name=f"gamix_{part.name}",
        input_names=inputs,
        output_names=names,
      )
    # jax2onnx has no exception class of its own.
    except Exception as e:
      raise UserError(
        f"jax2onnx {metadata.version('jax2onnx')} cannot write this "
        f"{part.name} with JAX {jax.__version__}: {type(e).__name__}: "
        f"{str(e).partition(chr(10))[0]}.\nUse --format=stablehlo."
      ) from e
  return proto.SerializeToString()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Silences jax2onnx, whose output does not concern the result.

  It prints, and it logs every unannotated shape and every unknown operation of
  newer JAX versions. If warnings are errors, it skips operations that it
  supports, because it uses a deprecated name of JAX.
  """
  logs = [logging.getLogger(name) for name in ("jax2onnx", "onnx_ir")]
  levels = [log.level for log in logs]
  try:
    for log in logs:
      log.setLevel(logging.ERROR)
    with (
      warnings.catch_warnings(),
      contextlib.redirect_stdout(io.StringIO()),
      jax.numpy_rank_promotion("allow"),  # jax2onnx relies on it
    ):
      warnings.simplefilter("ignore")
      yield
  finally:
    for log, level in zip(logs, levels, strict=True):
      log.setLevel(level)


def _run_onnx(
  data: bytes, part: Part, x: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
  import onnxruntime  # noqa: PLC0415

  del part

  try:
    session = onnxruntime.InferenceSession(
      data, providers=["CPUExecutionProvider"]
    )
  except Exception as e:  # onnxruntime has no base class of its own
    raise UserError(
      f"onnxruntime cannot run what jax2onnx wrote ({type(e).__name__}: "
      f"{str(e).partition(chr(10))[0]}).\nUse --format=stablehlo."
    ) from e
  names = [o.name for o in session.get_outputs()]
  return dict(zip(names, session.run(None, x), strict=True))


def needs(module: str, extra: str) -> None:
  """Checks that an optional package is installed.

  Raises:
    UserError: if it is not.
  """
  try:
    importlib.import_module(module)
  except ImportError as e:
    raise UserError(
      f"This needs {module}, which cannot be imported ({e}); use pip install "
      f"'gamix_jax[{extra}]', or '.[{extra}]' in a checkout."
    ) from e


EXPORTERS = {"stablehlo": stablehlo, "onnx": onnx}
RUNNERS = {"stablehlo": _run_stablehlo, "onnx": _run_onnx}


def versions(form: str) -> dict[str, str]:
  """Returns the versions of the packages a format needs, except JAX."""
  if form != "onnx":
    return {}
  names = ("jax2onnx", "onnx", "onnxruntime")
  return {name: metadata.version(name) for name in names}

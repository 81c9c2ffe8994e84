"""Exports a model, checks the result against it, and writes all or nothing."""

import contextlib
import json
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

import gamix_jax
from gamix_jax import config as configs
from gamix_jax import files
from gamix_jax.errors import UserError
from gamix_jax.export import serialize, signatures
from gamix_jax.inference import Model, safetensors_io

FORMATS = ("stablehlo", "onnx", "safetensors")
# Of the largest difference, relative to the output's largest number where that
# is over 1. Of images, 1e-4 is an eightieth of a grey level.
TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 0.03}
ROWS = (1, 3)  # of the batches compared: the batch is a symbol


def export(model: Model, what: str, form: str, out: Path) -> dict[str, str]:
  """Writes a model, or a part of it, for other programs.

      stablehlo    <what>.stablehlo and <what>.stablehlo.json
      onnx         <what>.onnx and <what>.onnx.json
      safetensors  <what>.safetensors and config.json

  The .json says what goes in and comes out, of which run it is, and how far
  what was written is from the model.

  Args:
    model: see `gamix_jax.load`.
    what: "encoder" or "decoder"; as safetensors also "model".
    form: of FORMATS.
    out: a folder; made where there is none.

  Returns:
    {file: what it is}.

  Raises:
    UserError: a pair that does not go; a package that is missing; numbers
      other than the model's; it cannot be written. Nothing is written then.
  """
  check(what, form)
  with _staged(out) as folder:
    if form == "safetensors":
      return _safetensors(model, what, folder, out)
    return _function(model, what, form, folder)


def check(what: str, form: str) -> None:
  """Refuses what cannot be exported.

  Raises:
    UserError: as said.
  """
  if form not in FORMATS:
    raise UserError(f"--format={form} must be one of {', '.join(FORMATS)}.")
  if what not in safetensors_io.PARTS:
    raise UserError(
      f"--what={what} must be one of {', '.join(safetensors_io.PARTS)}."
    )
  if what == "model" and form != "safetensors":
    raise UserError(
      f"--what=model is for --format=safetensors; as {form} there are "
      f"{' and '.join(signatures.PARTS)}, a file each."
    )


@contextlib.contextmanager
def _staged(out: Path) -> Iterator[Path]:
  """Yields a temporary folder; moves its files to `out` if nothing failed.

  Not `files.atomic`, since `out` may hold other exports already.
  """
  with files.writing(out):
    existed = out.is_dir()
    out.mkdir(parents=True, exist_ok=True)
    try:
      with tempfile.TemporaryDirectory(prefix=files.PART, dir=out) as folder:
        yield Path(folder)
        for file in sorted(Path(folder).iterdir()):
          file.replace(out / file.name)
    finally:
      if not existed:
        with contextlib.suppress(OSError):  # not empty: the export succeeded
          out.rmdir()


def _safetensors(
  model: Model, what: str, folder: Path, out: Path
) -> dict[str, str]:
  beside = out / "config.json"
  if beside.is_file() and beside.read_text() != configs.to_json(model.config):
    raise UserError(
      f"{beside} is of another model; give another --out, or remove it."
    )
  trees = jax.device_get(model.variables)
  about = {
    "step": str(model.step),
    "which": model.which,
    "gamix_jax": gamix_jax.__version__,
  }
  safetensors_io.write(folder, what, model.config, trees, about)
  name = safetensors_io.FILE.format(what=what)
  kept, _ = safetensors_io.contents(folder / name)
  arrays = safetensors_io.flat(trees, what)
  if kept.keys() != arrays.keys() or any(
    not np.array_equal(kept[k], v) for k, v in arrays.items()
  ):
    raise UserError(
      f"{name} differs from the model when read back; nothing is kept."
    )
  count = sum(v.size for v in arrays.values())
  return {name: f"{count:,} numbers, bit for bit", "config.json": "every key"}


def _function(
  model: Model, what: str, form: str, folder: Path
) -> dict[str, str]:
  if form == "onnx":
    model = signatures.in_float32(model)
  part = signatures.part(model, what)
  name = f"{what}.{form}"
  (folder / name).write_bytes(serialize.MAKERS[form](part))
  data = (folder / name).read_bytes()  # what is compared is what is kept
  off = difference(part, form, data)
  tolerance = TOLERANCE[model.config.dtype]
  if not off <= tolerance:
    raise UserError(
      f"The exported {what} differs from the model by {off:.2g}, over the "
      f"tolerance of {tolerance:g}; nothing was written.\nTry another "
      f"--format of {', '.join(serialize.MAKERS)}."
    )
  about = _about(model, part, form, off)
  (folder / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n")
  return {
    name: f"{len(data):,} bytes, off by {off:.1e} at most",
    f"{name}.json": "what goes in and comes out",
  }


def difference(part: signatures.Part, form: str, data: bytes) -> float:
  """How far the bytes' outputs are from the model's.

  The largest absolute difference, relative to the largest number of an output
  where that is over 1. Infinite where names or shapes differ.
  """
  most = 0.0
  for rows in ROWS:
    x = part.probe(rows)
    ours, theirs = part.model(x), serialize.RUNNERS[form](data, x)
    if {k: v.shape for k, v in ours.items()} != {
      k: v.shape for k, v in theirs.items()
    }:
      return float("inf")
    for k, v in ours.items():
      wanted = np.asarray(v, np.float64)
      scale = max(1.0, np.max(np.abs(wanted)))
      most = max(most, float(np.max(np.abs(theirs[k] - wanted)) / scale))
  return most


def _about(model: Model, part: signatures.Part, form: str, off: float) -> dict:
  """What the .json says."""

  def rows(shape):
    return [serialize.BATCH, *shape]

  versions = {
    "gamix_jax": gamix_jax.__version__,
    "jax": jax.__version__,
    "python": platform.python_version(),
  }
  return {
    "what": part.name,
    "format": form,
    "inputs": {
      part.input: {
        "shape": rows(part.shape),
        "dtype": part.dtype.name,
        "range": part.range,
      }
    },
    "outputs": {
      k: {"shape": rows(v.shape[1:]), "dtype": v.dtype.name}
      for k, v in part.outputs().items()
    },
    "platforms": serialize.PLATFORMS if form == "stablehlo" else None,
    "step": model.step,
    "which": model.which,
    "max_difference": off,
    "tolerance": TOLERANCE[model.config.dtype],
    "versions": versions | serialize.versions(form),
    "config": json.loads(configs.to_json(model.config)),
  }

"""Exports a model, compares the result with it, and writes atomically."""

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
from gamix_jax import files, pictures
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.evaluate.report import NUMBERS
from gamix_jax.export import card, serialize, signatures
from gamix_jax.export.card import CARD, PICTURE, Facts
from gamix_jax.inference import safetensors_io
from gamix_jax.inference.base import LoadedModel
from gamix_jax.registry import check_choice

FORMATS = ("stablehlo", "onnx", "safetensors")
# Accepted difference, relative to the output's largest absolute value if > 1.
# For images, 1e-4 is an eightieth of a grey level.
TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 0.03}
BATCH_SIZES = (1, 3)  # compared with the model; the batch size is symbolic


def export(
  model: LoadedModel,
  what: str,
  form: str,
  out: Path,
  facts: Facts | None = None,
) -> dict[str, str]:
  """Exports a model, or a part of it, for other programs.

      stablehlo    <what>.stablehlo and <what>.stablehlo.json
      onnx         <what>.onnx and <what>.onnx.json
      safetensors  <what>.safetensors and config.json; with "model" also
                   README.md, a model card, samples.png, and metrics.json of
                   `evaluate`: what the Hugging Face hub takes as it is

  The .json lists inputs, outputs, run, versions and the largest difference
  between the exported function and the model.

  Args:
    model: see `gamix_jax.load`.
    what: "encoder" or "decoder"; with safetensors also "model".
    form: one of FORMATS.
    out: the output folder; created if missing.
    facts: for the card of "model".

  Returns:
    {file name: description}.

  Raises:
    UserError: as `check`, if a package is missing, if the result differs from
      the model, or if a file cannot be written. Nothing is written then.
  """
  check(what, form, facts)
  facts = facts or Facts()
  config = ConfigDict(model.config)
  config.data.source = facts.source or config.data.source
  with _staged(out) as folder:
    if form != "safetensors":
      return _function(model, what, form, folder)
    written = _safetensors(model, config, what, folder, out)
    if what == "model":
      written |= _with_card(model, config, facts, folder, out)
  if what == "model":
    for name in {PICTURE, NUMBERS} - written.keys():  # of an earlier export
      (out / name).unlink(missing_ok=True)
  return written


def check(what: str, form: str, facts: Facts | None = None) -> None:
  """Validates --what and --format, and whether there is a card for the facts.

  Raises:
    UserError: if one is unknown, or they cannot be combined.
  """
  check_choice("--format", form, FORMATS)
  check_choice("--what", what, safetensors_io.PARTS)
  if what == "model" and form != "safetensors":
    raise UserError(
      f"--what=model is for --format=safetensors; with --format={form} use "
      f"--what={' or '.join(signatures.PARTS)}."
    )
  if what != "model" and facts not in (None, Facts()):
    raise UserError(
      "--name, --license, --dataset, --source and --notes are for the card of "
      "--what=model --format=safetensors; remove them."
    )


@contextlib.contextmanager
def _staged(out: Path) -> Iterator[Path]:
  """Yields a temporary folder; moves its files to `out` if nothing failed.

  `files.atomic` does not fit, since `out` may hold other exports already.
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
  model: LoadedModel, config: ConfigDict, what: str, folder: Path, out: Path
) -> dict[str, str]:
  saved = out / "config.json"
  if saved.is_file() and saved.read_text() != configs.to_json(config):
    raise UserError(
      f"{saved} is of another model; use another --out, or remove it."
    )
  trees = jax.device_get(model.variables)
  about = {
    "step": str(model.step),
    "which": model.which,
    "gamix_jax": gamix_jax.__version__,
  }
  safetensors_io.write(folder, what, config, trees, about)
  name = safetensors_io.FILE.format(what=what)
  written, _ = safetensors_io.contents(folder / name)
  arrays = safetensors_io.flat(trees, what)
  if written.keys() != arrays.keys() or any(
    not np.array_equal(written[k], v) for k, v in arrays.items()
  ):
    raise UserError(
      f"{name} differs from the model when read back; nothing was written."
    )
  count = sum(v.size for v in arrays.values())
  return {
    name: f"{count:,} values, identical to the model's",
    "config.json": "the complete config",
  }


def _with_card(
  model: LoadedModel,
  config: ConfigDict,
  facts: Facts,
  folder: Path,
  out: Path,
) -> dict[str, str]:
  """Writes the model card and what it shows."""
  if (out / CARD).is_file() and not card.is_card(out / CARD):
    raise UserError(
      f"{out / CARD} is not a model card of gamix_jax, and would be "
      "overwritten; use another --out."
    )
  written = {}
  found = card.read_numbers(model)
  if found is not None:
    for protocol in (found, *found["numbers"].values()):
      protocol["protocol"]["data"] = config.data.source
    text = json.dumps(found, indent=1, sort_keys=True)
    (folder / NUMBERS).write_text(text + "\n")
    written[NUMBERS] = "the numbers of gamix_jax.evaluate"
  picture = card.draw_samples(model)
  if picture is not None:
    pictures.save_png(folder / PICTURE, picture)
    written[PICTURE] = "new images"
  text = card.markdown(model, config, facts, found, picture is not None)
  (folder / CARD).write_text(text, encoding="utf-8")
  lacks = []
  if found is None:
    lacks.append("numbers: run python -m gamix_jax.evaluate before the export")
  if not facts.license:
    lacks.append("licence: give it with --license")
  note = f"; it has no {' and no '.join(lacks)}" if lacks else ""
  return written | {CARD: f"a model card{note}"}


def _function(
  model: LoadedModel, what: str, form: str, folder: Path
) -> dict[str, str]:
  if form == "onnx":
    model = signatures.in_float32(model)
  part = signatures.part(model, what)
  name = f"{what}.{form}"
  (folder / name).write_bytes(serialize.EXPORTERS[form](part))
  data = (folder / name).read_bytes()  # compare what was really written
  error = difference(part, form, data)
  tolerance = TOLERANCE[model.config.dtype]
  if not error <= tolerance:
    raise UserError(
      f"The exported {what} differs from the model by {error:.2g}, more than "
      f"the tolerance of {tolerance:g}; nothing was written.\nTry another "
      f"--format of {', '.join(serialize.EXPORTERS)}."
    )
  metadata = _metadata(model, part, form, error)
  (folder / f"{name}.json").write_text(json.dumps(metadata, indent=1) + "\n")
  return {
    name: f"{len(data):,} bytes, largest difference {error:.1e}",
    f"{name}.json": "inputs, outputs and versions",
  }


def difference(part: signatures.Part, form: str, data: bytes) -> float:
  """Returns the largest difference between exported and model outputs.

  The difference is absolute, or relative to the output's largest absolute value
  if that is > 1. It is infinite if names or shapes differ.
  """
  largest = 0.0
  for rows in BATCH_SIZES:
    x = part.probe(rows)
    expected = part.model(part.pack(x))
    actual = serialize.RUNNERS[form](data, part, x)
    if {k: v.shape for k, v in expected.items()} != {
      k: v.shape for k, v in actual.items()
    }:
      return float("inf")
    for k, output in expected.items():
      exact = np.asarray(output, np.float64)
      scale = max(1.0, np.max(np.abs(exact)))
      largest = max(largest, float(np.max(np.abs(actual[k] - exact)) / scale))
  return largest


def _metadata(
  model: LoadedModel, part: signatures.Part, form: str, error: float
) -> dict:
  """Returns the contents of the .json."""

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
      k: {"shape": rows(v.shape), "dtype": v.dtype.name, "range": v.range}
      for k, v in part.inputs.items()
    },
    "outputs": {
      k: {"shape": rows(v.shape[1:]), "dtype": v.dtype.name}
      for k, v in part.outputs().items()
    },
    "platforms": serialize.PLATFORMS if form == "stablehlo" else None,
    "step": model.step,
    "which": model.which,
    "max_difference": error,
    "tolerance": TOLERANCE[model.config.dtype],
    "versions": versions | serialize.versions(form),
    "config": json.loads(configs.to_json(model.config)),
  }

"""Writes and reads a model's weights as safetensors, with its config.

model.safetensors   all arrays by dotted name:
                    vae.params.decoder.dense.kernel, vae.batch_stats...,
                    disc.params...; the header has step, which and checksum
config.json         the run's complete config

`gamix_jax.load(folder)` opens it like a workdir. encoder.safetensors and
decoder.safetensors hold one part under the same names, for other programs.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from gamix_jax import config as configs
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.step import TrainState

FILE = "{what}.safetensors"
FORMAT = "gamix_jax.inference.safetensors_io.1"
# {value of --what: modules of `vae`, None for all}. The encoder includes the
# posterior's head. A learned prior is in neither part. Of several modalities
# there is a module `encoders_<name>` for each, ...
PARTS = {
  "model": None,
  "encoder": ("encoder", "posterior", "encoders_", "fusion", "private"),
  "decoder": ("decoder", "decoders_"),
}


def is_exported(folder: Path) -> bool:
  """Returns whether a folder holds exported weights of a model or a part.

  False for a workdir, even if weights were exported into it.
  """
  return not (folder / "checkpoints").exists() and any(
    (folder / FILE.format(what=what)).is_file() for what in PARTS
  )


def flat(
  trees: Mapping[str, Any], what: str = "model"
) -> dict[str, np.ndarray]:
  """Returns the arrays of a model, or of a part, by dotted name.

  Args:
    trees: {"vae": {"params", "batch_stats"}, "disc": the same or empty}.
    what: a key of PARTS.
  """
  arrays = traverse_util.flatten_dict(dict(trees), sep=".")
  arrays = {k: np.asarray(jax.device_get(v)) for k, v in arrays.items()}
  if (modules := PARTS[what]) is None:
    return arrays
  return {
    k: v
    for k, v in arrays.items()
    if k.startswith("vae.") and _is_of(k.split(".")[2], modules)
  }


def _is_of(module: str, modules: tuple[str, ...]) -> bool:
  """Whether it is one of these modules; `x_` stands for all `x_<name>`."""
  return any(
    module.startswith(m) if m.endswith("_") else module == m for m in modules
  )


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
  """SHA-256 of names and arrays; safetensors itself has no checksum."""
  checksum = hashlib.sha256()
  for name in sorted(arrays):
    value = arrays[name]
    checksum.update(f"{name} {value.dtype} {value.shape}\n".encode())
    checksum.update(np.ascontiguousarray(value).data)
  return checksum.hexdigest()


def write(
  folder: Path,
  what: str,
  config: ConfigDict,
  trees: Mapping[str, Any],
  about: Mapping[str, str],
) -> None:
  """Writes <what>.safetensors and config.json into an existing folder.

  Args:
    folder: the folder to write to.
    what: a key of PARTS.
    config: the run's config.
    trees: {"vae": {"params", "batch_stats"}, "disc": the same or empty}.
    about: more text for the header; `read` needs "step" and "which".

  Raises:
    OSError: if a file cannot be written.
  """
  from safetensors.numpy import save  # noqa: PLC0415

  arrays = {k: np.ascontiguousarray(v) for k, v in flat(trees, what).items()}
  header = {**about, "format": FORMAT, "what": what}
  header["sha256"] = _checksum(arrays)
  data = save(arrays, metadata=header)
  (folder / FILE.format(what=what)).write_bytes(data)
  (folder / "config.json").write_text(configs.to_json(config))


def contents(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Reads the arrays and the header of a file that `write` wrote.

  Raises:
    UserError: if it is damaged, or written by another program or version.
  """
  from safetensors import SafetensorError, safe_open  # noqa: PLC0415

  try:
    with safe_open(os.fspath(path), framework="numpy") as file:
      header = file.metadata() or {}
      arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  except OSError as e:
    raise UserError(f"{path} cannot be read ({e.strerror or e}).") from e
  # A damaged header may name an unknown dtype or an impossible shape.
  except (SafetensorError, TypeError, ValueError, LookupError) as e:
    raise UserError(f"{path} is damaged ({e}); export it again.") from e
  if header.get("format") != FORMAT:
    raise UserError(
      f"{path} was not written by this version of gamix_jax.export (its format "
      f"is {header.get('format')!r}, not {FORMAT!r})."
    )
  intact = _checksum(arrays) == header.get("sha256") and "which" in header
  if not intact or not header.get("step", "").isdecimal():
    raise UserError(
      f"{path} is damaged (its checksum does not match); export it again."
    )
  return arrays, header


def read(
  folder: Path, shapes: TrainState, which: str, step: int | None
) -> tuple[int, dict[str, Any], dict[str, Any]]:
  """Reads a model from model.safetensors.

  Args:
    folder: the exported folder.
    shapes: the abstract state of the folder's config.
    which: "ema" or "raw"; must match the exported weights.
    step: must match the exported step; None accepts any.

  Returns:
    The step, and the NumPy arrays of the VAE and of the discriminator.

  Raises:
    UserError: if the folder holds only a part, other weights or another step,
      or if the file is damaged or does not match the config.
  """
  path = folder / FILE.format(what="model")
  if not path.is_file():
    raise UserError(
      f"{folder} holds only a part of a model, which is for other programs.\n"
      "Export with --what=model --format=safetensors to load it here."
    )
  arrays, header = contents(path)
  if which != header["which"]:
    raise UserError(
      f"{folder} holds only the {header['which']!r} weights; use "
      f"which={header['which']!r}, or export with --which={which}."
    )
  if step is not None and step != int(header["step"]):
    raise UserError(
      f"{folder} holds only step {header['step']}, not step {step}."
    )
  expected = {
    "vae": {
      "params": shapes.vae.params,
      "batch_stats": shapes.vae.batch_stats,
    },
    "disc": {
      "params": shapes.disc.params,
      "batch_stats": shapes.disc.batch_stats,
    },
  }
  named = traverse_util.flatten_dict(expected, sep=".", keep_empty_nodes=True)
  leaves = {k: v for k, v in named.items() if hasattr(v, "shape")}
  mismatched = sorted(leaves.keys() ^ arrays.keys()) or sorted(
    k
    for k, v in leaves.items()
    if (v.shape, v.dtype) != (arrays[k].shape, arrays[k].dtype)
  )
  if mismatched:
    raise UserError(
      f"{path} is of another model than the config.json next to it: "
      f"{mismatched[0]} and {len(mismatched) - 1} more arrays differ."
    )
  trees = traverse_util.unflatten_dict(
    {k: arrays.get(k, empty) for k, empty in named.items()}, sep="."
  )
  return int(header["step"]), trees["vae"], trees["disc"]

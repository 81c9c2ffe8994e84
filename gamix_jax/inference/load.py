"""Loads a workdir's config and weights."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax

from gamix_jax import build
from gamix_jax.checkpoint import Checkpoints
from gamix_jax.config import ConfigDict, read
from gamix_jax.errors import UserError
from gamix_jax.inference import safetensors_io
from gamix_jax.inference.model import Model
from gamix_jax.inference.multimodal import MultimodalModel
from gamix_jax.locate import Location, locate
from gamix_jax.registry import check_choice
from gamix_jax.step import init

WHICH = ("ema", "raw")


def load(
  workdir: str | os.PathLike[str] | Location,
  which: str = "ema",
  step: int | None = None,
  *,
  batch_size: int | None = None,
  data: Mapping[str, str] | None = None,
) -> Model | MultimodalModel:
  """Loads a trained model: of a run, of this package, or of the hub.

  A run with `data.modalities` has a `MultimodalModel`.

  Reads only the weights, not the optimiser states, and replicates them on all
  devices of this process, whatever devices the run used.

  Args:
    workdir: a run's workdir, or a folder written by `gamix_jax.export`; for the
      latter, `which` and `step` must match the exported weights. Or the name
      of a model: "pretrained:digits" is in this package, and
      "hf:<user>/<repo>[@revision]" on the Hugging Face hub; see `locate`.
    which: "ema" for the averaged weights, "raw" for those of the last step.
    step: of the checkpoint; default: the newest complete one.
    batch_size: observations on the devices at a time; default: by image size.
    data: values that replace those in the config, unless "": `source`, where
      the images are now; `fingerprint`, "any" to accept other images.

  Raises:
    UserError: as `locate`, if there is no run, no complete checkpoint or none
      of that step, if a later version of gamix_jax wrote the run, or if
      `which` or `batch_size` is invalid.

  Example:
    >>> model = gamix_jax.load("pretrained:digits")
    >>> model.step, model.config.objective.name, model.config.model.latent
    (6000, 'gamix', 10)
  """
  check_choice("which", which, WHICH)
  where = locate(workdir)
  path = where.folder
  config = saved_config(path)
  for key, value in (data or {}).items():
    if value:
      config.data[key] = value
  spec = build.train_spec(config)
  made = partial(
    MultimodalModel if spec.multimodal else Model,
    *(config, spec),
    batch_size=batch_size,
    location=where,
    which=which,
  )
  state = jax.eval_shape(partial(init, spec))
  if safetensors_io.is_exported(path):
    return made(*safetensors_io.read(path, state, which, step))
  part = {
    "vae": {"batch_stats": state.vae.batch_stats},
    "disc": {
      "params": state.disc.params,
      "batch_stats": state.disc.batch_stats,
    },
  }
  if which == "ema":
    part["ema"] = state.ema
  else:
    part["vae"]["params"] = state.vae.params
  restored = Checkpoints(path / "checkpoints", keep=1).restore_part(part, step)
  if restored is None:
    raise UserError(
      f"{path} has no checkpoint yet; the run saves its first at step "
      f"{min(config.checkpoint.every, config.steps)}."
    )
  step, part = restored
  vae = part.pop("vae")
  if which == "ema":
    vae["params"] = part["ema"]
  return made(step, vae, part["disc"])


def saved_config(path: Path) -> ConfigDict:
  """Reads the config of a run.

  Raises:
    UserError: if there is none, or it has a key unknown to this version.
  """
  if not path.is_dir():
    raise UserError(f"{path} is not a folder; use the workdir of a run.")
  saved = path / "config.json"
  if not saved.exists():
    raise UserError(f"{path} has no config.json; use the workdir of a run.")
  return read(saved)

"""A workdir's config and weights."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax

from gamix_jax import build, paths
from gamix_jax.checkpoint import Checkpoints
from gamix_jax.config import ConfigDict, read
from gamix_jax.errors import UserError
from gamix_jax.inference import safetensors_io
from gamix_jax.inference.model import Model
from gamix_jax.step import init

WHICH = ("ema", "raw")


def load(
  workdir: str | os.PathLike[str],
  which: str = "ema",
  step: int | None = None,
  *,
  batch_size: int | None = None,
  data: Mapping[str, str] | None = None,
) -> Model:
  """Opens the model that a run has come to.

  Only weights are read, not the optimisers' arrays, onto all devices of this
  process, whatever devices the run had.

  Args:
    workdir: the run's; or a folder that `gamix_jax.export` wrote, of which
      `which` and `step` must be what it holds.
    which: "ema", the average over the steps, or "raw", the last step's.
    step: that checkpoint's; the newest whole one if left out.
    batch_size: images on the devices at a time; chosen by their size if left
      out.
    data: what replaces the run's own values where it is not "": `source` where
      its images lie now, `fingerprint` "any" to take other images than its own.

  Raises:
    UserError: no run there, no checkpoint or none that is whole or of that
      step, a run of a later version of this program, `which` or `batch_size`
      is none.
  """
  if which not in WHICH:
    raise UserError(f"which={which!r} must be one of {', '.join(WHICH)}.")
  path = paths.resolve(workdir)
  config = saved_config(path)
  for key, value in (data or {}).items():
    if value:
      config.data[key] = value
  spec = build.train_spec(config)
  state = jax.eval_shape(partial(init, spec))
  if safetensors_io.is_exported(path):
    found = safetensors_io.read(path, state, which, step)
    return Model(
      *(config, spec, *found),
      batch_size=batch_size,
      workdir=path,
      which=which,
    )
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
  found = Checkpoints(path / "checkpoints", keep=1).restore_part(part, step)
  if found is None:
    raise UserError(
      f"{path} holds no checkpoint yet; the run saves its first at step "
      f"{min(config.checkpoint.every, config.steps)}."
    )
  step, part = found
  vae = part.pop("vae")
  if which == "ema":
    vae["params"] = part["ema"]
  return Model(
    *(config, spec, step, vae, part["disc"]),
    batch_size=batch_size,
    workdir=path,
    which=which,
  )


def saved_config(path: Path) -> ConfigDict:
  """The config of the run in a folder.

  Raises:
    UserError: there is none, or a key of it is not one of this version.
  """
  if not path.is_dir():
    raise UserError(f"{path} is no folder; give the workdir of a run.")
  saved = path / "config.json"
  if not saved.exists():
    raise UserError(
      f"{path} holds no config.json, so it is not the workdir of a run."
    )
  return read(saved)

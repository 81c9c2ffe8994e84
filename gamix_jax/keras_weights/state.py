"""Converts a file's weights to a `TrainState` and a workdir."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from gamix_jax import build, files, paths, presets
from gamix_jax import config as configs
from gamix_jax.checkpoint import Checkpoints
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.keras_weights import names
from gamix_jax.keras_weights.file import Shapes, Weights, read
from gamix_jax.step import NetworkState, TrainSpec, TrainState, init

# The reference's values of config keys that its weights do not determine.
REFERENCE_KEYS = {
  "encoder": "resnet",
  "decoder": "resnet",
  "input_norm": "layer",
  "patch": 1,
}
NORMS = ("affine", "batch")  # those that can represent all weights


def import_weights(
  weights: str | os.PathLike[str],
  config: ConfigDict,
  workdir: str | os.PathLike[str],
) -> Weights:
  """Creates a workdir from the reference's weights, atomically.

  Args:
    weights: the reference's `.weights.h5`.
    config: the config of that model, with ResNets, a Gaussian posterior and
      norm "affine" or "batch".
    workdir: the workdir to create; must be missing or empty.

  Returns:
    The contents of the file, which are saved as the checkpoint of its step.

  Raises:
    UserError: if the config does not match the weights (see `read`), the
      workdir is in use, or the disk is full.
    OSError: if the workdir cannot be created.
  """
  path = _check_unused(workdir)
  _check_config(config)
  spec = build.train_spec(config)
  abstract = jax.eval_shape(partial(init, spec))
  imported = read(weights, config, _shapes(config, abstract))
  state = to_state(imported, spec, abstract)
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.atomic(path) as staged:
    staged.mkdir()
    (staged / "config.json").write_text(configs.to_json(config))
    with Checkpoints(staged / "checkpoints", keep=1) as checkpoints:
      checkpoints.save(imported.step, state)
  return imported


def _check_unused(workdir: str | os.PathLike[str]) -> Path:
  """Returns the workdir's path; UserError unless it is missing or empty."""
  if "://" in os.fspath(workdir):
    raise UserError(
      f"--workdir={workdir} must be a local folder; copy it there afterwards."
    )
  path = Path(os.path.realpath(paths.resolve(workdir)))
  if path.exists() and not path.is_dir():
    raise UserError(f"--workdir={workdir} is a file, not a folder.")
  content = sorted(p.name for p in path.iterdir()) if path.exists() else []
  if "config.json" in content or "checkpoints" in content:
    raise UserError(f"--workdir={workdir} holds a run already; use another.")
  if content:
    raise UserError(
      f"--workdir={workdir} is not empty, it holds {content[0]}; use another."
    )
  return path


def _check_config(config: ConfigDict) -> None:
  presets.complete(config)
  if config.data.modalities:
    raise UserError(
      "data.modalities is set, but the reference's weights are of a model of "
      "images; use a config without it, such as configs/celeba_hq.py."
    )
  if config.posterior.name != "gaussian":
    raise UserError(
      f"posterior.name={config.posterior.name!r}, but the reference's is "
      "Gaussian; use --config.posterior.name=gaussian."
    )
  for name, value in REFERENCE_KEYS.items():
    if config.model[name] != value:
      raise UserError(
        f"model.{name}={config.model[name]!r}, but the reference has "
        f"{value!r}; use --config.model.{name}={value}."
      )
  if config.model.norm not in NORMS:
    raise UserError(
      f"model.norm={config.model.norm!r} cannot represent the reference's "
      "batch normalisations; use --config.model.norm=affine, as it was "
      "trained, or batch."
    )


def _leaf(state: TrainState, role: str) -> Any:
  """Returns the leaf of a role, or None if the state has none."""
  net, collection, keys = names.locate(role)
  node = getattr(getattr(state, net), collection)
  for key in keys:
    if key not in node:
      return None
    node = node[key]
  return node


def _shapes(config: ConfigDict, abstract: TrainState) -> Shapes:
  """Returns {role: shape} of the weights that a config's model has."""
  leaves = {role: _leaf(abstract, role) for role in names.datasets(config)}
  return {role: leaf.shape for role, leaf in leaves.items() if leaf is not None}


def to_state(
  weights: Weights, spec: TrainSpec, abstract: TrainState
) -> TrainState:
  """Converts the file's weights to the state of a run at the same step.

  The reference has no averaged weights, so the average starts as the weights.
  If the file has no Adam moments, they start at 0, and so does Adam's count.

  Args:
    weights: returned by `read`.
    spec: built from the same config.
    abstract: its state, from `jax.eval_shape`.
  """
  disc = NetworkState({}, {}, ())
  if spec.disc is not None:
    disc = _net(weights, "disc", spec.disc_optimizer, abstract)
  vae = _net(weights, "vae", spec.vae_optimizer, abstract)
  return TrainState(
    step=jnp.asarray(weights.step, jnp.int32),
    vae=vae,
    disc=disc,
    objective=spec.objective.init(),
    ema=jax.tree.map(jnp.copy, vae.params),
    nonfinite=jnp.zeros(2, jnp.int32),
  )


def _net(
  weights: Weights,
  net: str,
  optimizer: optax.GradientTransformation,
  abstract: TrainState,
) -> NetworkState:
  """Builds the state of one network and of its optimiser."""

  def trees(values):
    """Builds params and batch statistics; skips roles the model lacks."""
    out: dict[str, dict] = {"params": {}, "batch_stats": {}}
    for role, value in values.items():
      owner, collection, keys = names.locate(role)
      leaf = _leaf(abstract, role)
      if owner == net and leaf is not None:
        out[collection][keys] = jnp.asarray(value, leaf.dtype)
    return [traverse_util.unflatten_dict(tree) for tree in out.values()]

  params, stats = trees(_fold_biases(weights.values, abstract))
  adam = weights.adam.get(net)
  moments = None
  if adam is not None:
    moments = optax.ScaleByAdamState(
      jnp.asarray(adam.count, jnp.int32), trees(adam.mu)[0], trees(adam.nu)[0]
    )
  opt_state = _advance(optimizer.init(params), weights.step, moments)
  return NetworkState(params, stats, opt_state)


def _fold_biases(
  values: dict[str, np.ndarray], abstract: TrainState
) -> dict[str, np.ndarray]:
  """Folds biases that do not exist with norm="batch" into the running means.

  Normalising y + bias with mean m equals normalising y with mean m - bias.
  """
  values = dict(values)
  for role in [r for r in values if _leaf(abstract, r) is None]:
    mean = _following_mean(role)
    values[mean] = values[mean] - values[role]
  return values


def _following_mean(bias: str) -> str:
  """stage0/down/conv1/bias -> .../bn2/moving_mean; layer0/conv -> .../bn."""
  block, layer, _ = bias.rsplit("/", 2)
  number = layer.removeprefix("conv")
  norm = f"bn{int(number) + 1}" if number else "bn"
  return f"{block}/{norm}/moving_mean"


def _advance(
  initial: optax.OptState, step: int, moments: optax.ScaleByAdamState | None
) -> optax.OptState:
  """Sets the step, and Adam's moments if any, in an initial optimiser state."""

  def is_leaf(part):
    types = (optax.ScaleByAdamState, optax.ScaleByScheduleState)
    return isinstance(part, types)

  def fill(part):
    if isinstance(part, optax.ScaleByScheduleState):
      return optax.ScaleByScheduleState(jnp.asarray(step, jnp.int32))
    if isinstance(part, optax.ScaleByAdamState) and moments is not None:
      return moments
    return part

  return jax.tree.map(fill, initial, is_leaf=is_leaf)

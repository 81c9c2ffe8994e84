"""A run's state, and a workdir, of what a file holds."""

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

# Keys that its weights do not tell, as it has them.
MODEL = {
  "encoder": "resnet",
  "decoder": "resnet",
  "input_norm": "layer",
  "patch": 1,
}
NORMS = ("affine", "batch")  # those with a place for every weight


def import_weights(
  weights: str | os.PathLike[str],
  config: ConfigDict,
  workdir: str | os.PathLike[str],
) -> Weights:
  """Makes a workdir of the reference's weights, whole or not at all.

  Args:
    weights: the reference's `.weights.h5`.
    config: of that model; its networks are ResNets, its posterior is Gaussian,
      its norm affine or batch.
    workdir: to be made; absent or empty.

  Returns:
    What was in the file; saved as the checkpoint of its step.

  Raises:
    UserError: a config the weights cannot be of (see `read`), a workdir in
      use, a disk that is full.
    OSError: the workdir cannot be made.
  """
  path = _free(workdir)
  _check_config(config)
  spec = build.train_spec(config)
  abstract = jax.eval_shape(partial(init, spec))
  found = read(weights, config, _shapes(config, abstract))
  state = to_state(found, spec, abstract)
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.atomic(path) as staged:
    staged.mkdir()
    (staged / "config.json").write_text(configs.to_json(config))
    with Checkpoints(staged / "checkpoints", keep=1) as checkpoints:
      checkpoints.save(found.step, state)
  return found


def _free(workdir: str | os.PathLike[str]) -> Path:
  """The workdir, found absent or empty."""
  if "://" in os.fspath(workdir):
    raise UserError(
      f"--workdir={workdir}: import to a local folder and copy it there."
    )
  path = Path(os.path.realpath(paths.resolve(workdir)))
  if path.exists() and not path.is_dir():
    raise UserError(f"--workdir={workdir} is a file, not a folder.")
  held = sorted(p.name for p in path.iterdir()) if path.exists() else []
  if "config.json" in held or "checkpoints" in held:
    raise UserError(f"--workdir={workdir} holds a run already; use another.")
  if held:
    raise UserError(
      f"--workdir={workdir} is not empty, it holds {held[0]}; use another."
    )
  return path


def _check_config(config: ConfigDict) -> None:
  presets.complete(config)
  if config.posterior.name != "gaussian":
    raise UserError(
      f"posterior.name={config.posterior.name!r}, but the reference's is "
      "a Gaussian: use --config.posterior.name=gaussian."
    )
  for name, its in MODEL.items():
    if config.model[name] != its:
      raise UserError(
        f"model.{name}={config.model[name]!r}, but the reference's is {its!r}: "
        f"use --config.model.{name}={its}."
      )
  if config.model.norm not in NORMS:
    raise UserError(
      f"model.norm={config.model.norm!r} has no place for the reference's "
      "batch normalisations: use --config.model.norm=affine, as it was "
      "trained, or batch."
    )


def _leaf(state: TrainState, role: str) -> Any:
  """The leaf of a role, or None where the state has none."""
  net, collection, keys = names.locate(role)
  found = getattr(getattr(state, net), collection)
  for key in keys:
    if key not in found:
      return None
    found = found[key]
  return found


def _shapes(config: ConfigDict, abstract: TrainState) -> Shapes:
  """{role: shape} of the weights that a config has a place for."""
  leaves = {role: _leaf(abstract, role) for role in names.datasets(config)}
  return {role: leaf.shape for role, leaf in leaves.items() if leaf is not None}


def to_state(
  weights: Weights, spec: TrainSpec, abstract: TrainState
) -> TrainState:
  """The state of a run that had come as far as the file.

  The average of the weights, which the reference has not, starts as the
  weights. Where the file has no moments of Adam they start at 0, and Adam's own
  count with them.

  Args:
    weights: of `read`.
    spec: of the same config.
    abstract: its state, by `jax.eval_shape`.
  """
  disc = NetworkState({}, {}, ())
  if spec.disc is not None:
    disc = _net(weights, "disc", spec.disc_optimizer, abstract)
  vae = _net(weights, "vae", spec.vae_optimizer, abstract)
  return TrainState(
    step=jnp.asarray(weights.step, jnp.int32),
    vae=vae,
    disc=disc,
    ema=jax.tree.map(jnp.copy, vae.params),
    nonfinite=jnp.zeros(2, jnp.int32),
  )


def _net(
  weights: Weights,
  net: str,
  optimizer: optax.GradientTransformation,
  abstract: TrainState,
) -> NetworkState:
  """One network's arrays and its optimiser's."""

  def trees(values):
    """Params and batch statistics; what has no place here is left out."""
    out: dict[str, dict] = {"params": {}, "batch_stats": {}}
    for role, value in values.items():
      of, collection, keys = names.locate(role)
      leaf = _leaf(abstract, role)
      if of == net and leaf is not None:
        out[collection][keys] = jnp.asarray(value, leaf.dtype)
    return [traverse_util.unflatten_dict(tree) for tree in out.values()]

  params, stats = trees(_without_biases(weights.values, abstract))
  adam = weights.adam.get(net)
  moments = None
  if adam is not None:
    moments = optax.ScaleByAdamState(
      jnp.asarray(adam.count, jnp.int32), trees(adam.mu)[0], trees(adam.nu)[0]
    )
  fresh = optimizer.init(params)
  return NetworkState(params, stats, _advance(fresh, weights.step, moments))


def _without_biases(
  values: dict[str, np.ndarray], abstract: TrainState
) -> dict[str, np.ndarray]:
  """The same function without the biases that norm="batch" leaves out.

  What a batch normalisation of mean m makes of y + bias is what one of mean
  m - bias makes of y.
  """
  values = dict(values)
  for role in [r for r in values if _leaf(abstract, r) is None]:
    mean = _mean_behind(role)
    values[mean] = values[mean] - values[role]
  return values


def _mean_behind(bias: str) -> str:
  """stage0/down/conv1/bias -> .../bn2/moving_mean; layer0/conv -> .../bn."""
  block, layer, _ = bias.rsplit("/", 2)
  number = layer.removeprefix("conv")
  behind = f"bn{int(number) + 1}" if number else "bn"
  return f"{block}/{behind}/moving_mean"


def _advance(
  fresh: optax.OptState, step: int, moments: optax.ScaleByAdamState | None
) -> optax.OptState:
  """An optimiser's first state as of a step, with Adam's moments if any."""

  def known(part):
    kinds = (optax.ScaleByAdamState, optax.ScaleByScheduleState)
    return isinstance(part, kinds)

  def fill(part):
    if isinstance(part, optax.ScaleByScheduleState):
      return optax.ScaleByScheduleState(jnp.asarray(step, jnp.int32))
    if isinstance(part, optax.ScaleByAdamState) and moments is not None:
      return moments
    return part

  return jax.tree.map(fill, fresh, is_leaf=known)

"""What a `.weights.h5` of the reference holds, and whether it fits."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gamix_jax import config as configs
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.keras_weights import names
from gamix_jax.networks.resnet import bottleneck_channels

OPTIMIZERS = {"vae": "generator_optimizer", "disc": "discriminator_optimizer"}
_FIRST_OF_DISC = "discriminator/layer0/conv/kernel"

# What h5py raises where a file is damaged, depending on where.
_DAMAGE = (OSError, RuntimeError, KeyError, TypeError, ValueError, MemoryError)

Arrays = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Adam:
  """Adam's moments of one network, {role: array}, after `count` updates."""

  count: int
  mu: Arrays
  nu: Arrays


@dataclasses.dataclass(frozen=True)
class Weights:
  """What a file holds.

  Attributes:
    values: {role: array}; without the discriminator's if the config has none.
    step: the updates of the VAE.
    adam: {"vae" or "disc": moments}, of those that the file has.
  """

  values: Arrays
  step: int
  adam: dict[str, Adam]


def read(
  path: str | os.PathLike[str], config: ConfigDict, wanted: Shapes
) -> Weights:
  """Reads a `.weights.h5` of the reference.

  Args:
    path: the file.
    config: of the model it shall be.
    wanted: {role: shape} by that config, of what must be there.

  Returns:
    Everything of that model, as Keras has it.

  Raises:
    UserError: missing or damaged; without the sampler's weights; of another
      model; with numbers that are not finite.
  """
  path = Path(path)
  if not path.is_file():
    raise UserError(f"--weights={path}: there is no such file.")
  file = _arrays(path)
  of = _lengths(file, str(path))
  paths = _check_whole(file, str(path), of)
  shapes = {role: file[p].shape for role, p in paths.items()}
  _check_shapes(str(path), config, wanted, shapes, of)
  weights = _weights(file, paths, _uses_disc(config))
  _check_finite(str(path), weights)
  return weights


def _arrays(path: Path) -> Arrays:
  """Everything in an HDF5 file, {path: array}; seeds are left out.

  Raises:
    UserError: it is none, or damaged.
  """
  found: Arrays = {}

  def visit(name, item):
    if isinstance(item, h5py.Dataset) and "seed_generator" not in name:
      found[name] = np.asarray(item[()])

  try:
    with h5py.File(path) as file:
      file.visititems(visit)
  except _DAMAGE as e:
    reason = str(e).strip("'")
    raise UserError(f"{path} cannot be read as HDF5: {reason}.") from e
  return found


def _uses_disc(config: ConfigDict) -> bool:
  return config.adversarial.loss != "none"


def _lengths(file: Arrays, where: str) -> names.Lengths:
  """Raises UserError where there is nothing of the reference's encoder."""
  groups: dict[str, set[str]] = {part: set() for part in names.FOLDERS}
  for path in file:
    for part, folder in names.FOLDERS.items():
      if path.startswith(f"{folder}/"):
        groups[part].add(path.removeprefix(f"{folder}/").split("/")[0])
  if not groups["encoder"]:
    raise UserError(
      f"{where} is not of the reference's model: it has nothing in "
      f"{names.FOLDERS['encoder']}."
    )
  return names.lengths_of_groups(groups)


def _check_whole(file: Arrays, where: str, of: names.Lengths) -> dict[str, str]:
  """{role: path} of a whole model and nothing besides.

  Raises:
    UserError: something is missing, or is there that the reference has not.
  """
  paths = names.datasets_of(of)
  missing = [role for role, path in paths.items() if path not in file]
  if any(role.startswith("sampler/") for role in missing):
    raise UserError(
      f"{where} lacks the sampler's weights (z_mean, z_log_var): the model was "
      "saved before its first call, and Keras had not made them yet.\n"
      "Call it on a batch, save it again and import that file."
    )
  if _FIRST_OF_DISC not in paths:
    missing.append(_FIRST_OF_DISC)
  if missing:
    raise UserError(f"{where} is not a whole model: it lacks {missing[0]}.")
  folders = tuple(f"{folder}/" for folder in names.FOLDERS.values())
  known = set(paths.values())
  extra = [p for p in file if p.startswith(folders) and p not in known]
  if extra:
    raise UserError(
      f"{where} is not of the reference's networks: it has {extra[0]} besides."
    )
  return paths


def _check_shapes(
  where: str,
  config: ConfigDict,
  wanted: Shapes,
  shapes: Shapes,
  of: names.Lengths,
) -> None:
  """Refuses the weights of another model.

  Raises:
    UserError: names the first layer that differs and the keys to fix it.
  """
  roles = list(names.datasets(config))
  roles += [role for role in shapes if role not in roles]
  if not _uses_disc(config):
    roles = [r for r in roles if names.locate(r)[0] == "vae"]
  of_config = names.datasets(config)
  for role in roles:
    # A bias before a batch norm has no place here; see `state`.
    here = wanted.get(role, shapes.get(role) if role in of_config else None)
    there = shapes.get(role)
    if there != here:
      break
  else:
    return
  its, mine = _keys_of_file(shapes, of), _keys_of_config(config)
  flags = [
    f"--config.{key}='{its[key]}'"
    if isinstance(its[key], tuple)
    else f"--config.{key}={its[key]}"
    for key in its
    if key in mine and mine[key] != its[key]
  ]
  raise UserError(
    f"{where} is of another model: {role} is {there or 'not'} in it, "
    f"{here or 'not'} in the config's.\n"
    f"The keys of the file's: {' '.join(flags)}"
  )


def _keys_of_file(shapes: Shapes, of: names.Lengths) -> dict[str, Any]:
  """The config's keys that a file's shapes determine."""

  def features(part, block, count):
    stages = [f"{part}/stage{s}/{block}/conv1" for s in range(count - 1)]
    layers = [f"{part}/stem", *stages]
    return tuple(shapes[f"{layer}/bias"][0] for layer in layers)

  height, width = shapes["encoder/layernorm/gamma"]
  latent = shapes["sampler/z_mean/bias"][0]
  return {
    "data.image_size": height if height == width else (height, width),
    "data.channels": shapes["encoder/stem/kernel"][2],
    "model.latent": latent,
    "model.bottleneck_channels": _head(shapes["encoder/head/bias"][0], latent),
    # The first convolution of a stage's last block has the next width.
    "model.encoder_features": features("encoder", "down", of.encoder),
    "model.decoder_features": features("decoder", "up", of.decoder),
    "model.discriminator_features": tuple(
      shapes[f"discriminator/layer{i}/conv/bias"][0]
      for i in range(of.discriminator)
    ),
  }


def _keys_of_config(config: ConfigDict) -> dict[str, Any]:
  """The same keys of a config."""
  height, width, channels = configs.image_shape(config)
  model = config.model
  keys = {
    "data.image_size": height if height == width else (height, width),
    "data.channels": channels,
    "model.latent": model.latent,
    "model.bottleneck_channels": _head(
      bottleneck_channels(model), model.latent
    ),
    "model.encoder_features": tuple(model.encoder_features),
    "model.decoder_features": tuple(model.decoder_features),
  }
  if _uses_disc(config):
    keys["model.discriminator_features"] = tuple(model.discriminator_features)
  return keys


def _head(features: int, latent: int) -> int:
  """The head's features as a key: 0 where they are what 0 stands for."""
  return 0 if features == max(1, latent // 8) else features


def _weights(file: Arrays, paths: dict[str, str], disc: bool) -> Weights:
  roles = [r for r in paths if disc or names.locate(r)[0] == "vae"]
  values = {role: file[paths[role]] for role in roles}
  adam = {net: _adam(file, net, values) for net in OPTIMIZERS}
  return Weights(
    values,
    int(file.get(f"{OPTIMIZERS['vae']}/vars/0", 0)),
    {net: moments for net, moments in adam.items() if moments is not None},
  )


def _adam(file: Arrays, net: str, values: Arrays) -> Adam | None:
  """Adam's moments; None where there are none, or not of this model.

  The file has iterations, the learning rate, then both moments of every
  trainable weight in turn; before the first update only the first two.
  """
  trained = [r for r in values if names.locate(r)[:2] == (net, "params")]
  folder = f"{OPTIMIZERS[net]}/vars"
  held = sum(path.startswith(f"{folder}/") for path in file)
  if not trained or held != 2 + 2 * len(trained):
    return None
  slots = [file[f"{folder}/{2 + i}"] for i in range(2 * len(trained))]
  mu, nu = (dict(zip(trained, slots[i::2], strict=True)) for i in (0, 1))
  if any(m[r].shape != values[r].shape for m in (mu, nu) for r in trained):
    return None
  return Adam(int(file[f"{folder}/0"]), mu, nu)


def _check_finite(where: str, weights: Weights) -> None:
  found = [("", weights.values)]
  for net, adam in weights.adam.items():
    found += [(f"{OPTIMIZERS[net]} of ", m) for m in (adam.mu, adam.nu)]
  for prefix, arrays in found:
    for role, value in arrays.items():
      if not np.isfinite(value).all():
        raise UserError(
          f"{where} is of a training that failed: {prefix}{role} has numbers "
          "that are not finite."
        )

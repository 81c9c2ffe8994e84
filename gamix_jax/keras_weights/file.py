"""Reads and validates a `.weights.h5` of the reference."""

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

# The exceptions that h5py raises for damaged files.
_H5PY_ERRORS = (
  OSError,
  RuntimeError,
  KeyError,
  TypeError,
  ValueError,
  MemoryError,
)

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
  """The contents of a file.

  Attributes:
    values: {role: array}; without the discriminator if the config has none.
    step: number of updates of the VAE.
    adam: {"vae" or "disc": moments}, for the optimisers that the file has.
  """

  values: Arrays
  step: int
  adam: dict[str, Adam]


def read(
  path: str | os.PathLike[str], config: ConfigDict, expected: Shapes
) -> Weights:
  """Reads a `.weights.h5` of the reference.

  Args:
    path: the file.
    config: the config of the model.
    expected: {role: shape} of the weights that this config requires.

  Returns:
    All weights of that model, in Keras' layout.

  Raises:
    UserError: if the file is missing, damaged, incomplete or of another model,
      or if a value is not finite.
  """
  path = Path(path)
  if not path.is_file():
    raise UserError(f"--weights={path}: there is no such file.")
  file = _arrays(path)
  lengths = _lengths(file, str(path))
  paths = _check_complete(file, str(path), lengths)
  shapes = {role: file[p].shape for role, p in paths.items()}
  _check_shapes(str(path), config, expected, shapes, lengths)
  weights = _weights(file, paths, _uses_disc(config))
  _check_finite(str(path), weights)
  return weights


def _arrays(path: Path) -> Arrays:
  """Reads all arrays of an HDF5 file, {path: array}, except seeds.

  Raises:
    UserError: if it is not an HDF5 file, or damaged.
  """
  arrays: Arrays = {}

  def visit(name, item):
    if isinstance(item, h5py.Dataset) and "seed_generator" not in name:
      arrays[name] = np.asarray(item[()])

  try:
    with h5py.File(path) as file:
      file.visititems(visit)
  except _H5PY_ERRORS as e:
    reason = str(e).strip("'")
    raise UserError(f"{path} cannot be read as HDF5: {reason}.") from e
  return arrays


def _uses_disc(config: ConfigDict) -> bool:
  return config.adversarial.loss != "none"


def _lengths(file: Arrays, where: str) -> names.Lengths:
  """Counts the features of each network; UserError without an encoder."""
  groups: dict[str, set[str]] = {part: set() for part in names.FOLDERS}
  for path in file:
    for part, folder in names.FOLDERS.items():
      if path.startswith(f"{folder}/"):
        groups[part].add(path.removeprefix(f"{folder}/").split("/")[0])
  if not groups["encoder"]:
    raise UserError(
      f"{where} is not a file of the reference's model: it has nothing in "
      f"{names.FOLDERS['encoder']}."
    )
  return names.lengths_of_groups(groups)


def _check_complete(
  file: Arrays, where: str, lengths: names.Lengths
) -> dict[str, str]:
  """Returns {role: path} if the file holds exactly one complete model.

  Raises:
    UserError: if an array is missing or unexpected.
  """
  paths = names.datasets_of(lengths)
  missing = [role for role, path in paths.items() if path not in file]
  if any(role.startswith("sampler/") for role in missing):
    raise UserError(
      f"{where} lacks the sampler's weights (z_mean, z_log_var): the model was "
      "saved before its first call, which creates them.\n"
      "Call it on a batch, save it again and import that file."
    )
  if _FIRST_OF_DISC not in paths:
    missing.append(_FIRST_OF_DISC)
  if missing:
    raise UserError(f"{where} is not a complete model: it lacks {missing[0]}.")
  folders = tuple(f"{folder}/" for folder in names.FOLDERS.values())
  known = set(paths.values())
  extra = [p for p in file if p.startswith(folders) and p not in known]
  if extra:
    raise UserError(
      f"{where} is not a file of the reference's networks: {extra[0]} is not "
      "one of their arrays."
    )
  return paths


def _check_shapes(
  where: str,
  config: ConfigDict,
  expected: Shapes,
  shapes: Shapes,
  lengths: names.Lengths,
) -> None:
  """Checks that the file's shapes match the config.

  Raises:
    UserError: if not; the message has the first array that differs and the
      config keys of the file.
  """
  roles = list(names.datasets(config))
  roles += [role for role in shapes if role not in roles]
  if not _uses_disc(config):
    roles = [r for r in roles if names.locate(r)[0] == "vae"]
  config_roles = names.datasets(config)
  for role in roles:
    # A bias before a batch norm does not exist here; see `state`.
    in_config = expected.get(
      role, shapes.get(role) if role in config_roles else None
    )
    in_file = shapes.get(role)
    if in_file != in_config:
      break
  else:
    return
  file_keys, config_keys = _file_keys(shapes, lengths), _config_keys(config)
  flags = [
    f"--config.{key}='{value}'"
    if isinstance(value, tuple)
    else f"--config.{key}={value}"
    for key, value in file_keys.items()
    if key in config_keys and config_keys[key] != value
  ]
  raise UserError(
    f"{where} does not match the config: {role} has shape "
    f"{in_file or '(missing)'} in the file, {in_config or '(missing)'} in the "
    f"config's model.\nUse the file's keys: {' '.join(flags)}"
  )


def _file_keys(shapes: Shapes, lengths: names.Lengths) -> dict[str, Any]:
  """Returns the config keys that a file's shapes determine."""

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
    "model.encoder_features": features("encoder", "down", lengths.encoder),
    "model.decoder_features": features("decoder", "up", lengths.decoder),
    "model.discriminator_features": tuple(
      shapes[f"discriminator/layer{i}/conv/bias"][0]
      for i in range(lengths.discriminator)
    ),
  }


def _config_keys(config: ConfigDict) -> dict[str, Any]:
  """Returns the same keys from a config."""
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
  """Returns 0 if `features` is the default that the key's 0 stands for."""
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
  """Reads Adam's moments; None if there are none, or not of this model.

  The file has iterations, the learning rate, then both moments of every
  trainable weight in turn; before the first update only the first two.
  """
  trainable = [r for r in values if names.locate(r)[:2] == (net, "params")]
  folder = f"{OPTIMIZERS[net]}/vars"
  count = sum(path.startswith(f"{folder}/") for path in file)
  if not trainable or count != 2 + 2 * len(trainable):
    return None
  slots = [file[f"{folder}/{2 + i}"] for i in range(2 * len(trainable))]
  mu, nu = (dict(zip(trainable, slots[i::2], strict=True)) for i in (0, 1))
  if any(m[r].shape != values[r].shape for m in (mu, nu) for r in trainable):
    return None
  return Adam(int(file[f"{folder}/0"]), mu, nu)


def _check_finite(where: str, weights: Weights) -> None:
  groups = [("", weights.values)]
  for net, adam in weights.adam.items():
    groups += [(f"{OPTIMIZERS[net]} of ", m) for m in (adam.mu, adam.nu)]
  for prefix, arrays in groups:
    for role, value in arrays.items():
      if not np.isfinite(value).all():
        raise UserError(
          f"{where} is from a diverged training: {prefix}{role} has values "
          "that are not finite; use an earlier file."
        )

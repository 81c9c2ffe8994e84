"""Maps the reference's weights: from paths in its file to `TrainState` leaves.

Keras numbers the layers of a class in the order of the model (`conv2d`,
`conv2d_1`, ...), and Adam's moments follow the same order. So the list of
layers, which follows from the number of features of each network, determines
all paths in a file. A weight is identified by its role, such as
`encoder/stage0/down/conv1/kernel`.
"""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from gamix_jax.config import ConfigDict

FOLDERS = {
  "encoder": "layers/vae/encoder_model/layers",
  "sampler": "layers/vae/layers/sampler",
  "decoder": "layers/vae/decoder_model/layers",
  "discriminator": "discriminator_model/layers/functional/layers",
}
# Keras sorts a model's layers by their distance to its output, so those of a
# shortcut are between those of the main path.
_BLOCK = ("bn1", "conv1", "bn2", "conv2", "bn3", "conv3")
_DOWN = (*_BLOCK[:5], "bn4_shortcut", "conv3", "conv4_shortcut")
_UP = (
  *_BLOCK[:3],
  "bn3_shortcut",
  "conv2_transpose",
  "conv3_transpose_shortcut",
)
_STAGES = {
  "encoder": {"block0": _BLOCK, "block1": _BLOCK, "down": _DOWN},
  "decoder": {"block0": _BLOCK, "up": _UP},
}
_VARIABLES = {  # Keras' class name -> its variables 0, 1, ...
  "conv2d": ("kernel", "bias"),
  "conv2d_transpose": ("kernel", "bias"),
  "dense": ("kernel", "bias"),
  "layer_normalization": ("gamma", "beta"),
  "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
}
_LEAVES = {  # last part of a role -> collection and leaf in `TrainState`
  "kernel": ("params", "kernel"),
  "bias": ("params", "bias"),
  "gamma": ("params", "scale"),
  "beta": ("params", "bias"),
  "moving_mean": ("batch_stats", "mean"),
  "moving_variance": ("batch_stats", "var"),
}
_SAMPLER = {"z_mean": ("dense1", "mu"), "z_log_var": ("dense2", "logvar")}


class Lengths(NamedTuple):
  """The number of features of each network, which determines all names."""

  encoder: int
  decoder: int
  discriminator: int


def locate(role: str) -> tuple[str, str, tuple[str, ...]]:
  """Returns where a weight of the reference is stored in a `TrainState`.

  Args:
    role: such as `decoder/stage0/up/bn1/moving_mean`.

  Returns:
    The network ("vae" or "disc"), the collection ("params" or
    "batch_stats"), the keys down to the leaf. Values need no transposing.
  """
  part, *modules, last = role.split("/")
  collection, leaf = _LEAVES[last]
  if part == "sampler":
    return "vae", collection, ("posterior", _SAMPLER[modules[0]][1], leaf)
  if modules[-1].startswith("bn"):
    modules.append("norm")
  if part == "discriminator":
    return "disc", collection, (*modules, leaf)
  return "vae", collection, (part, *modules, leaf)


def lengths(config: ConfigDict) -> Lengths:
  """Returns the numbers of features of a config's networks."""
  model = config.model
  return Lengths(
    len(model.encoder_features),
    len(model.decoder_features),
    len(model.discriminator_features),
  )


def lengths_of_groups(groups: dict[str, Iterable[str]]) -> Lengths:
  """Infers the numbers of features from a file's {part: group names}."""

  def norms(part):
    names = [group.rstrip("0123456789_") for group in groups[part]]
    return names.count("batch_normalization")

  def features(part):
    layers = [n for block in _STAGES[part].values() for n in block]
    return norms(part) // sum(n.startswith("bn") for n in layers) + 1

  return Lengths(
    features("encoder"), features("decoder"), norms("discriminator")
  )


def datasets(config: ConfigDict) -> dict[str, str]:
  """Returns {role: path in the file} of all weights, in Keras' order."""
  return datasets_of(lengths(config))


def datasets_of(counts: Lengths) -> dict[str, str]:
  """As `datasets`, for networks with these numbers of features."""
  paths = {}
  for part, layers in _layers(counts).items():
    used: Counter[str] = Counter()
    for layer in layers:
      kind = "dense" if part == "sampler" else _class(layer)
      group = f"{kind}_{used[kind]}" if used[kind] else kind
      if part == "sampler":
        group = _SAMPLER[layer][0]
      used[kind] += 1
      for i, variable in enumerate(_VARIABLES[kind]):
        path = f"{FOLDERS[part]}/{group}/vars/{i}"
        paths[f"{part}/{layer}/{variable}"] = path
  return paths


def _layers(counts: Lengths) -> dict[str, list[str]]:
  """Returns the layers of each part, without its name, in Keras' order."""

  def stages(part):
    return [
      f"stage{s}/{block}/{layer}"
      for s in range(getattr(counts, part) - 1)
      for block, layers in _STAGES[part].items()
      for layer in layers
    ]

  return {
    "encoder": ["layernorm", "stem", *stages("encoder"), "head"],
    "sampler": list(_SAMPLER),
    "decoder": ["dense", "stem", *stages("decoder"), "out"],
    "discriminator": [
      f"layer{i}/{layer}"
      for i in range(counts.discriminator)
      for layer in ("conv", "bn")
    ],
  }


def _class(layer: str) -> str:
  """Returns Keras' class name of a layer."""
  name = layer.rpartition("/")[2]
  if name.startswith("bn"):
    return "batch_normalization"
  if "transpose" in name:
    return "conv2d_transpose"
  return {"layernorm": "layer_normalization", "dense": "dense"}.get(
    name, "conv2d"
  )

"""Presets: networks, weights and schedules that fit an image size and a budget.

A config with `preset` set leaves keys at None. `complete` fills them from the
image size, the preset and the other keys. So one flag, such as
--config.data.image_size=128 or --config.objective.name=elbo, changes networks
and weights as well. Keys with a value are never changed.

    small    CPU minutes: plain convolutions on patches, no discriminator
    base     CPU hours, GPU minutes: ResNets on patches
    large    a GPU: wider ResNets, smaller patches
"""

from collections.abc import Sequence

from gamix_jax import config as configs
from gamix_jax.config import ConfigDict
from gamix_jax.data.modalities import parse
from gamix_jax.errors import UserError
from gamix_jax.registry import check_choice

PRESETS = ("small", "base", "large")
# Keys that `ours` leaves open, besides `weights` and `ramp`.
OPEN_KEYS = (
  "model.latent",
  "model.encoder",
  "model.decoder",
  "model.encoder_features",
  "model.decoder_features",
  "model.bottleneck_channels",
  "model.discriminator_features",
  "model.discriminator_strides",
  "model.patch",
  "model.norm",
  "model.input_norm",
  "model.upsample_gain",
  "posterior.initial_logvar",
  "adversarial.loss",
  "adversarial.disc_start",
)
# Sources of several modalities that are made of images from elsewhere, and
# what they are made of in tiny runs.
WITHOUT_DOWNLOAD = {
  "polymnist": "polymnist:digits",
  "mnist_label": "mnist_label:digits",
}


def ours(config: ConfigDict, preset: str) -> ConfigDict:
  """Sets what all presets have in common.

  Differences from the published run: posteriors start narrow, and terms that
  widen them have a ramp, which prevents posterior collapse at the start; a
  faster optimiser with warm-up; the unbiased population term; an encoder
  without input normalisation, which sees brightness and contrast.

  Args:
    config: from `config.base()`; changed in place.
    preset: one of PRESETS.
  """
  config.preset = preset
  for key in OPEN_KEYS:
    configs.put(config, key, None)
  for section in ("weights", "ramp"):
    for name in config[section]:
      config[section][name] = None
  config.objective.population = "debiased"
  for net in ("vae", "disc"):
    config.optim[net].update(
      name="adam", learning_rate=1e-3, eps=1e-8, warmup=100, schedule="cosine"
    )
  config.optim.vae.update(b1=0.9, learning_rate=2e-3)
  return config


def multimodal(config: ConfigDict, modalities: Sequence[str]) -> ConfigDict:
  """Sets what the configs of several modalities have in common.

  No term but `recon` has a weight afterwards. A modality's own weight is in its
  entry, so that of `recon` is 1.

  Args:
    config: from `config.base()`; changed in place.
    modalities: see `data.modalities`.
  """
  config.data.modalities = tuple(modalities)
  config.data.flip = False
  config.adversarial.loss = "none"
  config.model.update(
    encoder="conv",
    decoder="conv",
    norm="none",
    input_norm="none",
    upsample_gain=2.0,
  )
  for name in config.weights:
    config.weights[name] = None
  config.weights.recon = 1.0
  for net in ("vae", "disc"):
    config.optim[net].update(name="adam", learning_rate=1e-3, eps=1e-8, b1=0.9)
  return config


def complete(config: ConfigDict) -> ConfigDict:
  """Fills the open keys of a config in place, then checks all keys.

  Raises:
    UserError: from `config.check`; if there is no such preset; if a key has no
      value and there is no preset to choose one.

  Example:
    >>> c = ours(config.base(), "small")
    >>> c.data.update(source="digits", image_size=16, channels=1)
    >>> c.model.encoder, complete(c).model.encoder
    (None, 'conv')
  """
  configs.check_keys(config)
  if config.preset:
    check_choice("preset", config.preset, PRESETS)
    configs.check_data(config)
    from gamix_jax import preset_values  # noqa: PLC0415  (JAX)

    preset_values.fill(config)
  configs.check(config)
  return config


def variant(config: ConfigDict, name: str) -> ConfigDict:
  """Returns the variant of a config that `--config=FILE:name` asks for.

  "" is the config itself. "tiny" keeps its objective and number of channels,
  and trains narrow networks for 3 steps on small synthetic images; of several
  modalities it keeps their shapes, and its data need no download.

  Raises:
    UserError: if there is no such variant.
  """
  if not name:
    return config
  if name != "tiny":
    raise UserError(f"--config=...:{name}: the one variant is 'tiny'.")
  full = complete(config.copy_and_resolve_references())
  for key in ("encoder", "decoder", "norm", "input_norm", "upsample_gain"):
    config.model[key] = full.model[key]
  config.steps = 3
  config.log_every = config.eval_every = config.checkpoint.every = 1
  config.eval_images, config.eval_draws = 8, 2
  config.data.batch_size = 8
  channels = config.data.channels
  if config.data.modalities:
    name = config.data.source.partition(":")[0]
    config.data.source = WITHOUT_DOWNLOAD.get(name, config.data.source)
    shapes = [s.shape for s in parse(config.data.modalities) if s.is_image]
    channels = shapes[0][-1] if shapes else channels
    config.multimodal.width = 8
    for key in ("vector_encoder_features", "vector_decoder_features"):
      config.multimodal[key] = (8,) * len(config.multimodal[key])
    config.multimodal.private = min(config.multimodal.private, 2)
  else:
    config.data.source = "synthetic"
    config.data.image_size = 8
  model = config.model
  model.latent = 4
  model.bottleneck_channels = 0
  model.patch = 1
  model.encoder_features = (4, 4)
  model.decoder_features = (4, channels)
  model.discriminator_features = (4, 1)
  model.discriminator_strides = (2, 1)
  return config

"""What the files of configs/ share: a start that wakes, sizes that fit.

A config with `preset` set leaves keys at None, and `complete` fills them from
the image size, the preset and what else the config says. So a flag such as
--config.data.image_size=128 or --config.objective.name=elbo changes networks
and weights with it. A key that is given is never changed.

    small    CPU minutes: plain convolutions on patches, no discriminator
    base     CPU hours, GPU minutes: ResNets on patches
    large    a GPU: wider ResNets, smaller patches
"""

import math
from typing import Any

from gamix_jax import config as configs
from gamix_jax.config import ConfigDict, image_shape
from gamix_jax.errors import UserError

PRESETS = ("small", "base", "large")
# What `ours` leaves for `complete` to fill, besides `weights` and `ramp`.
OPEN = (
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
RAMP_STEPS = 600
# Of the final steps, so that a short run has its full weights for most of it.
RAMP_SHARE = 0.25
INITIAL_LOGVAR = -4.0


def ours(config: ConfigDict, preset: str) -> ConfigDict:
  """Sets what our presets have in common, whatever the image.

  Unlike the published run: a start from which codes wake (narrow posteriors, a
  ramp for what widens them, a quicker optimiser with warm-up), the population
  term without bias, and an encoder that sees brightness.

  Args:
    config: of `config.base()`.
    preset: one of PRESETS.
  """
  config.preset = preset
  for key in OPEN:
    configs.put(config, key, None)
  for section in ("weights", "ramp"):
    for name in config[section]:
      config[section][name] = None
  config.objective.population = "debiased"
  for net in config.optim:
    config.optim[net].update(
      name="adam", learning_rate=1e-3, eps=1e-8, warmup=100, schedule="cosine"
    )
  config.optim.vae.update(b1=0.9, learning_rate=2e-3)
  return config


def complete(config: ConfigDict) -> ConfigDict:
  """Fills, in place, the keys that a preset leaves open; then checks all.

  Raises:
    UserError: as `config.check`; no such preset; a key without a value and
      without a preset.
  """
  configs.check_keys(config)
  if config.preset:
    if config.preset not in PRESETS:
      raise UserError(
        f"preset={config.preset!r} must be one of {', '.join(PRESETS)}."
      )
    configs.check_data(config)
    _fill(config)
  configs.check(config)
  return config


def _fill(config: ConfigDict) -> None:
  """The open keys, those first that others depend on."""

  def fill(values: dict[str, Any]) -> None:
    for key, value in values.items():
      if configs.get(config, key) is None:
        configs.put(config, key, value)

  from gamix_jax import objective  # noqa: PLC0415  (JAX, for its table alone)

  fill({"adversarial.loss": "none" if config.preset == "small" else "hinge"})
  fill({"adversarial.disc_start": config.steps // 2})
  h, w, _ = image_shape(config)
  model = config.model
  kind = model.encoder or model.decoder or _kind(h, w, config.preset)
  fill({"model.encoder": kind, "model.decoder": model.decoder or kind})
  fill(_sizes(config))
  narrow = config.posterior.name != "poisson"  # which has no variance to set
  fill({"posterior.initial_logvar": INITIAL_LOGVAR if narrow else 0.0})
  of_vae, of_disc = objective.term_names(
    config.objective.name, config.adversarial.loss
  )
  weights = default_weights(config)
  weights |= {k: v for k, v in config.preset_weights.items() if v is not None}
  fill({f"weights.{k}": weights[k] for k in (*of_vae, *of_disc)})
  # With full weights from the start, codes that carry no information cost
  # least, and a run can stay there.
  late, length = objective.ramped(config.objective.name), ramp_steps(config)
  fill({f"ramp.{k}": length if k in late else 0 for k in config.ramp})


def ramp_steps(config: ConfigDict) -> int:
  """How long the ramps of a start that wakes are, in a run of these steps."""
  return min(RAMP_STEPS, int(RAMP_SHARE * config.steps))


def _kind(height: int, width: int, preset: str) -> str:
  """The networks that learn most from an image in a budget."""
  if preset != "small":
    return "resnet"
  # At equal time they reconstruct as well and sample better than fully
  # connected ones from 16x16 on, which remain for sizes that have no half.
  return "mlp" if height % 2 or width % 2 else "conv"


def _sizes(config: ConfigDict) -> dict[str, Any]:
  """Sizes of networks whose kinds are known, for an image and a budget."""
  model, preset = config.model, config.preset
  h, w, channels = image_shape(config)
  side = min(h, w)
  kinds = {model.encoder, model.decoder}
  large = preset == "large"
  latent = 16 if side <= 28 and channels == 1 else 64 if side <= 64 else 128
  latent = model.latent or latent * (2 if large else 1)
  spatial = kinds & {"resnet", "conv"}
  wanted = 1 if side < 28 else 2 if side < 64 else 4
  patch = _patch(h, w, max(1, wanted // (4 if large else 1)))
  patch = model.patch or (patch if spatial else 1)
  halvings, grid = 0, math.gcd(h // patch, w // patch)
  while grid % 2 == 0 and grid > 4:
    grid, halvings = grid // 2, halvings + 1
  small = 32 if side <= 32 else 64
  narrow = {"small": small, "base": 64, "large": 128}[preset]
  hidden = {"small": 512, "base": 1024, "large": 2048}[preset]
  widths = {}
  for name in ("encoder", "decoder"):
    of = [narrow, *[2 * narrow] * halvings]
    if model[name] == "conv":
      # The scale next to the patches is the costly one, unless it is all.
      of = of[:halvings] if halvings > 1 else [2 * narrow]
    elif model[name] == "mlp":
      of = [hidden, hidden]
    widths[name] = tuple(of if name == "encoder" else of[::-1])
  halved = 1 if side < 32 else 2 if side < 128 else 3
  disc = (32, 64, 64)[:halved]
  gained = model.decoder == "conv" or (model.decoder == "resnet" and halvings)
  return {
    "model.latent": latent,
    "model.norm": "group" if spatial else "none",
    "model.input_norm": "layer" if model.encoder == "linear" else "none",
    "model.patch": patch,
    "model.upsample_gain": 2.0 if gained else 1.0,
    "model.bottleneck_channels": max(4, latent // 4)
    if "resnet" in kinds
    else 0,
    "model.encoder_features": widths["encoder"],
    "model.decoder_features": widths["decoder"],
    "model.discriminator_features": (*disc, 64, 1),
    "model.discriminator_strides": (2,) * halved + (1, 1),
  }


def _patch(height: int, width: int, wanted: int) -> int:
  """The largest power of two up to `wanted` that leaves even sides."""
  patch = 1
  while patch * 2 <= wanted and not (
    height % (patch * 4) or width % (patch * 4)
  ):
    patch *= 2
  return patch


def default_weights(config: ConfigDict) -> dict[str, float]:
  """A weight for every term, from the number of pixels and channels.

  The published 5000 for `recon` belongs to 256x256x3 numbers (0.0254 each).
  """
  h, w, c = image_shape(config)
  n = h * w * c
  recon = float(n if config.objective.reconstruction == "bernoulli" else n / 2)
  return {
    "recon": recon,
    "population_kl": max(1.0, recon / 400),
    "collapse_penalty": 0.2,
    "kl": 1.0,
    "kernel": 1.0,
    "adversarial": recon / 100,
    "real": 1.0,  # Adam divides a scale out
    "fake": 1.0,
  }


def variant(config: ConfigDict, name: str) -> ConfigDict:
  """The config of `--config=FILE:name`: itself, or its tiny variant.

  `tiny` keeps a config's objective and kind of image, and shrinks what costs:
  3 steps of narrow networks on small synthetic images.

  Raises:
    UserError: another name.
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
  config.data.source = "synthetic"
  config.data.batch_size = 8
  config.data.image_size = 8
  model = config.model
  model.latent = 4
  model.bottleneck_channels = 0
  model.patch = 1
  model.encoder_features = (4, 4)
  model.decoder_features = (4, config.data.channels)
  model.discriminator_features = (4, 1)
  model.discriminator_strides = (2, 1)
  return config

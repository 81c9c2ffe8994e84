"""Values for the keys that a preset leaves open: sizes, weights, ramps."""

import math
from typing import Any

from gamix_jax import config as configs
from gamix_jax import objectives
from gamix_jax.config import ConfigDict, image_shape
from gamix_jax.likelihood import LIKELIHOODS
from gamix_jax.networks import DECODERS, ENCODERS
from gamix_jax.posterior import POSTERIORS

RAMP_STEPS = 600
# Of all steps at most, so that a short run has full weights most of the time.
MAX_RAMP_FRACTION = 0.25
INITIAL_LOGVAR = -4.0


def fill(config: ConfigDict) -> None:
  """Fills the open keys of a config in place.

  Raises:
    UserError: if a name is in no table.
  """

  def put(values: dict[str, Any]) -> None:
    for key, value in values.items():
      if configs.get(config, key) is None:
        configs.put(config, key, value)

  put({"adversarial.loss": "none" if config.preset == "small" else "hinge"})
  # A discriminator of codes learns from the start.
  objective = objectives.OBJECTIVES.choose(config.objective.name)
  late = 0 if objective.of_discriminator else config.steps // 2
  put({"adversarial.disc_start": late})
  h, w, _ = image_shape(config)
  model = config.model
  kind = model.encoder or model.decoder or _kind(h, w, config.preset)
  put({"model.encoder": kind, "model.decoder": model.decoder or kind})
  put(_sizes(config))
  family = POSTERIORS.choose(config.posterior.name).family
  put(
    {"posterior.initial_logvar": INITIAL_LOGVAR if family.has_variance else 0.0}
  )
  weights = default_weights(config)
  weights |= {k: v for k, v in config.preset_weights.items() if v is not None}
  of_vae, of_disc = objectives.term_names(
    config.objective.name, config.adversarial.loss
  )
  put({f"weights.{k}": weights[k] for k in (*of_vae, *of_disc)})
  length = ramp_steps(config)
  ramped = objective.ramped
  if config.adversarial.loss != "none":
    # An untrained discriminator's gradient at full weight would spoil what was
    # learned. Training it alone first (gen_delay) makes it too sure instead.
    ramped = (*ramped, "adversarial")
  put({f"ramp.{k}": length if k in ramped else 0 for k in config.ramp})


def ramp_steps(config: ConfigDict) -> int:
  """The length of a preset's ramps, in steps."""
  return min(RAMP_STEPS, int(MAX_RAMP_FRACTION * config.steps))


def _kind(height: int, width: int, preset: str) -> str:
  """The kind of encoder and decoder for an image size and a budget."""
  if preset != "small":
    return "resnet"
  # From 16x16 on, convolutions reconstruct as well as an MLP in the same time,
  # and sample better. An MLP also fits odd sizes.
  return "mlp" if height % 2 or width % 2 else "conv"


def _sizes(config: ConfigDict) -> dict[str, Any]:
  """Sizes of the networks, for an image size and a budget."""
  model, preset = config.model, config.preset
  h, w, channels = image_shape(config)
  side = min(h, w)
  encoder = ENCODERS.choose(model.encoder)
  decoder = DECODERS.choose(model.decoder)
  large = preset == "large"
  latent = 16 if side <= 28 and channels == 1 else 64 if side <= 64 else 128
  latent = model.latent or latent * (2 if large else 1)
  convolutional = encoder.convolutional or decoder.convolutional
  wanted = 1 if side < 28 else 2 if side < 64 else 4
  patch = _patch(h, w, max(1, wanted // (4 if large else 1)))
  patch = model.patch or (patch if convolutional else 1)
  halvings, grid = 0, math.gcd(h // patch, w // patch)
  while grid % 2 == 0 and grid > 4:
    grid, halvings = grid // 2, halvings + 1
  small = 32 if side <= 32 else 64
  width = {"small": small, "base": 64, "large": 128}[preset]
  hidden = {"small": 512, "base": 1024, "large": 2048}[preset]
  halved = 1 if side < 32 else 2 if side < 128 else 3
  disc = (32, 64, 64)[:halved]
  values = {
    "latent": latent,
    "norm": "group" if convolutional else "none",
    "patch": patch,
    "encoder_features": encoder.preset_features(width, hidden, halvings),
    "decoder_features": decoder.preset_features(width, hidden, halvings),
    "discriminator_features": (*disc, 64, 1),
    "discriminator_strides": (2,) * halved + (1, 1),
  }
  with_features = model.copy_and_resolve_references()
  for key, value in values.items():
    if with_features[key] is None:
      with_features[key] = value
  read = encoder.keys_read(with_features) | decoder.keys_read(with_features)
  values |= {
    "input_norm": "none" if "input_norm" in read else "layer",
    "upsample_gain": 2.0 if "upsample_gain" in read else 1.0,
    "bottleneck_channels": max(4, latent // 4)
    if "bottleneck_channels" in read
    else 0,
  }
  return {f"model.{k}": v for k, v in values.items()}


def _patch(height: int, width: int, wanted: int) -> int:
  """The largest power of two up to `wanted` that leaves an even grid."""
  patch = 1
  while patch * 2 <= wanted and not (
    height % (patch * 4) or width % (patch * 4)
  ):
    patch *= 2
  return patch


def default_weights(config: ConfigDict) -> dict[str, float]:
  """The default weight of every term, for an image size.

  For comparison: the published 5000 for `recon` of 256x256x3 numbers is 0.0254
  per number.
  """
  likelihood = LIKELIHOODS.choose(config.objective.reconstruction)
  recon = likelihood.default_weight(math.prod(image_shape(config)))
  return objectives.default_weights(config, recon)

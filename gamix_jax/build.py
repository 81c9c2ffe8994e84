"""Builds the `TrainSpec` of a run from its config."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gamix_jax import modality, multimodal, objectives, optimizers, posterior
from gamix_jax.config import ConfigDict, base, differences, image_shape
from gamix_jax.errors import UserError
from gamix_jax.modality import Modalities
from gamix_jax.networks import (
  DECODERS,
  DISCRIMINATORS,
  ENCODERS,
  INPUT_NORMS,
  NORMS,
  VAE,
)
from gamix_jax.registry import check_choice
from gamix_jax.step import TrainSpec

DTYPES = ("float32", "bfloat16", "float64")


def train_spec(config: ConfigDict) -> TrainSpec:
  """Builds the `TrainSpec` of a complete config (`presets.complete`).

  Raises:
    UserError: if a name is in no table, parts do not fit each other, or weights
      do not fit the terms.
  """
  dtype, param_dtype = _dtypes(config.dtype)
  kind = dict(dtype=dtype, param_dtype=param_dtype)
  objective = objectives.OBJECTIVES.choose(config.objective.name)
  modalities = modality.of_config(config)
  if config.data.modalities:
    vae = _multimodal_vae(config, modalities, objective.subsets, kind)
    disc = None
  else:
    _check_one_modality(config, objective)
    vae, disc = _vae(config, kind), _discriminator(config, kind)
  weights = objectives.TermWeights.from_config(
    config,
    *objectives.term_names(config.objective.name, config.adversarial.loss),
  )
  _check_posterior_keys(config)
  objectives.check_fit(config, vae.posterior_type)
  built = objective.from_config(config, modalities)
  _check_accumulate(config, built)
  return TrainSpec(
    modalities=modalities,
    vae=vae,
    disc=disc,
    vae_optimizer=optimizers.optimizer(config.steps, **config.optim.vae),
    disc_optimizer=optimizers.optimizer(config.steps, **config.optim.disc),
    objective=built,
    code_disc=built.discriminator(**kind),
    adversarial=objectives.ADVERSARIAL.choose(config.adversarial.loss),
    weights=weights,
    disc_start=config.adversarial.disc_start,
    ema_decay=config.ema.decay,
    dtype=param_dtype,
    seed=config.seed,
    accumulate=config.optim.accumulate,
    occlude=config.data.occlude,
  )


def _check_accumulate(
  config: ConfigDict, objective: objectives.Objective
) -> None:
  """Checks that gradients of parts of a batch can be averaged.

  Raises:
    UserError: if their mean is not an unbiased estimate of the gradient of the
      batch, or the parts would not be of equal size.
  """
  k, section = config.optim.accumulate, config.objective
  if k == 1:
    return
  if not objective.additive:
    form = ""
    if "population_kl" in objective.terms:
      form = f" with objective.population={section.population!r}"
    raise UserError(
      f"optim.accumulate={k}: the terms of objective.name={section.name!r}"
      f"{form} depend on the batch size, so gradients of parts of a batch do "
      "not add up to that of the batch. Use --config.optim.accumulate=1, or "
      "another objective, such as gamix with objective.population=quadratic."
    )
  if config.model.norm == "batch":
    raise UserError(
      f"optim.accumulate={k}: model.norm='batch' depends on the batch size; "
      "use --config.model.norm=group or --config.optim.accumulate=1."
    )
  size = config.data.batch_size
  if size % k or size // k < 2:
    raise UserError(
      f"optim.accumulate={k} must divide data.batch_size={size} into parts of "
      "2 or more."
    )


def _dtypes(name: str) -> tuple[Any, Any]:
  """The types of computations and of parameters."""
  if name not in DTYPES:
    raise UserError(
      f"dtype={name!r} must be one of {', '.join(DTYPES)} (float16 is not "
      "offered: exp overflows in it)."
    )
  if name == "float64":
    if not jax.config.jax_enable_x64:
      raise UserError("dtype='float64' needs the variable JAX_ENABLE_X64=1.")
    return jnp.float64, jnp.float64
  return jnp.dtype(name).type, jnp.float32


def _vae(config: ConfigDict, kind: dict[str, Any]) -> VAE:
  """The VAE, with its encoder, head, decoder and prior."""
  model, shape = config.model, image_shape(config)
  _check_networks(model)
  encoder = ENCODERS[model.encoder].from_config(model, shape, **kind)
  decoder = DECODERS[model.decoder].from_config(model, shape, **kind)
  grid = encoder.latent_shape
  if grid and grid[0] * grid[1] * grid[2] != model.latent:
    raise UserError(
      f"model.latent={model.latent}, but model.encoder={model.encoder!r} has "
      f"a grid of {grid[0]}x{grid[1]}x{grid[2]} latents; use "
      f"--config.model.latent={grid[0] * grid[1] * grid[2]}."
    )
  return VAE(
    encoder=encoder,
    posterior=posterior.head(**config.posterior, latent=model.latent, **kind),
    decoder=decoder,
    prior=posterior.prior.make(
      **config.prior,
      latent=model.latent,
      image_shape=shape,
      param_dtype=kind["param_dtype"],
    ),
  )


def _multimodal_vae(
  config: ConfigDict,
  modalities: Modalities,
  subsets: bool,
  kind: dict[str, Any],
) -> multimodal.MultimodalVAE:
  """The VAE of several modalities.

  Raises:
    UserError: if keys that are only for single images are set.
  """
  if config.adversarial.loss != "none":
    raise UserError(
      f"adversarial.loss={config.adversarial.loss!r} is for runs of images; "
      "with data.modalities use --config.adversarial.loss=none."
    )
  if config.preset:
    raise UserError(
      f"preset={config.preset!r} is for runs of images; with data.modalities "
      "use --config.preset= and set its keys."
    )
  if any(m.is_image for m in modalities.values()):
    _check_networks(config.model)
  return multimodal.vae(config, modalities, subsets, **kind)


def _check_one_modality(
  config: ConfigDict, objective: type[objectives.Objective]
) -> None:
  """Checks that a run of images has no keys of several modalities.

  Raises:
    UserError: if it has.
  """
  if objective.subsets:
    raise UserError(
      f"objective.name={config.objective.name!r} is for several modalities; "
      "name them in data.modalities, see docs/multimodal.md."
    )
  changed = differences(base().multimodal, config.multimodal)
  if changed:
    raise UserError(
      f"{', '.join(f'multimodal.{k}' for k in changed)}: set, but "
      "data.modalities is empty; name the modalities there, see "
      "docs/multimodal.md."
    )


def _discriminator(
  config: ConfigDict, kind: dict[str, Any]
) -> nn.Module | None:
  """The discriminator, or None without adversarial loss."""
  model = config.model
  chosen = DISCRIMINATORS.choose(model.discriminator)
  disc = chosen.from_config(model, image_shape(config), **kind)
  if objectives.ADVERSARIAL.choose(config.adversarial.loss) is None:
    return None
  return disc


# Keys of the section `model` that only some encoders or decoders read.
_OF_NETWORKS = ("input_norm", "patch", "upsample_gain", "bottleneck_channels")


def _check_networks(model: ConfigDict) -> None:
  """Checks the networks of images, and that they read what is set.

  Raises:
    UserError: a name is in no table, or a key that neither of them reads does
      not have its default; the message lists the flags that set it back.
  """
  encoder = ENCODERS.choose(model.encoder)
  decoder = DECODERS.choose(model.decoder)
  check_choice("model.norm", model.norm, NORMS)
  check_choice("model.input_norm", model.input_norm, INPUT_NORMS)
  default = base().model
  read = encoder.keys_read(model) | decoder.keys_read(model)
  wrong = [k for k in _OF_NETWORKS if k not in read and model[k] != default[k]]
  if wrong:
    raise UserError(
      f"{', '.join(f'model.{k}={model[k]!r}' for k in wrong)}: neither "
      f"model.encoder={model.encoder!r} nor model.decoder={model.decoder!r} "
      f"reads that; use "
      f"{' '.join(f'--config.model.{k}={default[k]}' for k in wrong)}."
    )


def _check_posterior_keys(config: ConfigDict) -> None:
  """Checks that keys of other posterior families have their defaults.

  Raises:
    UserError: if not.
  """
  section = config.posterior
  for name, default in base().posterior.items():
    other = isinstance(default, ConfigDict) and name != section.name
    for key in differences(default, section[name]) if other else ():
      raise UserError(
        f"posterior.{name}.{key} is set, but posterior.name is "
        f"{section.name!r}."
      )

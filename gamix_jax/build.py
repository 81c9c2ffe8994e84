"""From a config to the `TrainSpec` of its run."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gamix_jax import objective, optim, population, posterior
from gamix_jax.config import (
  ConfigDict,
  base,
  bottleneck_channels,
  decoder_start,
  differences,
  halvings,
  image_shape,
)
from gamix_jax.errors import UserError
from gamix_jax.networks import (
  INPUT_NORMS,
  NORMS,
  VAE,
  ConvDecoder,
  ConvEncoder,
  Decoder,
  Encoder,
  LinearDecoder,
  LinearEncoder,
  MLPDecoder,
  MLPEncoder,
  PatchDiscriminator,
)
from gamix_jax.step import TrainSpec

ENCODERS = {
  "resnet": Encoder,
  "conv": ConvEncoder,
  "mlp": MLPEncoder,
  "linear": LinearEncoder,
}
DECODERS = {
  "resnet": Decoder,
  "conv": ConvDecoder,
  "mlp": MLPDecoder,
  "linear": LinearDecoder,
}
DTYPES = ("float32", "bfloat16", "float64")


def _weights(config: ConfigDict) -> tuple[dict, dict]:
  """The weights of the VAE's terms and of the discriminator's.

  Raises:
    UserError: a term without weight or a weight without term; both lists.
  """
  of_vae, of_disc = objective.term_names(
    config.objective.name, config.adversarial.loss
  )
  terms = [*of_vae, *of_disc]
  given = {k: v for k, v in config.weights.items() if v is not None}
  if set(given) != set(terms):
    flags = [f"--config.weights.{k}=1" for k in terms if k not in given]
    flags += [f"--config.weights.{k}=None" for k in given if k not in terms]
    raise UserError(
      f"The terms of objective.name={config.objective.name!r}, "
      f"adversarial.loss={config.adversarial.loss!r} are "
      f"{', '.join(terms)}; the weights are of {', '.join(given)}.\n"
      f"Say, with weights to your liking: {' '.join(flags)}"
    )
  return (
    {k: float(given[k]) for k in of_vae},
    {k: float(given[k]) for k in of_disc},
  )


def _dtypes(name: str):
  """Of the computation and of the parameters."""
  if name not in DTYPES:
    raise UserError(
      f"dtype={name!r} is not one of {', '.join(DTYPES)} (float16 is not "
      "offered: exp overflows in it)."
    )
  if name == "float64":
    if not jax.config.jax_enable_x64:
      raise UserError("dtype='float64' needs the variable JAX_ENABLE_X64=1.")
    return jnp.float64, jnp.float64
  return jnp.dtype(name).type, jnp.float32


def _check_names(model: ConfigDict) -> None:
  """Refuses networks and normalisations that there are not.

  Raises:
    UserError: names those that there are.
  """
  for key, known in (
    ("encoder", ENCODERS),
    ("decoder", DECODERS),
    ("norm", NORMS),
    ("input_norm", INPUT_NORMS),
  ):
    if model[key] not in known:
      raise UserError(
        f"model.{key}={model[key]!r} must be one of {', '.join(known)}."
      )


def _check_read(config: ConfigDict) -> None:
  """Refuses keys of networks that the config does not have.

  Raises:
    UserError: with the flags that set them back.
  """
  model, default = config.model, base().model
  convolutions = halvings(config)
  read = {
    "input_norm": model.encoder != "linear",
    "patch": bool(convolutions),
    "upsample_gain": convolutions.get("decoder", 0) > 0,
    "bottleneck_channels": "resnet" in (model.encoder, model.decoder),
  }
  wrong = [k for k, v in read.items() if not v and model[k] != default[k]]
  if wrong:
    raise UserError(
      f"{', '.join(f'model.{k}={model[k]!r}' for k in wrong)}: no part of "
      f"model.encoder={model.encoder!r} and model.decoder={model.decoder!r} "
      f"reads that; use "
      f"{' '.join(f'--config.model.{k}={default[k]}' for k in wrong)}."
    )


def _encoder(config: ConfigDict, common: dict) -> nn.Module:
  """The encoder that `model.encoder` names; `common` is of a `Part`."""
  model = config.model
  if model.encoder == "linear":
    return LinearEncoder()
  own: dict[str, Any] = dict(
    features=tuple(model.encoder_features), input_norm=model.input_norm
  )
  if model.encoder != "mlp":
    own["patch"] = model.patch
  if model.encoder == "resnet":
    own["bottleneck_channels"] = bottleneck_channels(config)
  return ENCODERS[model.encoder](**own, **common)


def _decoder(config: ConfigDict, common: dict, kind: dict) -> nn.Module:
  """The decoder that `model.decoder` names; `kind` is of `common` the types."""
  model, shape = config.model, image_shape(config)
  if model.decoder == "linear":
    return LinearDecoder(shape, **kind)
  features = tuple(model.decoder_features)
  if model.decoder == "mlp":
    return MLPDecoder(features=features, image_shape=shape, **common)
  return DECODERS[model.decoder](
    features=features,
    start=decoder_start(config),
    channels=shape[-1],
    patch=model.patch,
    upsample_gain=model.upsample_gain,
    **common,
  )


def _networks(config: ConfigDict, kind: dict):
  """Encoder, head and decoder in one; the discriminator or None."""
  model = config.model
  _check_names(model)
  _check_read(config)
  common = dict(norm=model.norm, **kind)
  vae = VAE(
    encoder=_encoder(config, common),
    posterior=posterior.head(**config.posterior, latent=model.latent, **kind),
    decoder=_decoder(config, common, kind),
    prior=posterior.prior.make(
      **config.prior,
      latent=model.latent,
      image_shape=image_shape(config),
      param_dtype=kind["param_dtype"],
    ),
  )
  if config.adversarial.loss == "none":
    return vae, None
  disc = PatchDiscriminator(
    features=tuple(model.discriminator_features),
    strides=tuple(model.discriminator_strides),
    dropout=model.dropout,
    **common,
  )
  return vae, disc


def _check_posterior(config: ConfigDict, family: type) -> None:
  """Refuses keys of another family, and an objective that does not fit.

  Raises:
    UserError: as said.
  """
  section = config.posterior
  for name, default in base().posterior.items():
    other = isinstance(default, ConfigDict) and name != section.name
    for key in differences(default, section[name]) if other else ():
      raise UserError(
        f"posterior.{name}.{key} is set, but posterior.name is "
        f"{section.name!r}."
      )
  named = f"posterior.name={section.name!r}"
  if section.name == "epanechnikov":
    prior = section.epanechnikov.prior
    named += f" with posterior.epanechnikov.prior={prior!r}"
  objective.check_fit(config.objective.name, family, named)
  if config.prior.name != "normal" and not (
    section.name in ("gaussian", "mixture")
    and "kl" in objective.OBJECTIVES[config.objective.name].terms
    and config.objective.name != "exact"
  ):
    raise UserError(
      f"prior.name={config.prior.name!r} is for the posteriors gaussian, "
      "mixture and the objectives elbo, selbo, siwae; this is "
      f"{section.name}/{config.objective.name}."
    )
  if config.objective.name == "siwae" and config.weights.kl != 1:
    raise UserError(
      f"weights.kl={config.weights.kl}: the bound of objective.name='siwae' "
      "is whole with --config.weights.kl=1 only."
    )


def _check_exact(config: ConfigDict) -> None:
  """Refuses what has no closed form, where one was asked for.

  Raises:
    UserError: as said.
  """
  wrong = []
  if config.model.decoder != "linear":
    wrong.append("--config.model.decoder=linear")
  if config.objective.reconstruction != "l2":
    wrong.append("--config.objective.reconstruction=l2")
  if config.objective.num_samples != 1:
    wrong.append("--config.objective.num_samples=1 (none is made)")
  if wrong:
    raise UserError(f"objective.name='exact' needs {', '.join(wrong)}.")


def _ramps(config: ConfigDict, terms: Iterable[str]) -> dict[str, int]:
  """The ramps that are set.

  Raises:
    UserError: one of a term that the objective does not have; of siwae's
      bound, which is none with part of its weight.
  """
  found = {k: int(v) for k, v in config.ramp.items() if v}
  for name, steps in found.items():
    if name not in terms:
      raise UserError(
        f"ramp.{name}={steps}, but objective.name="
        f"{config.objective.name!r}, adversarial.loss="
        f"{config.adversarial.loss!r} has no term {name}; its terms are "
        f"{', '.join(terms)}. Use --config.ramp.{name}=0."
      )
  if config.objective.name == "siwae" and "kl" in found:
    raise UserError(
      f"ramp.kl={found['kl']}: the bound of objective.name='siwae' is whole "
      "only with the full weight; use --config.ramp.kl=0."
    )
  return found


def recipe(config: ConfigDict) -> TrainSpec:
  """The `TrainSpec` of a checked config (`config.check`).

  Raises:
    UserError: a name that is not in its table, weights that do not fit the
      terms, a population that cannot be estimated.
  """
  dtype, param_dtype = _dtypes(config.dtype)
  vae, disc = _networks(config, dict(dtype=dtype, param_dtype=param_dtype))
  vae_weights, disc_weights = _weights(config)
  section = config.objective
  if section.reconstruction not in objective.RECONSTRUCTIONS:
    raise UserError(
      f"objective.reconstruction={section.reconstruction!r} is not a "
      f"reconstruction; there are: {', '.join(objective.RECONSTRUCTIONS)}."
    )
  if "population_kl" in vae_weights:
    population.check(section.population, config.data.batch_size)
  _check_posterior(config, vae.posterior.family)
  if section.name == "exact":
    _check_exact(config)
  function = objective.OBJECTIVES[section.name].function
  return TrainSpec(
    vae=vae,
    disc=disc,
    vae_optimizer=optim.optimizer(config.steps, **config.optim.vae),
    disc_optimizer=optim.optimizer(config.steps, **config.optim.disc),
    terms=partial(
      function, form=section.population, kind=section.reconstruction
    ),
    vae_weights=vae_weights,
    disc_weights=disc_weights,
    reconstruction=section.reconstruction,
    adversarial=config.adversarial.loss,
    disc_start=config.adversarial.disc_start,
    gen_delay=config.adversarial.gen_delay,
    ramps=_ramps(config, vae_weights),
    draws=0 if section.name == "exact" else section.num_samples,
    ema_decay=config.ema.decay,
    image_shape=image_shape(config),
    dtype=param_dtype,
    seed=config.seed,
  )

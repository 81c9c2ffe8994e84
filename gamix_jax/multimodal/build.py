"""Builds the VAE of several modalities from a config."""

from typing import Any

from gamix_jax import posterior
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.modality import Modalities, Modality
from gamix_jax.multimodal.fusion import FUSIONS, PrivateHead
from gamix_jax.multimodal.model import MultimodalVAE
from gamix_jax.multimodal.subsets import SUBSETS
from gamix_jax.networks import (
  DECODERS,
  ENCODERS,
  Decoder,
  Encoder,
  MLPDecoder,
  MLPEncoder,
)
from gamix_jax.registry import check_choice


def vae(
  config: ConfigDict, modalities: Modalities, subsets: bool, **kind: Any
) -> MultimodalVAE:
  """The model of a config with `data.modalities`.

  Images have the networks that the section `model` names. Other modalities have
  fully connected ones, of `multimodal.vector_encoder_features` and
  `multimodal.vector_decoder_features`.

  Args:
    config: complete.
    modalities: what is observed.
    subsets: whether the objective needs random subsets.
    **kind: `dtype` and `param_dtype`.

  Raises:
    UserError: if a value does not fit the others.
  """
  section, model = config.multimodal, config.model
  check_choice("multimodal.subsets", section.subsets, SUBSETS)
  fusion_class = FUSIONS.choose(section.fusion)
  if model.norm == "batch":
    raise UserError(
      "model.norm='batch' would mix observations with and without a modality; "
      "use --config.model.norm=group or none."
    )
  head = posterior.head(**config.posterior, latent=model.latent, **kind)
  names = tuple(modalities)
  family = fusion_class.family(head)
  if section.private and family.separate:
    raise UserError(
      f"multimodal.private={section.private}, but with multimodal.fusion="
      f"{section.fusion!r} all latents are a modality's own; use "
      "--config.multimodal.private=0."
    )
  return MultimodalVAE(
    encoders={k: _encoder(config, m, kind) for k, m in modalities.items()},
    fusion=fusion_class(
      names,
      head,
      **{key: section[key] for key in fusion_class.keys},
    ),
    decoders={k: _decoder(config, m, kind) for k, m in modalities.items()},
    private=PrivateHead(
      names, section.private, initial_logvar=head.initial_logvar, **kind
    )
    if section.private
    else None,
    subsets=section.subsets if subsets else "",
    prior=_prior(config, family, kind["param_dtype"]),
  )


def _encoder(
  config: ConfigDict, modality: Modality, kind: dict[str, Any]
) -> Encoder:
  if not modality.is_image:
    features = tuple(config.multimodal.vector_encoder_features)
    return MLPEncoder(features=features, input_norm="none", norm="none", **kind)
  encoder = ENCODERS.choose(config.model.encoder).from_config(
    config.model, modality.shape, **kind
  )
  if encoder.latent_shape is not None:
    raise UserError(
      f"model.encoder={config.model.encoder!r} has spatial latents, which "
      "cannot be fused with other modalities."
    )
  return encoder


def _decoder(
  config: ConfigDict, modality: Modality, kind: dict[str, Any]
) -> Decoder:
  if not modality.is_image:
    features = tuple(config.multimodal.vector_decoder_features)
    return MLPDecoder(
      features=features, image_shape=modality.shape, norm="none", **kind
    )
  return DECODERS.choose(config.model.decoder).from_config(
    config.model, modality.shape, **kind
  )


def _prior(
  config: ConfigDict, family: type[posterior.Posterior], param_dtype: Any
) -> Any:
  name = config.prior.name
  if name == "vamp":
    raise UserError(
      "prior.name='vamp' has images as pseudo-inputs, so it is not for several "
      "modalities; use --config.prior.name=mixture or normal."
    )
  if name != "normal" and (family.separate or config.multimodal.private):
    raise UserError(
      f"prior.name={name!r} is for latents that all modalities share: use "
      "another multimodal.fusion and --config.multimodal.private=0."
    )
  return posterior.prior.make(
    **config.prior,
    latent=config.model.latent,
    image_shape=(),
    param_dtype=param_dtype,
  )

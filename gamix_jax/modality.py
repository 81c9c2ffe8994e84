"""Modalities: the kinds of observations in a batch.

A batch is a dict of arrays, and `Modality` describes one entry. A model of
images has one modality, "image". Batches of several modalities also have the
entry "mask" [b, m], which is 1 where a modality is observed and 0 where it is
missing; m follows the order of the modalities.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gamix_jax.config import ConfigDict, image_shape
from gamix_jax.data.modalities import parse
from gamix_jax.errors import UserError
from gamix_jax.likelihood import LIKELIHOODS, Categorical, Likelihood
from gamix_jax.posterior.base import expand_leading, promote_f32
from gamix_jax.registry import check_choice

IMAGE = "image"
MASK = "mask"


def to_float(x: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
  """Converts uint8 to floats in [-1, 1]; floats are in [-1, 1] already."""
  if x.dtype == jnp.uint8:
    return x.astype(dtype) / 127.5 - 1
  return x.astype(dtype)


@dataclasses.dataclass(frozen=True)
class Modality:
  """One kind of observation.

  Attributes:
    shape: of one observation, such as (h, w, c).
    likelihood: p(x | z).
    dtype: in a batch.
    weight: of its reconstruction, multiplied by that of `recon`.
  """

  shape: tuple[int, ...]
  likelihood: Likelihood
  dtype: Any = np.uint8
  weight: float = 1.0

  @property
  def size(self) -> int:
    """The number of elements of one observation."""
    return math.prod(self.shape)

  @property
  def is_image(self) -> bool:
    """Whether observations are images, uint8 in batches."""
    return self.dtype == np.uint8

  def error(
    self, x: Float[Array, "b ..."], x_hat: Float[Array, "..."]
  ) -> Float[Array, "... b"]:
    """The likelihood's error, averaged over the elements of an observation."""
    x_hat = promote_f32(x_hat)
    each = self.likelihood.error(expand_leading(x, x_hat.ndim), x_hat)
    return jnp.mean(each, axis=tuple(range(-len(self.shape), 0)))

  def shown(self, x_hat: Float[Array, "..."]) -> Float[Array, "..."]:
    """The likelihood's mean; of images clipped to [-1, 1]."""
    mean = self.likelihood.mean(x_hat)
    return jnp.clip(mean, -1, 1) if self.is_image else mean

  def log_prob(
    self,
    x: Float[Array, "b ..."],
    x_hat: Float[Array, "..."],
    weight: float,
  ) -> Float[Array, "... b"]:
    """ln p(x | z) in nats, of the density for a reconstruction weight.

    For example, with n elements weight * mean |x - x_hat| is, up to a constant,
    -ln p(x | z) of Laplace noise with scale n / weight.
    """
    constant = self.likelihood.log_normalizer(self.size, weight)
    return -weight * self.error(x, x_hat) - constant


Modalities = Mapping[str, Modality]


def of_config(config: ConfigDict) -> dict[str, Modality]:
  """The modalities of a config, by name, in their order.

  Raises:
    UserError: if a likelihood is in no table, or it does not fit the data.
  """
  if not config.data.modalities:
    likelihood = LIKELIHOODS.choose(config.objective.reconstruction)
    if isinstance(likelihood, Categorical):
      raise UserError(
        f"objective.reconstruction={config.objective.reconstruction!r} is for"
        " the classes of data.modalities, and images have pixels. Choose l1,"
        " l2 or bernoulli."
      )
    return {IMAGE: Modality(image_shape(config), likelihood)}
  specs = parse(config.data.modalities)
  largest = max(spec.size for spec in specs)
  modalities = {}
  for spec in specs:
    check_choice(
      f"data.modalities: the likelihood of {spec.name}",
      spec.likelihood,
      LIKELIHOODS,
    )
    likelihood = LIKELIHOODS[spec.likelihood]
    weight = spec.weight
    if weight is None or weight == "size":
      weight = likelihood.default_weight(spec.size)
      if spec.weight == "size":
        weight *= largest / spec.size
    dtype = np.uint8 if spec.is_image else np.float32
    modalities[spec.name] = Modality(spec.shape, likelihood, dtype, weight)
  return modalities


def log_likelihood(
  modalities: Modalities,
  x: Mapping[str, jax.Array],
  x_hat: Mapping[str, jax.Array],
  weight: float,
) -> Float[Array, "... b"]:
  """ln p(x | z) of all modalities together, in nats.

  Args:
    modalities: what is observed.
    x: observations [b, ...] of each.
    x_hat: decoded, [..., b, ...] of each.
    weight: of the reconstruction term.
  """
  return sum_observed(
    modalities,
    x,
    lambda name, m: m.log_prob(x[name], x_hat[name], weight * m.weight),
  )


def sum_observed(
  modalities: Modalities,
  x: Mapping[str, jax.Array],
  value: Callable[[str, Modality], Float[Array, "... b"]],
) -> Float[Array, "... b"]:
  """The sum of a value over the modalities that are observed.

  Args:
    modalities: what can be observed.
    x: observations of each; with the entry "mask" if some may be missing.
    value: (name, modality) -> [..., b].
  """
  mask = x.get(MASK)

  def observed(i, each):
    if mask is None:
      return each
    return expand_leading(mask[:, i], each.ndim) * each

  return sum_over(
    observed(i, value(name, m))
    for i, (name, m) in enumerate(modalities.items())
  )


def sum_over(values: Any) -> Any:
  """The sum of one or more arrays."""
  first, *others = values
  for value in others:
    first = first + value
  return first

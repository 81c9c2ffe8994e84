"""Random subsets of the observed modalities, for objectives that need them."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from gamix_jax.registry import Registry

Mask = Float[Array, "b m"]


def uniform_size(key: jax.Array, mask: Mask) -> Mask:
  """Subsets whose size is uniform on 0, ..., n of n observed modalities.

  One u ~ U(0, 1) per observation, with which each modality is left out.
  """
  of_rows, of_entries = jax.random.split(key)
  u = jax.random.uniform(of_rows, (len(mask), 1), mask.dtype)
  kept = jax.random.uniform(of_entries, mask.shape, mask.dtype) >= u
  return mask * kept


def bernoulli(key: jax.Array, mask: Mask) -> Mask:
  """Subsets with each observed modality with probability 1/2.

  This is the law of the code of arXiv:2309.00380.
  """
  return mask * jax.random.bernoulli(key, 0.5, mask.shape)


def everything(key: jax.Array, mask: Mask) -> Mask:
  """All observed modalities."""
  del key
  return mask


# (key, mask [b, m] of the observed modalities) -> mask of the subsets, [b, m]
SUBSETS: Registry[Callable[[jax.Array, Mask], Mask]] = Registry(
  "multimodal.subsets"
)
SUBSETS.register("uniform_size", uniform_size)
SUBSETS.register("bernoulli", bernoulli)
SUBSETS.register("all", everything)

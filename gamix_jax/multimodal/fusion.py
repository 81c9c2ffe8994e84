"""Fusion: from what each modality's encoder says to one posterior q(z | x_S).

S are the observed modalities of an observation, given as a mask [b, m]. Two
kinds of fusion exist:

    of posteriors   every modality has a Gaussian of its own, and a formula
                    combines them: `average`, `product`, ...
    of features     the encoders' features are pooled, and one head maps the
                    result to a posterior: SumPooling, SelfAttention

All have in common: the order of the modalities does not matter, what a masked
modality contains changes nothing, and if nothing is observed the posterior is
the prior N(0, I). Sources: arXiv:2403.05300 for the joint posteriors that it
compares with, arXiv:2309.00380 for pooling and attention.

A new fusion is a class here and a line in `FUSIONS`.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from gamix_jax.errors import UserError
from gamix_jax.layers import Dense, self_attention
from gamix_jax.multimodal.posteriors import (
  EXCLUDED,
  RandomComponent,
  Separate,
)
from gamix_jax.posterior import Gaussian, GaussianHead, Head, Mixture, Posterior
from gamix_jax.registry import Registry

Experts = Float[Array, "b m d"]  # mu or logvar of every modality's Gaussian
Mask = Float[Array, "b m"]

MAX_SUBSETS = 8  # modalities of `mixture_of_products`, which has 2^m components


# ---------------------------------------------------------- of posteriors


def average(mu: Experts, logvar: Experts, mask: Mask) -> Gaussian:
  """The Gaussian with the mean of the means and the mean of the variances.

  AVG in arXiv:2403.05300.
  """
  weights = mask / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
  mean = jnp.einsum("bm,bmd->bd", weights, _masked(mu, mask))
  var = jnp.einsum("bm,bmd->bd", weights, _unless_masked(jnp.exp, logvar, mask))
  return or_prior(Gaussian(mean, jnp.log(_or_one(var, mask))), mask)


def product(
  mu: Experts, logvar: Experts, mask: Mask, prior: bool = False
) -> Gaussian:
  """The normalised product of the Gaussians: PoE.

  Its precision is the sum of the precisions, and its mean is weighted by them,
  sum mu / var over sum 1 / var.

  Args:
    mu: means.
    logvar: ln of the variances.
    mask: of the observed modalities.
    prior: whether N(0, I) is a factor as well, as in MVAE (arXiv:1802.05335).
  """
  precision = _precision(logvar, mask)
  total = jnp.sum(precision, axis=1) + prior
  mean = jnp.sum(precision * _masked(mu, mask), axis=1) / _or_one(total, mask)
  return or_prior(Gaussian(mean, -jnp.log(_or_one(total, mask))), mask)


def product_as_released(mu: Experts, logvar: Experts, mask: Mask) -> Gaussian:
  """PoE with the prior's factor as in the released code of arXiv:2309.00380.

  It weights the means by the variances instead of the precisions. Only for
  comparison with numbers that were obtained with it.
  """
  var = _unless_masked(jnp.exp, logvar, mask)
  total = jnp.sum(_precision(logvar, mask), axis=1) + 1
  mean = jnp.sum(var * _masked(mu, mask), axis=1) / total
  return or_prior(Gaussian(mean, -jnp.log(total)), mask)


def mixture(mu: Experts, logvar: Experts, mask: Mask) -> RandomComponent:
  """The mixture of the Gaussians with equal weights: MoE."""
  logits = jnp.where(mask > 0, 0.0, EXCLUDED).astype(mu.dtype)
  mu, logvar = (_masked(v, mask) for v in (mu, logvar))
  return or_prior(RandomComponent(logits, mu, logvar), mask)


def mixture_of_products(
  mu: Experts, logvar: Experts, mask: Mask
) -> RandomComponent:
  """The mixture of the products of all non-empty subsets of S: MoPoE."""
  m = mask.shape[1]
  choices = list(itertools.product((0.0, 1.0), repeat=m))[1:]
  parts = []
  for choice in choices:
    subset = jnp.asarray(choice, mask.dtype)[None]
    # Subsets that contain a masked modality do not count.
    inside = jnp.all(mask >= subset, axis=1)
    q = product(mu, logvar, jnp.where(inside[:, None], subset, 0.0))
    logits = jnp.where(inside, 0.0, EXCLUDED).astype(mu.dtype)
    parts.append((logits, q.mu, q.logvar))
  leaves = (jnp.stack(part, axis=1) for part in zip(*parts, strict=True))
  return or_prior(RandomComponent(*leaves), mask)


def separate(mu: Experts, logvar: Experts, mask: Mask) -> Separate:
  """No fusion: every modality keeps its latents (MMVM, independent VAEs)."""
  mu, logvar = (_masked(v, mask) for v in (mu, logvar))
  return Separate(mu, logvar, mask)


def stacked(each: Sequence[Gaussian]) -> tuple[Experts, Experts]:
  """mu and logvar of one Gaussian for each modality."""
  mu = jnp.stack([q.mu for q in each], axis=1)
  return mu, jnp.stack([q.logvar for q in each], axis=1)


def or_prior(q: Posterior, mask: Mask) -> Any:
  """q, but N(0, I) for observations without any modality.

  Args:
    q: a Gaussian or a mixture, for which all zeros are N(0, I).
    mask: of the observed modalities.
  """
  observed = jnp.any(mask > 0, axis=1)

  def zero(leaf):
    return jnp.where(observed.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, 0)

  return jax.tree.map(zero, q)


def _masked(h: jax.Array, mask: Mask) -> jax.Array:
  """h [b, m, n] with zeros where masked, whatever was there."""
  return jnp.where(mask[..., None] > 0, h, 0)


def _precision(logvar: Experts, mask: Mask) -> Experts:
  return _unless_masked(lambda v: jnp.exp(-v), logvar, mask)


def _unless_masked(
  function: Callable[[jax.Array], jax.Array], x: Experts, mask: Mask
) -> Experts:
  """function(x), 0 where masked; x of masked entries is not used at all."""
  return _masked(function(_masked(x, mask)), mask)


def _or_one(x: Float[Array, "b d"], mask: Mask) -> Float[Array, "b d"]:
  """x, and 1 for observations without any modality, so that ln x is finite."""
  return jnp.where(jnp.any(mask > 0, axis=1)[:, None], x, 1)


# ---------------------------------------------------------- modules


class Fusion(nn.Module):
  """Base class of fusions.

  Attributes:
    names: of the modalities.
    head: maps features to the posterior of the latents.
    width: of its own layers.
    layers: of a fusion of features, see there.
    heads: of attention.
  """

  names: Sequence[str]
  head: Head
  width: int = 256
  layers: int = 1
  heads: int = 4

  # Whether `head` maps the pooled features; others have one for each modality.
  of_features: ClassVar[bool] = False
  # Whether a formula defines the posterior of every subset. Otherwise it is
  # learned, and arbitrary for subsets that are not in training.
  any_subset: ClassVar[bool] = False
  # The keys of `config.multimodal` that it reads.
  keys: ClassVar[tuple[str, ...]] = ()

  @classmethod
  def family(cls, head: Head) -> type[Posterior]:
    """The class of its posteriors."""
    raise NotImplementedError

  def embed(self, features: Mapping[str, Float[Array, "b n"]]) -> Any:
    """What does not depend on the mask: features by modality -> [b, m, ...]."""
    raise NotImplementedError

  def combine(self, embedded: Any, mask: Mask) -> Posterior:
    """The posterior given the modalities of a mask [b, m]."""
    raise NotImplementedError

  def __call__(
    self, features: Mapping[str, Float[Array, "b n"]], mask: Mask
  ) -> Posterior:
    """`combine` of `embed`."""
    return self.combine(self.embed(features), mask)


class OfPosteriors(Fusion):
  """A formula that combines one Gaussian for each modality."""

  any_subset: ClassVar[bool] = True
  # (mu, logvar, mask) -> posterior
  formula: ClassVar[Callable[..., Posterior]]
  result: ClassVar[type[Posterior]]

  @classmethod
  def family(cls, head: Head) -> type[Posterior]:
    del head
    return cls.result

  def setup(self) -> None:
    if not isinstance(self.head, GaussianHead):
      raise UserError(
        "The posteriors of single modalities are Gaussians: use "
        "--config.posterior.name=gaussian, or the multimodal.fusion "
        "sum_pooling or attention."
      )
    self.experts = {name: self.head.clone(name=None) for name in self.names}

  def embed(self, features: Mapping[str, Float[Array, "b n"]]) -> Any:
    """mu and logvar of every modality, [b, m, d] each."""
    return stacked([self.experts[name](features[name]) for name in self.names])

  def combine(self, embedded: Any, mask: Mask) -> Posterior:
    return type(self).formula(*embedded, mask)


class Average(OfPosteriors):
  """`average`."""

  formula = staticmethod(average)
  result = Gaussian


class Product(OfPosteriors):
  """`product`, without the prior."""

  formula = staticmethod(product)
  result = Gaussian


class ProductWithPrior(OfPosteriors):
  """`product`, with the prior."""

  result = Gaussian

  @staticmethod
  def formula(mu: Experts, logvar: Experts, mask: Mask) -> Gaussian:
    return product(mu, logvar, mask, prior=True)


class ProductAsReleased(OfPosteriors):
  """`product_as_released`."""

  formula = staticmethod(product_as_released)
  result = Gaussian


class MixtureOfExperts(OfPosteriors):
  """`mixture`."""

  formula = staticmethod(mixture)
  result = RandomComponent


class MixtureOfProducts(OfPosteriors):
  """`mixture_of_products`."""

  formula = staticmethod(mixture_of_products)
  result = RandomComponent

  def setup(self) -> None:
    super().setup()
    if len(self.names) > MAX_SUBSETS:
      raise UserError(
        f"multimodal.fusion='mopoe' has a component for every subset of the "
        f"modalities, so it takes {MAX_SUBSETS} modalities at most; there are "
        f"{len(self.names)}."
      )


class SeparateLatents(OfPosteriors):
  """`separate`."""

  formula = staticmethod(separate)
  result = Separate


class OfFeatures(Fusion):
  """Features are pooled, and one head maps the result to the posterior."""

  of_features: ClassVar[bool] = True

  @classmethod
  def family(cls, head: Head) -> type[Posterior]:
    return head.posterior_type

  def dense(self) -> Dense:
    return Dense(
      self.width,
      dtype=self.head.dtype,
      param_dtype=self.head.param_dtype,
      kernel_init=nn.initializers.lecun_normal(),
    )

  def mlp(self) -> list[Dense]:
    return [self.dense() for _ in range(2)]

  def setup(self) -> None:
    self.inputs = {name: self.dense() for name in self.names}
    self.outer = self.mlp()
    self.posterior = self.head.clone(name=None)

  def embed(self, features: Mapping[str, Float[Array, "b n"]]) -> Any:
    """[b, m, width]."""
    each = [self.inputs[name](features[name]) for name in self.names]
    return jnp.stack(each, axis=1)

  def pooled(self, embedded: jax.Array, mask: Mask) -> Float[Array, "b n"]:
    """One vector for each observation."""
    raise NotImplementedError

  def combine(self, embedded: Any, mask: Mask) -> Posterior:
    h = self.pooled(embedded, mask.astype(embedded.dtype))
    q = self.posterior(_through(self.outer, h))
    if not isinstance(q, Gaussian | Mixture):
      raise UserError(
        "multimodal.fusion needs --config.posterior.name=gaussian or mixture."
      )
    return or_prior(q, mask)


class SumPooling(OfFeatures):
  """q = head(MLP(sum_{s in S} g(h_s))), g an MLP that all modalities share.

  Deep Sets; section 4 of arXiv:2309.00380.
  """

  keys = ("width",)

  def setup(self) -> None:
    super().setup()
    self.inner = self.mlp()

  def embed(self, features: Mapping[str, Float[Array, "b n"]]) -> Any:
    return _through(self.inner, nn.leaky_relu(super().embed(features)))

  def pooled(self, embedded: jax.Array, mask: Mask) -> Float[Array, "b n"]:
    return jnp.sum(_masked(embedded, mask), axis=1)


class SelfAttention(OfFeatures):
  """Attention among the observed modalities, then a sum over them.

  `layers` blocks of pre-norm attention with a residual connection. Section 4
  of arXiv:2309.00380.
  """

  keys = ("width", "layers", "heads")

  def setup(self) -> None:
    super().setup()
    if self.width % self.heads:
      raise UserError(
        f"multimodal.width={self.width} must be a multiple of "
        f"multimodal.heads={self.heads}."
      )
    kind = dict(dtype=self.head.dtype, param_dtype=self.head.param_dtype)
    self.attention = [
      self_attention(self.heads, **kind) for _ in range(self.layers)
    ]
    self.hidden = [self.mlp() for _ in range(self.layers)]
    self.norms = [nn.LayerNorm(**kind) for _ in range(2 * self.layers + 1)]

  def embed(self, features: Mapping[str, Float[Array, "b n"]]) -> Any:
    return nn.leaky_relu(super().embed(features))

  def pooled(self, embedded: jax.Array, mask: Mask) -> Float[Array, "b n"]:
    pairs = nn.make_attention_mask(mask > 0, mask > 0)
    h = _masked(embedded, mask)
    norms = iter(self.norms)
    for attention, hidden in zip(self.attention, self.hidden, strict=True):
      normed = next(norms)(h)
      attended = attention(normed, mask=pairs).astype(normed.dtype)
      h = h + _masked(attended, mask)
      h = h + _masked(_through(hidden, next(norms)(h)), mask)
    return jnp.sum(_masked(next(norms)(h), mask), axis=1)


def _through(layers: Sequence[Dense], h: jax.Array) -> jax.Array:
  """Dense layers, each followed by a leaky ReLU."""
  for layer in layers:
    h = nn.leaky_relu(layer(h))
  return h


class PrivateHead(nn.Module):
  """The posteriors of the private latents of each modality.

  Attributes:
    names: of the modalities.
    latent: p, the number of private latents of each.
    initial_logvar: see `Head`.
  """

  names: Sequence[str]
  latent: int
  initial_logvar: float = 0.0
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  def setup(self) -> None:
    self.heads = {
      name: GaussianHead(
        self.latent,
        initial_logvar=self.initial_logvar,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
      )
      for name in self.names
    }

  def __call__(
    self, features: Mapping[str, Float[Array, "b n"]]
  ) -> tuple[Experts, Experts]:
    """mu and logvar [b, m, p]."""
    return stacked([self.heads[name](features[name]) for name in self.names])


FUSIONS: Registry[type[Fusion]] = Registry("multimodal.fusion")
FUSIONS.register("separate", SeparateLatents)
FUSIONS.register("avg", Average)
FUSIONS.register("poe", Product)
FUSIONS.register("poe_prior", ProductWithPrior)
FUSIONS.register("poe_as_released", ProductAsReleased)
FUSIONS.register("moe", MixtureOfExperts)
FUSIONS.register("mopoe", MixtureOfProducts)
FUSIONS.register("sum_pooling", SumPooling)
FUSIONS.register("attention", SelfAttention)

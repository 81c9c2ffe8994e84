"""Likelihoods p(x | z).

The reconstruction term is `weight` times the mean error over the n numbers of
an observation. Up to a constant this is -ln p(x | z), and the weight sets the
scale of the density. A likelihood is a class here and a line in `LIKELIHOODS`;
`Modality` says which one an observation has.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gamix_jax.registry import Registry


class Likelihood:
  """Base class of likelihoods.

  Attributes:
    continuous: whether p(x | z) is a density over real numbers.
    categorical: whether the last axis has the probabilities of classes.
  """

  continuous: ClassVar[bool] = True
  categorical: ClassVar[bool] = False

  def error(
    self, x: Float[Array, "..."], x_hat: Float[Array, "..."]
  ) -> Float[Array, "..."]:
    """The elementwise error of x_hat, the decoder's output."""
    raise NotImplementedError

  def log_normalizer(self, n: int, weight: float) -> Any:
    """ln of the normalising constant of p(x | z), for n numbers, in nats."""
    raise NotImplementedError

  def mean(self, x_hat: Float[Array, "..."]) -> Float[Array, "..."]:
    """E[x | z], which pictures show; not clipped to the range of x."""
    return x_hat

  def default_weight(self, n: int) -> float:
    """The default weight of the reconstruction of n numbers."""
    return n / 2

  def describe(self, n: int, weight: float) -> str:
    """The density for a weight, in words."""
    raise NotImplementedError


class Laplace(Likelihood):
  """|x - x_hat|: Laplace noise of scale n / weight."""

  def error(self, x: Array, x_hat: Array) -> Array:
    return jnp.abs(x - x_hat)

  def log_normalizer(self, n: int, weight: float) -> Any:
    return n * jnp.log(2 * n / weight)

  def describe(self, n: int, weight: float) -> str:
    return f"Laplace noise of scale {n / weight:.6g}, pixels in [-1, 1]"


class Normal(Likelihood):
  """(x - x_hat)^2: Gaussian noise of variance n / (2 weight)."""

  def error(self, x: Array, x_hat: Array) -> Array:
    return jnp.square(x - x_hat)

  def log_normalizer(self, n: int, weight: float) -> Any:
    return n / 2 * jnp.log(jnp.pi * n / weight)

  def describe(self, n: int, weight: float) -> str:
    return f"Gaussian noise of variance {n / weight / 2:.6g} in [-1, 1]"


class Bernoulli(Likelihood):
  """Cross-entropy of x, read as the probability (x + 1) / 2; x_hat are logits.

  With weight n it is the Bernoulli likelihood, with another weight its power.
  """

  continuous = False

  def error(self, x: Array, x_hat: Array) -> Array:
    t = (x + 1) / 2
    return jax.nn.softplus(x_hat) - t * x_hat

  def log_normalizer(self, n: int, weight: float) -> Any:
    del n, weight
    return 0.0

  def mean(self, x_hat: Array) -> Array:
    return jnp.tanh(x_hat / 2)

  def default_weight(self, n: int) -> float:
    return float(n)

  def describe(self, n: int, weight: float) -> str:
    tempered = "" if weight == n else f", to the power {weight / n:.6g}"
    return f"Bernoulli, binary or grey levels as probabilities{tempered}"


class Categorical(Likelihood):
  """Cross-entropy of x, one-hot or probabilities [..., classes].

  x_hat are logits over the last axis. With weight n it is the categorical
  likelihood (several, if there are axes before the last), with another weight
  its power.
  """

  categorical = True
  continuous = False

  def error(self, x: Array, x_hat: Array) -> Array:
    return -x * jax.nn.log_softmax(x_hat, axis=-1)

  def log_normalizer(self, n: int, weight: float) -> Any:
    del n, weight
    return 0.0

  def mean(self, x_hat: Array) -> Array:
    return jax.nn.softmax(x_hat, axis=-1)

  def default_weight(self, n: int) -> float:
    return float(n)

  def describe(self, n: int, weight: float) -> str:
    tempered = "" if weight == n else f", to the power {weight / n:.6g}"
    return f"categorical, one-hot or probabilities{tempered}"


LIKELIHOODS: Registry[Likelihood] = Registry("objective.reconstruction")
LIKELIHOODS.register("l1", Laplace())
LIKELIHOODS.register("l2", Normal())
LIKELIHOODS.register("bernoulli", Bernoulli())
LIKELIHOODS.register("categorical", Categorical())

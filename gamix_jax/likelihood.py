"""p(x | z): how a decoder's output is read, and what its error costs.

A likelihood is a class here and a line in `LIKELIHOODS`. The reconstruction
term is `weight` times the mean error over an observation's n numbers. Up to a
constant, that is minus the log density of p(x | z), whose scale the weight
sets. `Modality` says which likelihood an observation has.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gamix_jax.registry import Registry


class Likelihood:
  """What a likelihood has to say of x and of the decoder's output x_hat.

  Attributes:
    continuous: whether p(x | z) is a density over real numbers, not over 0, 1.
  """

  continuous: ClassVar[bool] = True

  def error(
    self, x: Float[Array, "..."], x_hat: Float[Array, "..."]
  ) -> Float[Array, "..."]:
    """The error of every number, nats at a weight of 1 a number."""
    raise NotImplementedError

  def log_normalizer(self, n: int, weight: float) -> Any:
    """ln of the density's normalising constant, of n numbers, nats."""
    raise NotImplementedError

  def mean(self, x_hat: Float[Array, "..."]) -> Float[Array, "..."]:
    """E[x | z], in the range of x: what is shown. Unbounded if x_hat is."""
    return x_hat

  def default_weight(self, n: int) -> float:
    """The weight that a preset gives the reconstruction of n numbers."""
    return n / 2

  def describe(self, n: int, weight: float) -> str:
    """The density that a weight stands for, in words."""
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
  """Cross-entropy: x in [-1, 1] is a probability, (x + 1) / 2; x_hat logits.

  At weight n it is the likelihood of x's own bits, at another one tempered.
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
    return f"Bernoulli, grey levels as probabilities{tempered}"


LIKELIHOODS: Registry[Likelihood] = Registry("objective.reconstruction")
LIKELIHOODS.register("l1", Laplace())
LIKELIHOODS.register("l2", Normal())
LIKELIHOODS.register("bernoulli", Bernoulli())

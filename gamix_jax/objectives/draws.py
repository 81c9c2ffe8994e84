"""Distances of the population from N(0, I), computed from draws of both.

The draws of a batch are points z_n with weights w_n that sum to 1; those of a
mixture have different weights. Objectives and their terms:

    wae_mmd  mmd                 squared maximum mean discrepancy, unbiased
    cwae     cramer_wold         logarithm of the squared Cramer-Wold distance
    swae     sliced_wasserstein  squared Wasserstein distance along directions
    sigreg   sigreg              Epps-Pulley's test statistic along directions
"""

import dataclasses
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.modality import Modalities
from gamix_jax.networks import VAEOutput
from gamix_jax.objectives.base import Objective, State, Terms
from gamix_jax.posterior import Posterior

# s of the kernels C / (C + |x - y|^2), C = 2 d s.
SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@dataclasses.dataclass(frozen=True)
class DrawsObjective(Objective):
  """`recon` and one distance between the draws of q and the prior."""

  @classmethod
  def accepts(cls, family: type[Posterior]) -> bool:
    return family.standard_normal_prior and not family.separate

  def distance(self, output: VAEOutput) -> jax.Array:
    """The second term, []."""
    raise NotImplementedError

  def __call__(
    self, output: VAEOutput, state: State
  ) -> tuple[Terms, dict[str, jax.Array], State]:
    terms = (self.recon(output), self.distance(output))
    return dict(zip(self.terms, terms, strict=True)), {}, state


@dataclasses.dataclass(frozen=True)
class WAEMMD(DrawsObjective):
  """The Wasserstein autoencoder with the MMD, or InfoVAE.

  Tolstikhin et al., arXiv:1711.01558, algorithm 2; Zhao et al.,
  arXiv:1706.02262.
  """

  terms = ("recon", "mmd")
  additive = True

  @classmethod
  def default_weights(cls, recon: float) -> dict[str, float]:
    return {"mmd": 10.0}  # lambda of arXiv:1711.01558 on MNIST

  def distance(self, output: VAEOutput) -> jax.Array:
    shape = output.z.shape[1:]
    y = jax.random.normal(output.key, shape, output.z.dtype)
    return mmd(output.z, output.w, y)


def mmd(
  z: Float[Array, "s b d"], w: Float[Array, "s b"], y: Float[Array, "b d"]
) -> jax.Array:
  """Unbiased squared MMD, summed over the kernels of SCALES; [].

      1/(B(B-1)) sum_{i != j} [ k(z_i, z_j) + k(y_i, y_j) ]
        - 2/B^2 sum_ij k(z_i, y_j),        k(x, y) = C / (C + |x - y|^2)

  with C = 2 d s, s of SCALES. Draws of one image are no pair. It can be
  negative for a single batch.

  Args:
    z: draws of q, B = b images.
    w: their weights, which sum to 1 over s.
    y: draws of N(0, I).
  """
  s, b, d = z.shape
  points, weights = z.reshape(s * b, d), w.reshape(s * b)
  image = jnp.arange(s * b) % b
  others = (image[:, None] != image[None]).astype(z.dtype)
  own = jnp.einsum(
    "m,mn,n->", weights, _multiquadrics(points, points) * others, weights
  )
  prior = jnp.sum(_multiquadrics(y, y) * (1 - jnp.eye(b, dtype=z.dtype)))
  crossed = jnp.einsum("m,mn->", weights, _multiquadrics(points, y))
  pairs = float(b) * (b - 1)
  return (own + prior) / pairs - 2 * crossed / float(b) ** 2


def _multiquadrics(
  x: Float[Array, "m d"], y: Float[Array, "n d"]
) -> Float[Array, "m n"]:
  """The sum of the kernels."""
  square = _squared_distances(x, y)
  constants = [2 * x.shape[-1] * s for s in SCALES]
  return sum(c / (c + square) for c in constants)


def _squared_distances(
  x: Float[Array, "m d"], y: Float[Array, "n d"]
) -> Float[Array, "m n"]:
  products = jnp.einsum("md,nd->mn", x, y, precision="highest")
  norms = [jnp.sum(jnp.square(v), axis=-1) for v in (x, y)]
  return jnp.maximum(norms[0][:, None] + norms[1][None] - 2 * products, 0)


@dataclasses.dataclass(frozen=True)
class CWAE(DrawsObjective):
  """The Cramer-Wold autoencoder (Knop et al., arXiv:1805.09235, section 4)."""

  terms = ("recon", "cramer_wold")

  @classmethod
  def from_config(cls, config: ConfigDict, modalities: Modalities) -> Self:
    if config.model.latent < 2:
      raise UserError(
        f"model.latent={config.model.latent}: objective.name='cwae' needs 2 "
        "latents or more."
      )
    return super().from_config(config, modalities)

  def distance(self, output: VAEOutput) -> jax.Array:
    # The biased estimate is positive in expectation, but the formula
    # approximates, so that a single batch may be at 0.
    square = cramer_wold(output.z, output.w)
    return jnp.log(jnp.maximum(square, jnp.finfo(square.dtype).eps))


def cramer_wold(z: Float[Array, "s b d"], w: Float[Array, "s b"]) -> jax.Array:
  """The squared Cramer-Wold distance from N(0, I), times 2 sqrt(pi); [].

      (1 + g)^-1/2 + sum_mn w_m w_n (g + K |z_m - z_n|^2)^-1/2
        - 2 sum_m w_m (g + 1/2 + K |z_m|^2)^-1/2

  with K = 1 / (2 d - 3) and g = (4 / (3 N))^(2/5) for N points (equations 10
  and 11, for d of 20 and more; used for all d >= 2, as there).

  Args:
    z: draws of q.
    w: their weights, which sum to 1 over s.
  """
  s, b, d = z.shape
  n, k = s * b, 1 / (2 * d - 3)
  g = (4 / (3 * n)) ** 0.4
  points, weights = z.reshape(n, d), w.reshape(n) / b
  square = _squared_distances(points, points)
  own = jnp.einsum("m,mn,n->", weights, jax.lax.rsqrt(g + k * square), weights)
  norms = jnp.sum(jnp.square(points), axis=-1)
  crossed = jnp.sum(weights * jax.lax.rsqrt(g + 0.5 + k * norms))
  return (1 + g) ** -0.5 + own - 2 * crossed


@dataclasses.dataclass(frozen=True)
class SWAE(DrawsObjective):
  """The sliced Wasserstein autoencoder (Kolouri et al., arXiv:1804.01947).

  Not for mixtures: sorted draws of different weights do not form pairs.

  Attributes:
    directions: number of random directions a step.
  """

  directions: int = 50

  terms = ("recon", "sliced_wasserstein")
  settings: ClassVar[dict[str, Any]] = {"directions": 50}

  @classmethod
  def from_config(cls, config: ConfigDict, modalities: Modalities) -> Self:
    _check_directions(config)
    return super().from_config(config, modalities)

  @classmethod
  def accepts(cls, family: type[Posterior]) -> bool:
    return super().accepts(family) and not family.has_components

  @classmethod
  def default_weights(cls, recon: float) -> dict[str, float]:
    return {"sliced_wasserstein": 10.0}

  def distance(self, output: VAEOutput) -> jax.Array:
    of_prior, of_directions = jax.random.split(output.key)
    d = output.z.shape[-1]
    z = output.z.reshape(-1, d)
    y = jax.random.normal(of_prior, z.shape, z.dtype)
    a = directions(of_directions, self.directions, d, z.dtype)
    return sliced_wasserstein(z, y, a)


def sliced_wasserstein(
  z: Float[Array, "n d"], y: Float[Array, "n d"], a: Float[Array, "l d"]
) -> jax.Array:
  """Mean over directions of the squared 2-Wasserstein distance along them; [].

      1/(L n) sum_l sum_m ( (a_l z)_[m] - (a_l y)_[m] )^2

  where [m] is the m-th smallest (equation 14).

  Args:
    z: draws of q.
    y: as many draws of the prior.
    a: unit vectors.
  """
  sorted_z, sorted_y = (
    jnp.sort(jnp.einsum("nd,ld->ln", v, a, precision="highest"), axis=-1)
    for v in (z, y)
  )
  return jnp.mean(jnp.square(sorted_z - sorted_y))


@dataclasses.dataclass(frozen=True)
class SIGReg(DrawsObjective):
  """Sketched isotropic Gaussian regularisation (arXiv:2511.08544).

  Balestriero & LeCun, LeJEPA, section 4 and algorithm 1. Here reconstruction
  takes the place of the prediction of other views.

  Attributes:
    directions: number of random directions a step.
  """

  directions: int = 256

  terms = ("recon", "sigreg")
  settings: ClassVar[dict[str, Any]] = {"directions": 256}

  @classmethod
  def from_config(cls, config: ConfigDict, modalities: Modalities) -> Self:
    _check_directions(config)
    return super().from_config(config, modalities)

  def distance(self, output: VAEOutput) -> jax.Array:
    d, dtype = output.z.shape[-1], output.z.dtype
    a = directions(output.key, self.directions, d, dtype)
    return epps_pulley(output.z, output.w, a)


# The integral over t: the trapezoidal rule on 17 points, as published.
MAX_T, POINTS = 5.0, 17


def epps_pulley(
  z: Float[Array, "s b d"], w: Float[Array, "s b"], a: Float[Array, "l d"]
) -> jax.Array:
  """Mean over directions of Epps-Pulley's statistic, a V-statistic; [].

      B/L sum_l int_-5^5 | phi_l(t) - e^(-t^2/2) |^2 e^(-t^2/2) dt,
      phi_l(t) = 1/B sum_i sum_s w_si e^(i t a_l z_si)

  At a perfect population its expectation is not 0, and the factor B makes it
  independent of the batch size; with it, the pull grows with B.

  Args:
    z: draws of q, B = b images.
    w: their weights, which sum to 1 over s.
    a: unit vectors.
  """
  b = z.shape[1]
  t = jnp.linspace(-MAX_T, MAX_T, POINTS, dtype=z.dtype)
  along = jnp.einsum("sbd,ld->sbl", z, a, precision="highest")
  angle = along[..., None] * t[None, None, None]
  real = jnp.einsum("sb,sblt->lt", w, jnp.cos(angle)) / b
  imaginary = jnp.einsum("sb,sblt->lt", w, jnp.sin(angle)) / b
  normal = jnp.exp(-jnp.square(t) / 2)
  square = jnp.square(real - normal[None]) + jnp.square(imaginary)
  step = 2 * MAX_T / (POINTS - 1)
  return b * jnp.mean(jnp.trapezoid(square * normal[None], dx=step, axis=-1))


def directions(
  key: jax.Array, n: int, d: int, dtype: Any
) -> Float[Array, "n d"]:
  """Draws n unit vectors, uniform on the sphere."""
  a = jax.random.normal(key, (n, d), dtype)
  return a / jnp.linalg.norm(a, axis=-1, keepdims=True)


def _check_directions(config: ConfigDict) -> None:
  name = config.objective.name
  number = config.objective[name].directions
  if number < 1:
    raise UserError(f"objective.{name}.directions={number} must be 1 or more.")

"""Objectives that match the covariance of the codes to the identity.

    dip1, dip2    covariance   sum_{a != b} C_ab^2
                  variance     sum_a (C_aa - 1)^2
    vicreg        covariance   1/d sum_{a != b} C_ab^2
                  variance     1/d sum_a max(0, 1 - sqrt(C_aa + 1e-4))

C is the covariance over the batch of the posteriors' means (dip1), or that of
q(z), which adds the mean covariance within posteriors (dip2, vicreg). The
estimates are biased, so the batch size is part of these objectives.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gamix_jax.networks import VAEOutput
from gamix_jax.objectives.base import Objective, State, Terms
from gamix_jax.objectives.elbo import kl
from gamix_jax.posterior import Posterior


@dataclasses.dataclass(frozen=True)
class DIP1(Objective):
  """DIP-VAE-I: the ELBO, and the covariance of the means.

  Kumar et al., arXiv:1711.00848, equation 6.
  """

  terms = ("recon", "kl", "covariance", "variance")
  ramped = ("kl",)

  @classmethod
  def accepts(cls, family: type[Posterior]) -> bool:
    normal = family.standard_normal_prior and not family.separate
    return normal and family.has_density

  @classmethod
  def default_weights(cls, recon: float) -> dict[str, float]:
    # lambda_od = 10 and, as the paper has it for DIP-VAE-I, ten times lambda_d.
    return {"kl": 1.0, "covariance": 10.0, "variance": 100.0}

  def covariance(self, q: Posterior) -> Float[Array, "d d"]:
    """C."""
    return covariance_of_means(q)

  def __call__(
    self, output: VAEOutput, state: State
  ) -> tuple[Terms, dict[str, jax.Array], State]:
    c = self.covariance(output.q)
    terms = {
      "recon": self.recon(output),
      "kl": kl(output),
      "covariance": squared_off_diagonal(c),
      "variance": jnp.sum(jnp.square(jnp.diagonal(c) - 1)),
    }
    return terms, {}, state


@dataclasses.dataclass(frozen=True)
class DIP2(DIP1):
  """DIP-VAE-II: the ELBO, and the covariance of q(z) (equation 7)."""

  @classmethod
  def default_weights(cls, recon: float) -> dict[str, float]:
    return {"kl": 1.0, "covariance": 10.0, "variance": 10.0}

  def covariance(self, q: Posterior) -> Float[Array, "d d"]:
    return covariance_of_means(q) + covariance_within(q)


@dataclasses.dataclass(frozen=True)
class VICReg(Objective):
  """Variance and covariance of VICReg (Bardes et al., arXiv:2105.04906).

  Equations 1 to 3 with gamma = 1. Reconstruction takes the place of the
  invariance between views. The mean of the codes is free, and their variances
  may exceed 1, so samples should come from the latent source "gmm".
  """

  terms = ("recon", "covariance", "variance")

  @classmethod
  def accepts(cls, family: type[Posterior]) -> bool:
    return family.standard_normal_prior and not family.separate

  @classmethod
  def default_weights(cls, recon: float) -> dict[str, float]:
    return {"covariance": 1.0, "variance": 25.0}  # nu and mu of the paper

  def __call__(
    self, output: VAEOutput, state: State
  ) -> tuple[Terms, dict[str, jax.Array], State]:
    q = output.q
    c = covariance_of_means(q, unbiased=True) + covariance_within(q)
    std = jnp.sqrt(jnp.diagonal(c) + 1e-4)
    terms = {
      "recon": self.recon(output),
      "covariance": squared_off_diagonal(c) / len(c),
      "variance": jnp.mean(jax.nn.relu(1 - std)),
    }
    return terms, {}, state


def covariance_of_means(
  q: Posterior, unbiased: bool = False
) -> Float[Array, "d d"]:
  """Covariance over the batch of E z, divided by B, or by B - 1."""
  mean = q.mean()
  centred = mean - jnp.mean(mean, axis=0, keepdims=True)
  n = len(mean) - 1 if unbiased else len(mean)
  return jnp.einsum("bi,bj->ij", centred, centred, precision="highest") / n


def covariance_within(q: Posterior) -> Float[Array, "d d"]:
  """The mean over the batch of the covariance of z under q(z | x_i)."""
  weights, mu, var = q.components()
  offset = mu - q.mean()[:, None]
  scaled = weights[..., None] * offset
  between = jnp.einsum("bki,bkj->ij", scaled, offset, precision="highest")
  diagonal = jnp.einsum("bk,bkd->d", weights, var)
  return (between + jnp.diag(diagonal)) / len(mu)


def squared_off_diagonal(c: Float[Array, "d d"]) -> jax.Array:
  """sum_{a != b} c_ab^2, []."""
  return jnp.sum(jnp.square(c)) - jnp.sum(jnp.square(jnp.diagonal(c)))

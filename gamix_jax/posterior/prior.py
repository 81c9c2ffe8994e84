"""Learned priors: a mixture, or the VampPrior.

    mixture   p(z) = sum_c pi_c N(z; mu_c, diag sigma_c^2)
    vamp      p(z) = 1/C sum_c q(z | u_c),   u_c learned images

The second is the VampPrior (Tomczak & Welling, arXiv:1705.07120): the
population of C pseudo-inputs. Either way p(z) is a mixture, and KL(q || p) has
no closed form: it is estimated from q's draws, stratum by stratum.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float

from gamix_jax.errors import UserError
from gamix_jax.posterior import base
from gamix_jax.posterior.mixture import Mixture
from gamix_jax.registry import check_choice

PRIORS = ("normal", "mixture", "vamp")


@struct.dataclass
class WithPrior(base.Posterior):
  """A posterior with a learned prior instead of its family's own.

  Attributes:
    q: [b] posteriors.
    prior: one mixture: leaves [1, c] and [1, c, d].
  """

  standard_normal_prior: ClassVar[bool] = False

  q: base.Posterior
  prior: Mixture

  def noise_shape(self, n: int) -> tuple[int, ...]:
    return self.q.noise_shape(n)

  def sample(
    self,
    key: jax.Array,
    n: int,
    eps: jax.Array | None = None,
    step: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    return self.q.sample(key, n, eps, step)

  def mean(self) -> jax.Array:
    return self.q.mean()

  def log_prob(self, z: jax.Array) -> jax.Array:
    return self.q.log_prob(z)

  def log_prior(self, z: jax.Array) -> jax.Array:
    return self.prior.log_prob(z)

  def components(self) -> tuple[jax.Array, jax.Array, jax.Array]:
    return self.q.components()


def draw(
  prior: Mixture, key: jax.Array, n: int, temperature: float = 1.0
) -> Float[Array, "n d"]:
  """Draws z [n, d] from a mixture, with its scales times `temperature`."""
  which_key, noise_key = jax.random.split(key)
  which = jax.random.categorical(which_key, prior.logits[0], shape=(n,))
  mu, logvar = prior.mu[0][which], prior.logvar[0][which]
  noise = jax.random.normal(noise_key, mu.shape, mu.dtype)
  return mu + temperature * jnp.exp(logvar / 2) * noise


def vamp_mixture(q: base.Posterior) -> Mixture:
  """1/C sum_c q(z | u_c) of C posteriors, as a mixture."""
  weights, mu, var = q.components()
  d = mu.shape[-1]
  logits = jnp.log(jnp.maximum(weights, 1e-30)).reshape(1, -1)
  return Mixture(logits, mu.reshape(1, -1, d), jnp.log(var).reshape(1, -1, d))


class MixturePrior(nn.Module):
  """A mixture with learned weights, means and variances."""

  components: int
  latent: int
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self) -> Mixture:
    shape = (1, self.components, self.latent)

    def param(name, initial, shape):
      return self.param(name, initial, shape, self.param_dtype)

    return Mixture(
      param("logits", nn.initializers.zeros, shape[:2]),
      param("mu", nn.initializers.normal(1.0), shape),
      base.clamp_logvar(param("logvar", nn.initializers.zeros, shape)),
    )


class PseudoInputs(nn.Module):
  """Learned images [components, h, w, c] in [-1, 1]."""

  components: int
  image_shape: tuple[int, int, int]
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self) -> Float[Array, "k h w c"]:
    shape = (self.components, *self.image_shape)
    u = self.param("u", nn.initializers.normal(0.5), shape, self.param_dtype)
    return jnp.tanh(u)


def make(
  name: str,
  components: int,
  latent: int,
  image_shape: tuple[int, int, int],
  param_dtype: jnp.dtype,
) -> nn.Module | None:
  """The module for `config.prior`; None for the family's own prior.

  Raises:
    UserError: there is no such prior; "normal" with components.
  """
  check_choice("prior.name", name, PRIORS)
  if name == "normal":
    if components != 1:
      raise UserError(
        f"prior.components={components}, but prior.name is 'normal'."
      )
    return None
  if name == "mixture":
    return MixturePrior(components, latent, param_dtype)
  return PseudoInputs(components, image_shape, param_dtype)

"""beta-TCVAE: the KL of the ELBO in three terms with a weight each.

    mutual_information   mean_i E [ ln q(z | x_i) - ln q(z) ]
    total_correlation    mean_i E [ ln q(z) - sum_d ln q(z_d) ]
    dimension_kl         mean_i E [ sum_d ln q(z_d) - ln p(z) ]

Their sum is the KL. q(z) and q(z_d) of the N training images are estimated
from a batch by minibatch-stratified sampling (Chen et al., arXiv:1802.04942,
equation 2 and appendix C.2). The logarithms are biased, so the batch size is
part of this objective.
"""

import dataclasses
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gamix_jax import metrics
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.modality import Modalities
from gamix_jax.networks import VAEOutput
from gamix_jax.objectives.base import Objective, State, Terms
from gamix_jax.posterior import Posterior
from gamix_jax.posterior.base import LOG_2PI

TERMS = ("mutual_information", "total_correlation", "dimension_kl")


@dataclasses.dataclass(frozen=True)
class TCVAE(Objective):
  """The objective of the beta-TCVAE.

  Attributes:
    images: N, the number of training images.
  """

  images: int = 0

  terms = ("recon", *TERMS)
  ramped = TERMS
  settings: ClassVar[dict[str, Any]] = {"images": 0}

  @classmethod
  def from_config(cls, config: ConfigDict, modalities: Modalities) -> Self:
    images, batch = config.objective.tcvae.images, config.data.batch_size
    if images < batch or batch < 2:
      raise UserError(
        f"objective.tcvae.images={images}: objective.name='tcvae' needs the "
        "number of training images (a run prints it when it starts), which "
        f"must be at least data.batch_size={batch}, and batches of 2 or more; "
        "use --config.objective.tcvae.images=60000 for 60,000."
      )
    return super().from_config(config, modalities)

  @classmethod
  def accepts(cls, family: type[Posterior]) -> bool:
    return family.gaussian_components and family.standard_normal_prior

  @classmethod
  def default_weights(cls, recon: float) -> dict[str, float]:
    # beta = 6 is the paper's of dSprites.
    return dict.fromkeys(TERMS, 1.0) | {"total_correlation": 6.0}

  def __call__(
    self, output: VAEOutput, state: State
  ) -> tuple[Terms, dict[str, jax.Array], State]:
    q, z, w = output.q, output.z, output.w
    joint, product = log_population(q, z, self.images)

    def mean(each):
      return jnp.mean(jnp.sum(w * each, axis=0))

    terms = {
      "recon": self.recon(output),
      "mutual_information": mean(q.log_prob(z) - joint),
      "total_correlation": mean(joint - product),
      "dimension_kl": mean(product - q.log_prior(z)),
    }
    return terms, {}, state


def log_population(
  q: Posterior, z: Float[Array, "s b d"], images: int
) -> tuple[Float[Array, "s b"], Float[Array, "s b"]]:
  """Estimates of ln q(z) and sum_d ln q(z_d) in nats.

  Args:
    q: a mixture of diagonal Gaussians, or one, of each image of the batch.
    z: draws of each.
    images: N, of which the batch is a random part.
  """
  log_weights = jnp.log(
    jnp.asarray(metrics.mss_weights(z.shape[1], images), z.dtype)
  )
  weights, mu, var = q.components()
  # The minimum keeps the gradient of a weight that underflows finite.
  log_pi = jnp.log(jnp.maximum(weights, jnp.finfo(weights.dtype).tiny))
  # ln N(z_d; mu_jkd, var_jkd) of the draws of image i, [s, i, j, k, d].
  square = jnp.square(z[:, :, None, None] - mu[None, None]) / var[None, None]
  each = -0.5 * (square + (jnp.log(var) + LOG_2PI)[None, None])
  whole = jax.nn.logsumexp(log_pi[None, None] + each.sum(axis=-1), axis=-1)
  joint = jax.nn.logsumexp(log_weights[None] + whole, axis=-1)
  of_component = log_pi[None, None, ..., None] + each
  marginal = jax.nn.logsumexp(of_component, axis=-2)  # [s, i, j, d]
  product = jax.nn.logsumexp(
    log_weights[None, ..., None] + marginal, axis=-2
  ).sum(axis=-1)
  return joint, product

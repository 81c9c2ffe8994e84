"""The methods of the bench, and the config of a run.

All methods have the same networks, data, likelihood, optimiser and number of
steps. Each has one number that is tuned: the weight of its regulariser. Where a
regulariser has several terms, their ratio stays that of the publication.
"""

import dataclasses
from collections.abc import Mapping

from gamix_jax import config as configs
from gamix_jax import presets
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError

NETWORKS = ("mlp", "resnet")
# The network of the Cramer-Wold paper's experiments (arXiv:1805.09235).
MLP_WIDTHS, MLP_LATENT = (200, 200, 200), 8


@dataclasses.dataclass(frozen=True)
class Method:
  """A method and the weights that are tried for it.

  Attributes:
    objective: `objective.name`.
    weights: the values that are tried.
    terms: {term: factor}; the weight of a term is a tried value times this.
    fixed: {term: weight}; other terms have the preset's weights.
    posterior: `posterior.name`.
    population: `objective.population` of gamix.
    sampler: the latent source that the method samples from by design.
  """

  objective: str
  weights: tuple[float, ...]
  terms: Mapping[str, float]
  fixed: Mapping[str, float] = dataclasses.field(default_factory=dict)
  posterior: str = "delta"
  population: str = "means"
  sampler: str = "prior"


def _gamix(population: str) -> Method:
  return Method(
    "gamix",
    (1.0, 3.0, 10.0, 30.0, 100.0),
    {"population_kl": 1.0},
    {"collapse_penalty": 0.3},
    posterior="gaussian",
    population=population,
  )


METHODS = {
  "vae": Method("elbo", (1.0,), {"kl": 1.0}, posterior="gaussian"),
  "beta_vae": Method(
    "elbo", (0.25, 0.5, 2.0, 4.0, 8.0), {"kl": 1.0}, posterior="gaussian"
  ),
  "gamix_means": _gamix("means"),
  "gamix_full": _gamix("full"),
  "gamix_debiased": _gamix("debiased"),
  "gamix_quadratic": _gamix("quadratic"),
  "wae_mmd": Method(
    "wae_mmd", (10.0, 30.0, 100.0, 300.0, 1000.0), {"mmd": 1.0}
  ),
  "cwae": Method("cwae", (1.0, 3.0, 10.0, 30.0, 100.0), {"cramer_wold": 1.0}),
  "swae": Method(
    "swae", (1.0, 3.0, 10.0, 30.0, 100.0), {"sliced_wasserstein": 1.0}
  ),
  "sigreg": Method("sigreg", (0.1, 0.3, 1.0, 3.0, 10.0), {"sigreg": 1.0}),
  "vicreg": Method(
    "vicreg",
    (0.3, 1.0, 3.0, 10.0, 30.0),
    {"covariance": 1.0, "variance": 25.0},
    sampler="gmm",
  ),
  "dip1": Method(
    "dip1",
    (0.3, 1.0, 3.0, 10.0, 30.0),
    {"covariance": 1.0, "variance": 10.0},
    posterior="gaussian",
  ),
  "dip2": Method(
    "dip2",
    (0.3, 1.0, 3.0, 10.0, 30.0),
    {"covariance": 1.0, "variance": 1.0},
    posterior="gaussian",
  ),
  "tcvae": Method(
    "tcvae",
    (1.0, 2.0, 4.0, 6.0, 10.0),
    {"total_correlation": 1.0},
    {"mutual_information": 1.0, "dimension_kl": 1.0},
    posterior="gaussian",
  ),
  "aae": Method("aae", (0.03, 0.1, 0.3, 1.0, 3.0), {"code_adversarial": 1.0}),
  "rae_l2": Method(
    "rae_l2",
    (0.01, 0.03, 0.1, 0.3, 1.0),
    {"code_norm": 1.0, "decoder_norm": 1e-3},
    sampler="gmm",
  ),
  "ae": Method("ae", (0.0,), {}, sampler="gmm"),
}
# Those of the figure over batch sizes.
BATCH_METHODS = (
  *("gamix_means", "gamix_debiased", "gamix_quadratic"),
  *("wae_mmd", "sigreg"),
)


def config_of(
  name: str,
  weight: float,
  network: str,
  source: str,
  size: int,
  *,
  batch: int,
  steps: int,
  images: int,
) -> ConfigDict:
  """Returns the complete config of a run.

  Args:
    name: of the method.
    weight: the tried value.
    network: "mlp", the fully connected network, or "resnet", the preset `base`.
    source: `data.source`.
    size: height and width of the grey images.
    batch: images of a step.
    steps: of the run.
    images: the number of training images.

  Raises:
    UserError: if a value is invalid.
  """
  if network not in NETWORKS:
    raise UserError(
      f"--network={network} must be one of {', '.join(NETWORKS)}."
    )
  method = METHODS[name]
  config = presets.ours(configs.base(), "small" if network == "mlp" else "base")
  config.adversarial.loss = "none"
  config.steps = steps
  config.data.update(
    source=source,
    image_size=size,
    channels=1,
    batch_size=batch,
    flip=False,
    cache="memory",
  )
  if network == "mlp":
    config.model.encoder = config.model.decoder = "mlp"
    config.model.encoder_features = config.model.decoder_features = MLP_WIDTHS
    config.model.latent = MLP_LATENT
  config.posterior.name = method.posterior
  objective = config.objective
  objective.name, objective.population = method.objective, method.population
  objective.reconstruction = "bernoulli"
  objective.tcvae.images = images
  for term, value in method.fixed.items():
    config.weights[term] = value
  for term, factor in method.terms.items():
    config.weights[term] = weight * factor
  return presets.complete(config)

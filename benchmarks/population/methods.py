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
from gamix_jax.likelihood import LIKELIHOODS
from gamix_jax.objectives import ADVERSARIAL
from gamix_jax.registry import check_choice

# The preset of each kind of network.
NETWORKS = {"mlp": "small", "conv": "small", "resnet": "base"}
# The network of the Cramer-Wold paper's experiments (arXiv:1805.09235).
MLP_WIDTHS, MLP_LATENT = (200, 200, 200), 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
  """What all methods have in common: images, networks and likelihood.

  Attributes:
    source: `data.source`.
    size: height and width of the images.
    channels: of the images.
    network: "mlp", the fully connected network of arXiv:1805.09235; "conv", the
      preset `small`; "resnet", the preset `base`.
    latent: number of latents; 0: those of the network.
    reconstruction: `objective.reconstruction`.
    adversarial: `adversarial.loss` of a PatchGAN discriminator, which starts
      after half of the steps, or "none".
  """

  source: str
  size: int
  network: str
  channels: int = 1
  latent: int = 0
  reconstruction: str = "bernoulli"
  adversarial: str = "none"

  def __post_init__(self) -> None:
    """Checks the names.

    Raises:
      UserError: if one is unknown.
    """
    check_choice("--network", self.network, NETWORKS)
    check_choice("--adversarial", self.adversarial, ADVERSARIAL)
    check_choice("--reconstruction", self.reconstruction, LIKELIHOODS)


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


def _gamix(population: str, collapse_penalty: float = 0.3) -> Method:
  return Method(
    "gamix",
    (1.0, 3.0, 10.0, 30.0, 100.0),
    {"population_kl": 1.0},
    {"collapse_penalty": collapse_penalty},
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
  # 0.03 of 0.3, 0.03 and 0.01, by the sums on MNIST's validation images.
  "gamix_kernel": _gamix("kernel", 0.03),
  # The weights of gamix_kernel's sweeps on MNIST, and a discriminator.
  "gamix_aae": Method(
    "gamix_aae",
    (0.1, 0.3, 1.0, 3.0, 10.0),
    {"code_adversarial": 1.0},
    {"population_kl": 10.0, "collapse_penalty": 0.03},
    posterior="gaussian",
    population="kernel",
  ),
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
  *("gamix_means", "gamix_debiased", "gamix_quadratic", "gamix_kernel"),
  *("wae_mmd", "sigreg"),
)


def config_of(
  name: str,
  weight: float,
  problem: Problem,
  *,
  batch: int,
  steps: int,
  images: int,
) -> ConfigDict:
  """Returns the complete config of a run.

  Args:
    name: of the method.
    weight: the tried value.
    problem: what all methods share.
    batch: images of a step.
    steps: of the run.
    images: the number of training images.

  Raises:
    UserError: if a value is invalid.
  """
  method = METHODS[name]
  config = presets.ours(configs.base(), NETWORKS[problem.network])
  config.adversarial.loss = problem.adversarial
  config.steps = steps
  config.data.update(
    source=problem.source,
    image_size=problem.size,
    channels=problem.channels,
    batch_size=batch,
    flip=False,
    cache="memory",
  )
  if problem.network == "mlp":
    config.model.encoder = config.model.decoder = "mlp"
    config.model.encoder_features = config.model.decoder_features = MLP_WIDTHS
    config.model.latent = MLP_LATENT
  if problem.latent:
    config.model.latent = problem.latent
  config.posterior.name = method.posterior
  objective = config.objective
  objective.name, objective.population = method.objective, method.population
  objective.reconstruction = problem.reconstruction
  objective.tcvae.images = images
  for term, value in method.fixed.items():
    config.weights[term] = value
  for term, factor in method.terms.items():
    config.weights[term] = weight * factor
  return presets.complete(config)

"""The objectives for comparison with gamix and elbo, for several tests."""

from gamix_jax import objectives

# objective: further flags of a run at the command line; the others have a
# deterministic encoder there.
RUNS = {
  "ae": (),
  "rae_l2": (),
  "wae_mmd": (),
  "cwae": (),
  "swae": (),
  "sigreg": (),
  "vicreg": (),
  "aae": ("--config.objective.aae.width=8",),
  "gamix_aae": (
    "--config.posterior.name=gaussian",
    "--config.objective.population=kernel",
    "--config.objective.aae.width=8",
  ),
  "dip1": ("--config.posterior.name=gaussian",),
  "dip2": (
    "--config.posterior.name=mixture",
    "--config.posterior.components=2",
  ),
  "tcvae": (
    "--config.posterior.name=gaussian",
    "--config.objective.tcvae.images=1000",
  ),
}

# term: an objective that has it
TERMS = {
  "mmd": "wae_mmd",
  "cramer_wold": "cwae",
  "sliced_wasserstein": "swae",
  "sigreg": "sigreg",
  "covariance": "dip2",
  "variance": "dip2",
  "mutual_information": "tcvae",
  "total_correlation": "tcvae",
  "dimension_kl": "tcvae",
  "code_norm": "rae_l2",
  "code_adversarial": "aae",
  "decoder_norm": "rae_l2",
}


def changes(name: str) -> dict:
  """What makes the config of a test one with this objective; each weight 1."""
  weights = dict.fromkeys(("population_kl", "collapse_penalty"))
  objective = objectives.OBJECTIVES[name]
  weights |= dict.fromkeys(objective.terms[1:], 1.0)
  weights |= dict.fromkeys(objective.of_discriminator, 1.0)
  return dict(
    objective__name=name,
    objective__tcvae__images=50,
    **{f"weights__{term}": weight for term, weight in weights.items()},
  )

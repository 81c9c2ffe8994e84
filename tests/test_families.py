"""Every family and objective trains on digits, in float32 and bfloat16."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import peer_cases
import pytest
from conftest import alone, jit, small
from sklearn.datasets import load_digits

from gamix_jax import build, objectives, step
from gamix_jax.posterior import POSTERIORS

MIXTURE = dict(posterior__name="mixture", posterior__components=2)
EPANECHNIKOV = dict(posterior__name="epanechnikov")
# name: (changes, weights of its terms other than `recon`)
FAMILIES = {
  "gaussian/gamix": ({}, dict(population_kl=1.0, collapse_penalty=1.0)),
  "gaussian/elbo": ({}, dict(kl=1.0)),
  "mixture/gamix": (
    MIXTURE | dict(posterior__mixture__min_weight=0.1),
    dict(population_kl=1.0, collapse_penalty=1.0),
  ),
  "mixture/gamix_mixture": (
    MIXTURE,
    dict(population_kl=1.0, collapse_penalty=1.0),
  ),
  "mixture/selbo": (MIXTURE, dict(kl=1.0)),
  "mixture/siwae": (MIXTURE | dict(objective__num_samples=2), dict(kl=1.0)),
  "epanechnikov/elbo": (EPANECHNIKOV, dict(kl=1.0)),
  "epanechnikov/evae": (
    EPANECHNIKOV | dict(posterior__epanechnikov__prior="uniform"),
    dict(kernel=1.0),
  ),
  "poisson/elbo": (
    dict(
      posterior__name="poisson",
      posterior__poisson__temperature_steps=250,
      posterior__poisson__max_log_rate=3.0,
    ),
    dict(kl=1.0),
  ),
  "delta/wae_mmd": (dict(posterior__name="delta"), dict(mmd=10.0)),
  "poisson/exact": (
    dict(
      posterior__name="poisson",
      posterior__poisson__bias=False,
      model__encoder="linear",
      model__decoder="linear",
    ),
    dict(kl=1.0),
  ),
}
STEPS, BATCH = 500, 16


def config_of(name, dtype):
  changes, terms = FAMILIES[name]
  if "model__encoder" not in changes:  # ResNet settings only
    changes = changes | dict(model__bottleneck_channels=4)
  weights = (
    dict.fromkeys(("population_kl", "collapse_penalty", "kl", "kernel")) | terms
  )
  return alone(
    functools.partial(small, **changes),
    dtype=dtype,
    data__batch_size=BATCH,
    model__encoder_features=(4,),
    model__decoder_features=(1,),
    model__latent=8,
    objective__name=name.split("/")[1],
    objective__reconstruction="l2",
    optim__vae__learning_rate=2e-3,
    optim__vae__b1=0.9,
    weights__recon=100.0,
    **{f"weights__{k}": v for k, v in weights.items()},
  )


def test_every_family_and_objective_is_here():
  pairs = [name.split("/") for name in FAMILIES]
  assert {p for p, _ in pairs} == set(POSTERIORS)
  # Those of several modalities: in test_multimodal. Those for comparison, of
  # which a few are here: in test_peers.
  several = {
    name
    for name, objective in objectives.OBJECTIVES.items()
    if objective.subsets
    or not any(objective.accepts(h.family) for h in POSTERIORS.values())
  }
  assert {o for _, o in pairs} == set(objectives.OBJECTIVES) - (
    several - {"evae"}
  ) - (peer_cases.RUNS.keys() - {"wae_mmd"})


@pytest.mark.parametrize(
  ("name", "dtype"),
  [
    (name, "float32")
    if dtype == "float32"
    else pytest.param(name, dtype, marks=pytest.mark.slow)
    for name in FAMILIES
    for dtype in ("float32", "bfloat16")
  ],
)
def test_trains_digits(name, dtype):
  """500 steps; the last ten losses are below three quarters of the first."""
  digits = load_digits().images.astype(np.float32)[..., None] / 8 - 1
  spec = build.train_spec(config_of(name, dtype))
  rows = np.random.default_rng(0).integers(len(digits), size=(STEPS, BATCH))

  @jit
  def train(digits, rows):
    def one(state, rows):
      state, metrics = step.train_step(spec, state, {"image": digits[rows]})
      return state, {k: v for k, v in metrics.items() if v.ndim == 0}

    return jax.lax.scan(one, step.init(spec), rows)

  state, metrics = train(jnp.asarray(digits), jnp.asarray(rows))
  for key, values in metrics.items():
    assert np.all(np.isfinite(values)), key
  assert int(state.nonfinite[0]) == 0
  loss = np.asarray(metrics["vae/loss"])
  assert loss[-10:].mean() < 0.75 * loss[:3].mean(), (loss[:3], loss[-10:])
  if dtype == "bfloat16":
    for leaf in jax.tree.leaves(state):
      assert leaf.dtype in (jnp.float32, jnp.int32)

"""Bounds of ln p(x) against sums over the latent, and chunking."""

from functools import partial

import conftest
import jax
import numpy as np
import pytest
import scipy.special
from conftest import alone, elbo, flat

from gamix_jax import build, inference
from gamix_jax.errors import UserError

CASES = {
  "gaussian, l2": dict(objective__reconstruction="l2"),
  "mixture, pseudo-inputs": dict(
    posterior__name="mixture",
    posterior__components=2,
    prior__name="vamp",
    prior__components=3,
  ),
  "epanechnikov": dict(posterior__name="epanechnikov"),
  "poisson": dict(posterior__name="poisson"),
}
pytestmark = pytest.mark.usefixtures("quick")
GRID = np.linspace(-12, 12, 3001, dtype="f4")[:, None]
COUNTS = np.arange(80, dtype="f4")[:, None]


def make(batch_size=1024, recon=12.0, **changes):
  """Returns an untrained model with one latent."""
  config = alone(partial(elbo, flat), **{"model__latent": 1, **changes})
  config.weights.recon = recon
  spec = build.train_spec(config)
  state = conftest.state_of(spec)
  params = dict(state.ema)
  # Posteriors near the prior, so that a few samples suffice for the weights.
  params["posterior"] = jax.tree.map(lambda v: 0.2 * v, params["posterior"])
  vae = {"params": params, "batch_stats": state.vae.batch_stats}
  return inference.Model(config, spec, 0, vae, {}, batch_size=batch_size)


@pytest.fixture(scope="module")
def images():
  rng = np.random.default_rng(0)
  return rng.uniform(-1, 1, (5, 4, 4, 1)).astype("f4")


def summed(model, images):
  """Computes each image's ln p(x) and ELBO by a sum over z, in float64.

  ln p(x) covers only the support of q, which may be bounded.
  """
  spec = model.spec
  discrete = model.config.posterior.name == "poisson"
  z = COUNTS if discrete else GRID
  dz = 1.0 if discrete else float(z[1, 0] - z[0, 0])
  x_hat = model.decode(z, raw=True)
  variables = model.variables["vae"]
  q = spec.vae.apply(
    variables,
    spec.vae.apply(variables, {"image": images}, method="encode"),
    method="with_prior",
  )
  z = np.repeat(z[:, None], len(images), 1)  # [s, b, 1]
  log_p, log_q = (
    np.asarray(f(z), np.float64) for f in (q.log_prior, q.log_prob)
  )
  likelihood = spec.image.log_prob(images, x_hat[:, None], 12.0)
  joint = np.asarray(likelihood, np.float64) + log_p
  mass = np.exp(log_q)
  assert np.allclose(mass.sum(0) * dz, 1, atol=2e-3)  # the sum covers q
  log_q = np.where(mass > 0, log_q, 0)
  reached = np.where(mass > 0, joint, -np.inf)
  elbo = np.sum(np.where(mass > 0, mass * (joint - log_q), 0), axis=0) * dz
  return scipy.special.logsumexp(reached, axis=0) + np.log(dz), elbo


@pytest.mark.parametrize("case", CASES)
def test_bounds_against_sums(case, images):
  model = make(**CASES[case])
  log_p, bound = summed(model, images)
  found = model.bounds(images, 2000, jax.random.key(1))
  np.testing.assert_allclose(found["iwae"], log_p, atol=0.1)
  np.testing.assert_allclose(found["elbo"], bound, atol=0.3)
  gap = log_p - bound
  assert (gap > -1e-3).all() and gap.max() > 0.3  # the two differ clearly


def test_probabilities_of_all_binary_images_sum_to_one():
  """With the weight of the ELBO, the number of pixels, and no other."""
  size = dict(data__image_size=(2, 3), objective__reconstruction="bernoulli")
  bits = np.stack(np.meshgrid(*[[-1, 1]] * 6), -1).reshape(-1, 2, 3, 1)
  total = {}
  for recon in (6.0, 3.0):
    model = make(recon=recon, **size)
    found = model.bounds(bits.astype("f4"), 2_000)["iwae"]
    total[recon] = np.exp(found).sum()
  assert abs(total[6.0] - 1) < 0.01, total
  assert total[3.0] > 2


def test_chunks_change_rounding_only(images):
  changes = CASES["mixture, pseudo-inputs"]
  one_chunk = make(batch_size=512, **changes).log_likelihood(images, 20)
  model = make(batch_size=7, **changes)  # 2 images, 1 sample, 2 components
  np.testing.assert_allclose(
    model.log_likelihood(images, 20), one_chunk, rtol=1e-5
  )
  np.testing.assert_allclose(
    model.elbo(images[0]), model.elbo(images)[:1], rtol=1e-5
  )
  other = model.elbo(images, key=jax.random.key(7))
  assert np.abs(other - model.elbo(images)).max() > 1e-3
  score = model.anomaly_score(images, "elbo")
  np.testing.assert_array_equal(score, -model.elbo(images))


def test_what_has_no_bound_is_refused(images):
  config = alone(flat, model__latent=1, posterior__name="epanechnikov")
  config.posterior.epanechnikov.prior = "uniform"
  config.objective.name = "evae"
  config.weights.update(population_kl=None, collapse_penalty=None, kernel=1.0)
  spec = build.train_spec(config)
  state = conftest.state_of(spec)
  vae = {"params": state.ema, "batch_stats": state.vae.batch_stats}
  model = inference.Model(config, spec, 0, vae, {})
  for call in (
    model.log_likelihood,
    model.elbo,
    lambda x: model.anomaly_score(x, "elbo"),
  ):
    with pytest.raises(UserError, match=r"'epanechnikov'.*no finite bound"):
      call(images)
  with pytest.raises(UserError, match="samples=0"):
    make().log_likelihood(images, 0)

"""The categorical likelihood against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from gamix_jax import config, modality
from gamix_jax.errors import UserError
from gamix_jax.likelihood import LIKELIHOODS
from gamix_jax.modality import Modality

CATEGORICAL = LIKELIHOODS["categorical"]


def draws(shape=(5, 7, 4), seed=0):
  """Returns one-hot x, and logits for three decodings of it."""
  rng = np.random.default_rng(seed)
  k = rng.integers(shape[-1], size=shape[:-1])
  x = np.eye(shape[-1], dtype=np.float32)[k]
  return k, x, rng.normal(0, 3, (3, *shape)).astype(np.float32)


@pytest.mark.parametrize("shape", [(5, 4), (5, 7, 4)])
def test_it_is_the_cross_entropy_at_its_default_weight(shape):
  k, x, logits = draws(shape)
  modality = Modality(shape[1:], CATEGORICAL, np.float32)
  weight = CATEGORICAL.default_weight(modality.size)
  got = modality.log_prob(jnp.asarray(x), jnp.asarray(logits), weight)
  p = scipy.special.softmax(logits.astype(np.float64), -1)
  each = scipy.stats.multinomial.logpmf(x, 1, p / p.sum(-1, keepdims=True))
  wanted = each.reshape(3, shape[0], -1).sum(-1)
  np.testing.assert_allclose(got, wanted, rtol=1e-5)
  chosen = np.take_along_axis(
    p, np.broadcast_to(k, (3, *k.shape))[..., None], -1
  )
  np.testing.assert_allclose(np.log(chosen[..., 0]), each, rtol=1e-9)
  # Another weight is a power of it.
  half = modality.log_prob(jnp.asarray(x), jnp.asarray(logits), weight / 2)
  np.testing.assert_allclose(half, wanted / 2, rtol=1e-5)


def test_the_gradient_is_softmax_minus_x():
  _, x, logits = draws()
  n = x[0].size

  def loss(logits):
    return n * jnp.mean(CATEGORICAL.error(x[0], logits))

  got = jax.grad(loss)(jnp.asarray(logits[0, 0]))
  p = scipy.special.softmax(logits[0, 0].astype(np.float64), -1)
  np.testing.assert_allclose(got, p - x[0], atol=1e-6)


def test_it_is_finite_far_out():
  logits = jnp.asarray([1e4, -1e4, 0.0])
  x = jnp.asarray([0.0, 1.0, 0.0])
  value, grad = jax.value_and_grad(lambda v: jnp.sum(CATEGORICAL.error(x, v)))(
    logits
  )
  assert value == 2e4
  np.testing.assert_allclose(grad, [1, -1, 0], atol=1e-6)


def test_its_mean_are_probabilities():
  _, _, logits = draws()
  np.testing.assert_allclose(
    CATEGORICAL.mean(jnp.asarray(logits)),
    scipy.special.softmax(logits, -1),
    atol=1e-6,
  )
  assert not CATEGORICAL.continuous


def test_it_says_what_it_is():
  assert CATEGORICAL.describe(10, 10.0) == (
    "categorical, one-hot or probabilities"
  )
  assert CATEGORICAL.describe(10, 5.0).endswith("to the power 0.5")


def test_images_have_no_classes():
  c = config.base()
  c.objective.reconstruction = "categorical"
  with pytest.raises(UserError, match="images have pixels"):
    modality.of_config(c)

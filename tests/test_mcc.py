"""The mean correlation coefficient, strong and weak, on known maps."""

import itertools

import numpy as np
import pytest

from gamix_jax.errors import UserError
from gamix_jax.metrics import mcc_strong, mcc_weak


def sources(n=2000, k=3, seed=0):
  rng = np.random.default_rng(seed)
  return rng.laplace(size=(n, k)) * [1.0, 5.0, 0.2][:k]


def test_permuted_and_scaled_sources_are_found():
  s = sources()
  z = s[:, [2, 0, 1]] * [-3, 0.1, 40] + [5, 0, -9]
  assert mcc_strong(s, z) == pytest.approx(1)
  assert mcc_weak(s, z) == pytest.approx(1)
  # A latent too many, which is constant, changes nothing.
  z = np.concatenate([np.full((len(z), 1), 7.3), z], 1)
  assert mcc_strong(s, z) == pytest.approx(1)
  assert mcc_weak(s, z) == pytest.approx(1)


def test_a_linear_map_is_found_by_the_weak_one_alone():
  s = sources() / [1.0, 5.0, 0.2]
  mix = np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]]) / np.sqrt([3, 2, 6])
  assert mcc_weak(s, s @ mix + 2) == pytest.approx(1)
  assert 0.5 < mcc_strong(s, s @ mix) < 0.9


def test_independent_noise_has_a_low_one():
  s, z = sources(), sources(seed=1)
  assert 0 <= mcc_weak(s, z) < 0.05
  assert 0 <= mcc_strong(s, z) < 0.06
  # Chance alone gives the strong one something, and more with more latents.
  many = np.random.default_rng(2).normal(size=(len(s), 50))
  assert mcc_strong(s, z) < mcc_strong(s, many) < 0.1


def test_strong_is_the_best_of_all_assignments():
  rng = np.random.default_rng(3)
  s = rng.normal(size=(50, 3))
  z = s @ rng.normal(size=(3, 4)) + rng.normal(size=(50, 4))
  r = np.abs(np.corrcoef(s.T, z.T)[:3, 3:])
  best = max(
    np.mean([r[i, j] for i, j in enumerate(chosen)])
    for chosen in itertools.permutations(range(4), 3)
  )
  assert mcc_strong(s, z) == pytest.approx(best, rel=1e-12)


def test_weak_is_judged_on_rows_that_it_was_not_fitted_on():
  """With as many latents as rows the fit is perfect and worthless."""
  rng = np.random.default_rng(4)
  s, z = rng.normal(size=(400, 2)), rng.normal(size=(400, 199))
  fitted = np.concatenate([z[::2], np.ones((200, 1))], 1)
  beta = np.linalg.lstsq(fitted, s[::2])[0]
  np.testing.assert_allclose(fitted @ beta, s[::2], atol=1e-6)
  assert mcc_weak(s, z) < 0.3


def test_a_constant_has_correlation_0():
  s = sources()
  for constant in (0.0, 0.1, 1e9):
    assert mcc_strong(s, np.full_like(s, constant)) == 0
    assert mcc_weak(s, np.full_like(s, constant)) == 0


@pytest.mark.parametrize(
  ("n", "k", "m", "d", "words"),
  [
    (5, 2, 4, 2, r"\(5, 2\) and \(4, 2\)"),
    (1, 2, 1, 2, "1 rows"),
    (9, 0, 9, 2, "needs sources"),
  ],
)
def test_shapes_that_do_not_fit(n, k, m, d, words):
  for function in (mcc_strong, mcc_weak):
    with pytest.raises(UserError, match=words):
      function(np.ones((n, k)), np.ones((m, d)))


def test_other_mistakes():
  s = sources()
  with pytest.raises(UserError, match="2 latents for 3 sources"):
    mcc_strong(s, s[:, :2])
  with pytest.raises(UserError, match="7 rows; it needs 8"):
    mcc_weak(s[:7], s[:7])
  bad = s.copy()
  bad[3, 1] = np.nan
  for function in (mcc_strong, mcc_weak):
    with pytest.raises(UserError, match="not finite"):
      function(s, bad)

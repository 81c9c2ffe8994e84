"""Optimizers against formulas written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import jit

from gamix_jax import optimizers
from gamix_jax.errors import UserError

SECTION = dict(
  name="keras_adam",
  learning_rate=0.1,
  b1=0.5,
  b2=0.9,
  eps=1e-2,
  clip=0.0,
  warmup=0,
  schedule="constant",
)


def path(steps=6, run=10, **changes):
  """Returns the parameter after each step, for gradients independent of it."""
  optimizer = optimizers.optimizer(run, **(SECTION | changes))
  params = {"a": jnp.asarray([1.0, -2.0]), "b": jnp.asarray(0.5)}
  state = optimizer.init(params)
  update = jit(optimizer.update)
  out = []
  for t in range(steps):
    updates, state = update(gradient(t), state, params)
    params = jax.tree.map(jnp.add, params, updates)
    out.append([*np.asarray(params["a"]), float(params["b"])])
  return np.array(out)


def gradient(t):
  a = jnp.asarray([np.sin(t) + 0.1, 1e-3 * (t + 1)], jnp.float32)
  return {"a": a, "b": jnp.asarray(np.cos(t), jnp.float32)}


def by_hand(steps=6, rate=lambda t: 0.1, keras=True, clip=None):
  p, m, v = np.array([1.0, -2.0, 0.5]), np.zeros(3), np.zeros(3)
  b1, b2, eps, out = 0.5, 0.9, 1e-2, []
  for t in range(steps):
    g = np.array([*np.asarray(gradient(t)["a"]), float(gradient(t)["b"])])
    if clip is not None:
      g = g * min(1, clip / np.linalg.norm(g))
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    c1, c2 = 1 - b1 ** (t + 1), 1 - b2 ** (t + 1)
    if keras:
      u = np.sqrt(c2) / c1 * m / (np.sqrt(v) + eps)
    else:
      u = (m / c1) / (np.sqrt(v / c2) + eps)
    p = p - rate(t) * u
    out.append(p)
  return np.array(out)


def test_keras_adam():
  np.testing.assert_allclose(path(), by_hand(), rtol=1e-5)
  # which differs from optax's in the first steps
  assert np.max(np.abs(path() - by_hand(keras=False))) > 1e-3


def test_adam():
  np.testing.assert_allclose(path(name="adam"), by_hand(keras=False), rtol=1e-5)


def test_clip():
  """By the norm of the complete gradient, if it is larger."""
  got = path(clip=0.7)
  np.testing.assert_allclose(got, by_hand(clip=0.7), rtol=1e-5)
  assert np.max(np.abs(got - by_hand())) > 1e-3
  np.testing.assert_allclose(path(clip=1e3), by_hand(), rtol=1e-5)


def test_warmup():
  """Linear from 0 to the rate, then constant."""
  rate = lambda t: 0.1 * min(t / 3, 1)  # noqa: E731
  np.testing.assert_allclose(path(warmup=3), by_hand(rate=rate), rtol=1e-5)


@pytest.mark.parametrize("warmup", [0, 2])
def test_cosine_ends_at_0_with_the_run(warmup):
  def rate(t):
    if t < warmup:
      return 0.1 * t / warmup
    share = (t - warmup) / (10 - warmup)
    return 0.05 * (1 + np.cos(np.pi * min(share, 1)))

  got = path(12, schedule="cosine", warmup=warmup)
  np.testing.assert_allclose(got, by_hand(12, rate=rate), rtol=1e-5)
  np.testing.assert_array_equal(got[10], got[11])


def test_unknown_names():
  with pytest.raises(UserError, match="adam, keras_adam"):
    path(name="sgd")
  with pytest.raises(UserError, match="constant, cosine"):
    path(schedule="linear")


@pytest.mark.parametrize("name", ["adam", "keras_adam"])
def test_a_step_can_be_skipped(name):
  """Moments, their count and the schedule's stay, to the bit, even for NaN."""
  section = SECTION | dict(name=name, warmup=3, clip=0.7)
  optimizer = optimizers.optimizer(10, **section)
  params = {"a": jnp.asarray([1.0, -2.0]), "b": jnp.asarray(0.5)}
  update = jit(lambda g, s, keep: optimizer.update(g, s, params, keep=keep))
  _, state = update(gradient(0), optimizer.init(params), True)
  skipped = update(
    jax.tree.map(lambda g: g * np.nan, gradient(1)), state, False
  )
  jax.tree.map(np.testing.assert_array_equal, skipped[1], state)
  updates, kept = update(gradient(1), state, True)
  plain = optimizer.update(gradient(1), state, params)
  for got, want in zip(
    jax.tree.leaves((updates, kept)), jax.tree.leaves(plain), strict=True
  ):
    np.testing.assert_allclose(got, want, rtol=1e-6)
  assert int(jax.tree.leaves(kept)[0]) == 2


def test_a_step_needs_no_copy_of_the_moments():
  """A choice between states after the update needs one, on a CPU."""
  optimizer = optimizers.optimizer(10, **SECTION)
  params = jnp.ones((256, 256))
  state = optimizer.init(params)

  def step(params, state, grads, keep):
    updates, state = optimizer.update(grads, state, params, keep=keep)
    return jnp.where(keep, params + updates, params), state

  compiled = (
    jax.jit(step, donate_argnums=(0, 1))
    .lower(params, state, params, True)
    .compile()
  )
  assert compiled.memory_analysis().temp_size_in_bytes < params.nbytes

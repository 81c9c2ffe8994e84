"""The second stage of the two-stage VAE: a small VAE of the codes.

    p(u) = N(0, I),  p(z | u) = N(g(u), gamma I),  q(u | z) = N(m(z), diag s(z))

Its draws of z are close to the population q(z), on which the decoder was
trained, where draws of the prior may not be (Dai & Wipf, arXiv:1903.05789,
section 4). As there, u has as many numbers as z, gamma is learned, and both
networks see their input again before their last layer. Codes are standardised
first.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float

from gamix_jax.posterior import Gaussian, Posterior

WIDTH, LAYERS = 256, 2
STEPS, BATCH = 5_000, 128
LEARNING_RATE = 1e-3  # falls to 0 as a cosine
# A step moves it by the learning rate at most, and at gamma = 1 the VAE gains
# little by using u.
INITIAL_LOG_GAMMA = -2.0


class SecondStage(nn.Module):
  """The VAE of standardised codes [b, d].

  Attributes:
    latent: d, of z and of u.
    width: of the hidden layers.
  """

  latent: int
  width: int = WIDTH

  def setup(self) -> None:
    self.encoder = _Network(2 * self.latent, self.width)
    self.decoder = _Network(self.latent, self.width)
    start = nn.initializers.constant(INITIAL_LOG_GAMMA)
    self.log_gamma = self.param("log_gamma", start, ())

  def __call__(self, z: Float[Array, "b d"], key: jax.Array) -> jax.Array:
    """Minus the ELBO in nats a code, the mean over the batch; []."""
    q = Gaussian(*jnp.split(self.encoder(z), 2, axis=-1))
    u, w = q.sample(key, 1)
    square = jnp.square(z - self.decoder(u[0])) * jnp.exp(-self.log_gamma)
    error = 0.5 * jnp.sum(square + self.log_gamma + jnp.log(2 * jnp.pi), -1)
    return jnp.mean(error + q.kl_divergence(u, w))

  def draw(
    self, key: jax.Array, n: int, temperature: float
  ) -> Float[Array, "n d"]:
    """Draws z; the temperature scales the noise of u and that of z."""
    of_u, of_z = (
      jax.random.normal(k, (n, self.latent)) for k in jax.random.split(key)
    )
    noise = jnp.exp(self.log_gamma / 2) * of_z
    return self.decoder(temperature * of_u) + temperature * noise


class _Network(nn.Module):
  """Hidden layers, and a linear map of their output beside their input."""

  outputs: int
  width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    h = x
    for i in range(LAYERS):
      h = nn.relu(nn.Dense(self.width, name=f"dense{i}")(h))
    return nn.Dense(self.outputs, name="out")(jnp.concatenate([h, x], axis=-1))


class Fitted(NamedTuple):
  """A trained second stage.

  Attributes:
    params: of `SecondStage`.
    mean: of the codes, [d].
    scale: their standard deviations, [d].
  """

  params: Any
  mean: Float[np.ndarray, " d"]
  scale: Float[np.ndarray, " d"]


def fit(
  draw: Callable[[Posterior, jax.Array], jax.Array],
  population: Posterior,
  key: jax.Array,
  codes: Float[np.ndarray, "n d"],
  steps: int,
) -> Fitted:
  """Trains a second stage with Adam.

  Args:
    draw: (population, key) -> codes [BATCH, d], new draws of the population.
    population: the posteriors of training images.
    key: of the initial weights and of all draws; the same key gives the same
      weights on the same machine.
    codes: some draws, whose mean and scale standardise all.
    steps: number of steps.
  """
  mean, scale = codes.mean(axis=0), codes.std(axis=0)
  scale = np.maximum(scale, 1e-6)  # of a latent that no image uses
  model = SecondStage(codes.shape[1])
  init_key, key = jax.random.split(key)
  params = model.init(init_key, jnp.asarray(codes[:1]), key)
  optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))

  def step(population, carry, key):
    params, state = carry
    of_codes, of_noise = jax.random.split(key)
    z = (draw(population, of_codes) - mean[None]) / scale[None]
    grads = jax.grad(model.apply)(params, z, of_noise)
    updates, state = optimizer.update(grads, state)
    return (optax.apply_updates(params, updates), state), None

  @jax.jit
  def train(params, population, keys):
    start = params, optimizer.init(params)
    (params, _), _ = jax.lax.scan(partial(step, population), start, keys)
    return params

  params = train(params, population, jax.random.split(key, steps))
  return Fitted(jax.tree.map(np.asarray, params["params"]), mean, scale)


def draw(
  fitted: Fitted, key: jax.Array, n: int, temperature: float = 1.0
) -> Float[np.ndarray, "n d"]:
  """Draws new codes [n, d]."""
  model = SecondStage(len(fitted.mean), _width(fitted.params))
  z = _draw(model, fitted.params, key, temperature, n=n)
  return np.asarray(z) * fitted.scale + fitted.mean


@partial(jax.jit, static_argnames=("model", "n"))
def _draw(model, params, key, temperature, *, n):
  return model.apply({"params": params}, key, n, temperature, method="draw")


def _width(params: Any) -> int:
  return len(params["encoder"]["dense0"]["bias"])

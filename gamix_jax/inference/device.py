"""The networks on this process's devices, a chunk of rows at a time."""

from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from gamix_jax.errors import UserError
from gamix_jax.modality import IMAGE, to_float
from gamix_jax.parallel import mesh
from gamix_jax.posterior import Mixture, Posterior
from gamix_jax.posterior.prior import WithPrior
from gamix_jax.step import TrainSpec

# Pixels on the devices at a time, unless told otherwise. A layer of 128
# features is then half a GB.
PIXELS = 2**20
MAX_BATCH = 256
PATIENCE = 3  # seconds until a bar is shown, on a terminal


class Runner:
  """Functions of arrays that were checked; rows are spread over the devices.

  Attributes:
    spec: the networks, see `step.TrainSpec`.
    batch_size: rows at a time, on all devices together.
    vae: "params" and "batch_stats", whole on every device.
    disc: the discriminator's.
    encoder: (vae, x [b, h, w, c]) -> Posterior, compiled.
  """

  def __init__(
    self, spec: TrainSpec, vae: dict, disc: dict, batch_size: int | None
  ) -> None:
    """Raises UserError if `batch_size` is under 1; None chooses it."""
    if batch_size is None:
      batch_size = default_batch_size(spec.image.shape)
    if batch_size < 1:
      raise UserError(f"batch_size={batch_size} must be 1 or more.")
    self.spec, self.batch_size = spec, batch_size
    self._mesh = mesh.local()
    everywhere = mesh.replicated(self._mesh)
    self.vae, self.disc = jax.device_put((vae, disc), everywhere)
    # The weights are arguments, so that they are not compiled in as constants.
    self.encoder = jax.jit(partial(_encode, spec))
    self._decode = jax.jit(partial(_decode, spec), static_argnames="raw")
    self._logits = jax.jit(partial(_logits, spec), static_argnames="raw")
    self._prior = jax.jit(partial(spec.vae.apply, method="learned_prior"))
    self._prior_draws = jax.jit(
      partial(_prior_draws, spec), static_argnames="n"
    )

  def encode(self, x: np.ndarray) -> Posterior:
    """Images [b, h, w, c] -> q(z | x) of NumPy arrays."""
    return self.by_chunks(partial(self.encoder, self.vae), x)

  def decode(self, z: np.ndarray, *, raw: bool) -> np.ndarray:
    """Latents [b, d] -> [b, h, w, c], images unless `raw`."""
    return self.by_chunks(partial(self._decode, self.vae, raw=raw), z)

  def logits(self, x: np.ndarray, *, raw: bool) -> np.ndarray:
    """Images [b, h, w, c] -> [b, p, q, 1]."""
    return self.by_chunks(partial(self._logits, self.disc, raw=raw), x)

  def prior(self) -> Mixture | None:
    """The learned prior; None: the family's own."""
    return None if self.spec.vae.prior is None else self._prior(self.vae)

  def with_prior(self, q: Posterior) -> Posterior:
    """q beside the model's prior: `log_prior` and `kl` are of that one."""
    prior = self.prior()
    return q if prior is None else WithPrior(q, prior)

  def prior_draws(self, key: jax.Array, n: int, temperature: float):
    """z [n, d] of the prior."""
    return self._prior_draws(self.vae, key, n=n, temperature=temperature)

  def by_chunks(
    self, function: Callable, *arrays: np.ndarray, at_most: int | None = None
  ) -> Any:
    """function(*arrays), `batch_size` rows at a time; NumPy arrays.

    The last chunk is filled up, so that all are compiled as one; a few rows
    alone are filled up to a power of two only, for a single image is not to
    cost a whole chunk. Every device gets as many rows as the others.

    Args:
      function: of a chunk of each array; its outputs have as many rows.
      *arrays: of equally many rows.
      at_most: rows at a time; `batch_size` if left out.
    """
    n, devices = len(arrays[0]), self._mesh.size
    size = min(at_most or self.batch_size, at_least(n))
    size = -(-size // devices) * devices
    done = []
    chunks = range(0, n, size)
    for start in tqdm.tqdm(chunks, delay=PATIENCE, disable=None, leave=False):
      kept = slice(min(size, n - start))
      rows = [self._put(a[start : start + size], size) for a in arrays]
      out = jax.device_get(function(*rows))
      done.append(jax.tree.map(itemgetter(kept), out))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *done)

  def _put(self, rows: np.ndarray, size: int) -> jax.Array:
    missing = [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1)
    return jax.device_put(
      np.pad(rows, missing), mesh.batch_sharding(self._mesh)
    )


def default_batch_size(image_shape: tuple[int, int, int]) -> int:
  """Images (h, w, c) on the devices at a time, unless told otherwise."""
  height, width, _ = image_shape
  return min(max(1, PIXELS // (height * width)), MAX_BATCH)


def at_least(n: int) -> int:
  """The power of two from n on."""
  return 1 << (n - 1).bit_length()


def _encode(spec: TrainSpec, vae: dict, x: jax.Array) -> Posterior:
  x = {IMAGE: to_float(x, spec.dtype)}
  return spec.vae.apply(vae, x, method="encode")


def _decode(
  spec: TrainSpec, vae: dict, z: jax.Array, *, raw: bool
) -> jax.Array:
  x_hat = spec.vae.apply(vae, z, method="decode")[IMAGE]
  return x_hat if raw else jnp.clip(_image(spec, x_hat), -1, 1)


def _logits(
  spec: TrainSpec, disc: dict, x: jax.Array, *, raw: bool
) -> jax.Array:
  x = to_float(x, spec.dtype)
  return spec.disc.apply(disc, _image(spec, x) if raw else x)


def _prior_draws(
  spec: TrainSpec, vae: dict, key: jax.Array, *, n: int, temperature: float
) -> jax.Array:
  return spec.vae.apply(vae, key, n, temperature, method="prior_draws")


def _image(spec: TrainSpec, x_hat: jax.Array) -> jax.Array:
  return spec.image.likelihood.mean(x_hat)

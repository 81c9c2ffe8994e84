"""Runs the networks on this process's devices, in chunks of rows."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import numpy as np
import tqdm

from gamix_jax.errors import UserError
from gamix_jax.modality import Modalities, to_float
from gamix_jax.parallel import mesh
from gamix_jax.posterior import Mixture, Posterior
from gamix_jax.posterior.prior import WithPrior
from gamix_jax.step import TrainSpec

Rows = Any  # arrays of equally many rows: one, or a dict by modality

# Default number of pixels on the devices at a time: a layer of 128 features
# then takes half a GB.
CHUNK_PIXELS = 2**20
MAX_BATCH = 256
PROGRESS_DELAY = 3  # seconds until a terminal shows a progress bar


class Runner:
  """Compiled functions of validated arrays, sharded by rows over the devices.

  Attributes:
    spec: the networks, see `step.TrainSpec`.
    batch_size: rows per chunk, over all devices.
    vae: "params" and "batch_stats", replicated on every device.
    disc: the same for the discriminator.
    encoder: (vae, observations by modality) -> Posterior, compiled.
  """

  def __init__(
    self, spec: TrainSpec, vae: dict, disc: dict, batch_size: int | None
  ) -> None:
    """Raises UserError if `batch_size` < 1; None uses the default."""
    if batch_size is None:
      batch_size = default_batch_size(spec.modalities)
    if batch_size < 1:
      raise UserError(f"batch_size={batch_size} must be 1 or more.")
    self.spec, self.batch_size = spec, batch_size
    self._mesh = mesh.local()
    everywhere = mesh.replicated(self._mesh)
    self.vae, self.disc = jax.device_put((vae, disc), everywhere)
    # The weights are arguments, so that they are not compiled in as constants.
    self.encoder = jax.jit(partial(_encode, spec))
    self._decode = jax.jit(
      partial(_decode, spec), static_argnames=("names", "raw")
    )
    self._logits = jax.jit(partial(_logits, spec), static_argnames="raw")
    self._prior = jax.jit(partial(spec.vae.apply, method="learned_prior"))
    self._prior_draws = jax.jit(
      partial(_prior_draws, spec), static_argnames="n"
    )

  def encode(self, x: Mapping[str, np.ndarray]) -> Posterior:
    """Observations [b, ...] by modality -> q(z | x) as NumPy arrays.

    Of several modalities with the entry "mask".
    """
    return self.by_chunks(partial(self.encoder, self.vae), dict(x))

  def decode(
    self, z: np.ndarray, names: Sequence[str], *, raw: bool
  ) -> dict[str, np.ndarray]:
    """Latents [b, d] -> means [b, ...] of these modalities.

    Images are clipped to [-1, 1]; if `raw`, it is the decoders' outputs.
    """
    decode = partial(self._decode, self.vae, names=tuple(names), raw=raw)
    return self.by_chunks(decode, z)

  def logits(self, x: np.ndarray, *, raw: bool) -> np.ndarray:
    """Images [b, h, w, c] -> discriminator logits [b, p, q, 1]."""
    return self.by_chunks(partial(self._logits, self.disc, raw=raw), x)

  def prior(self) -> Mixture | None:
    """Returns the learned prior, or None if the family's own prior is used."""
    return None if self.spec.vae.prior is None else self._prior(self.vae)

  def with_prior(self, q: Posterior) -> Posterior:
    """Returns q with `log_prior` and KL taken to the model's prior."""
    prior = self.prior()
    return q if prior is None else WithPrior(q, prior)

  def prior_draws(self, key: jax.Array, n: int, temperature: float):
    """Draws z [n, d] from the prior."""
    return self._prior_draws(self.vae, key, n=n, temperature=temperature)

  def by_chunks(
    self, function: Callable, *arrays: Rows, at_most: int | None = None
  ) -> Any:
    """Computes function(*arrays) in chunks of rows; returns NumPy arrays.

    The last chunk is padded, so that all chunks share one compilation. Inputs
    of fewer rows than a chunk are padded to the next power of two only, so that
    a single image does not cost a full chunk. All devices get equally many
    rows.

    Args:
      function: takes a chunk of each array and returns as many rows.
      *arrays: arrays, or dicts of arrays, with equally many rows.
      at_most: rows per chunk; default `batch_size`.
    """
    n, devices = len(jax.tree.leaves(arrays)[0]), self._mesh.size
    size = min(at_most or self.batch_size, at_least(n))
    size = -(-size // devices) * devices
    outputs = []
    chunks = range(0, n, size)
    for start in tqdm.tqdm(
      chunks, delay=PROGRESS_DELAY, disable=None, leave=False
    ):
      kept = slice(min(size, n - start))
      rows = slice(start, start + size)
      put = jax.tree.map(lambda a, r=rows: self._put(a[r], size), arrays)
      out = jax.device_get(function(*put))
      outputs.append(jax.tree.map(itemgetter(kept), out))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)

  def _put(self, rows: np.ndarray, size: int) -> jax.Array:
    missing = [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1)
    return jax.device_put(
      np.pad(rows, missing), mesh.batch_sharding(self._mesh)
    )


def default_batch_size(modalities: Modalities) -> int:
  """Returns the default chunk size for observations of these modalities."""
  images = [m.shape for m in modalities.values() if m.is_image]
  pixels = sum(height * width for height, width, _ in images)
  return min(max(1, CHUNK_PIXELS // max(pixels, 1)), MAX_BATCH)


def at_least(n: int) -> int:
  """Returns the smallest power of two that is >= n."""
  return 1 << (n - 1).bit_length()


def _encode(spec: TrainSpec, vae: dict, x: dict[str, jax.Array]) -> Posterior:
  return spec.vae.apply(vae, spec.observations(x), method="encode")


def _decode(
  spec: TrainSpec,
  vae: dict,
  z: jax.Array,
  *,
  names: tuple[str, ...],
  raw: bool,
) -> dict[str, jax.Array]:
  # The decoders of other modalities are dropped by XLA.
  x_hat = spec.vae.apply(vae, z, method="decode")
  return {
    k: x_hat[k] if raw else spec.modalities[k].shown(x_hat[k]) for k in names
  }


def _logits(
  spec: TrainSpec, disc: dict, x: jax.Array, *, raw: bool
) -> jax.Array:
  x = to_float(x, spec.dtype)
  return spec.disc.apply(disc, spec.image.likelihood.mean(x) if raw else x)


def _prior_draws(
  spec: TrainSpec, vae: dict, key: jax.Array, *, n: int, temperature: float
) -> jax.Array:
  return spec.vae.apply(vae, key, n, temperature, method="prior_draws")

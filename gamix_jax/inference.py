"""A trained model, as notebooks and the other commands use it.

    model = gamix_jax.load("runs/digits")
    q = model.encode(images)                    # the posterior q(z | x)
    pictures = model.decode(q.mean())
    pictures = model.sample(jax.random.key(0), 16)

Images go in as uint8 or as floats in [-1, 1], [b, h, w, c] or one [h, w, c], of
numpy or of JAX; they come out as numpy, float32 in [-1, 1]. Whatever the number
of images, the device holds `batch_size` of them at a time.
"""

import os
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gamix_jax import build, objective
from gamix_jax.checkpoint import Checkpoints
from gamix_jax.config import ConfigDict, from_json, image_shape
from gamix_jax.errors import UserError
from gamix_jax.posterior import Posterior
from gamix_jax.step import Recipe, init, pixels

WHICH = ("ema", "raw")
# A float image may pass [-1, 1] by this, an eighth of a grey level: rounding.
SLACK = 1e-3
# Pixels on the device at a time, unless told otherwise. A layer of 128 features
# is then half a GB.
PIXELS = 2**20
MAX_BATCH = 256


def load(
  workdir: str | os.PathLike[str],
  which: str = "ema",
  step: int | None = None,
  *,
  batch_size: int | None = None,
) -> "Model":
  """Opens the model that a run has come to.

  Only weights are read, not the optimisers' arrays, onto this process's first
  device, whatever devices the run had.

  Args:
    workdir: the run's.
    which: "ema", the average over the steps, or "raw", the last step's.
    step: that checkpoint's; the newest whole one if left out.
    batch_size: images on the device at a time; chosen by their size if left
      out.

  Raises:
    UserError: no run there, no checkpoint or none that is whole or of that
      step, a run of a later version of this program, `which` or `batch_size`
      is none.
  """
  if which not in WHICH:
    raise UserError(f"which={which!r} is none of {', '.join(WHICH)}.")
  path = Path(os.path.expanduser(workdir))
  config = _saved_config(path)
  recipe = build.recipe(config)
  state = jax.eval_shape(partial(init, recipe))
  part = {
    "vae": {"batch_stats": state.vae.batch_stats},
    "disc": {
      "params": state.disc.params,
      "batch_stats": state.disc.batch_stats,
    },
  }
  if which == "ema":
    part["ema"] = state.ema
  else:
    part["vae"]["params"] = state.vae.params
  found = Checkpoints(path / "checkpoints", keep=1).restore_part(part, step)
  if found is None:
    raise UserError(
      f"{path} holds no checkpoint yet; the run saves its first at step "
      f"{min(config.checkpoint.every, config.steps)}."
    )
  step, part = found
  vae = part.pop("vae")
  if which == "ema":
    vae["params"] = part["ema"]
  return Model(config, recipe, step, vae, part["disc"], batch_size=batch_size)


def _saved_config(path: Path) -> ConfigDict:
  """The config of the run in a folder.

  Raises:
    UserError: there is none.
  """
  if not path.is_dir():
    raise UserError(f"{path} is no folder; give the workdir of a run.")
  saved = path / "config.json"
  if not saved.is_file():
    raise UserError(
      f"{path} holds no config.json, so it is not the workdir of a run."
    )
  return from_json(saved.read_text(), str(saved))


class Model:
  """A trained model; `load` makes it.

  Attributes:
    config: the run's, every key.
    recipe: its networks, see `step.Recipe`.
    step: the steps it was trained.
    batch_size: images on the device at a time.
  """

  def __init__(
    self,
    config: ConfigDict,
    recipe: Recipe,
    step: int,
    vae: dict[str, Any],
    disc: dict[str, Any],
    *,
    batch_size: int | None = None,
  ) -> None:
    """Of arrays that are at hand.

    Args:
      config: see the attributes.
      recipe: see the attributes.
      step: see the attributes.
      vae: its "params" and "batch_stats".
      disc: the discriminator's; empty where there is none.
      batch_size: see `load`.

    Raises:
      UserError: `batch_size` is under 1.
    """
    height, width, _ = image_shape(config)
    if batch_size is None:
      batch_size = min(max(1, PIXELS // (height * width)), MAX_BATCH)
    if batch_size < 1:
      raise UserError(f"batch_size={batch_size} has to be 1 or more.")
    self.config, self.recipe, self.step = config, recipe, step
    self.batch_size = batch_size
    self._vae, self._disc = vae, disc
    # The weights are arguments, so that they are not compiled in as constants.
    self._encode = jax.jit(partial(_encode, recipe))
    self._decode = jax.jit(partial(_decode, recipe), static_argnames="raw")
    self._logits = jax.jit(partial(_logits, recipe), static_argnames="raw")

  def encode(self, x: ArrayLike) -> Posterior:
    """q(z | x) of images.

    Args:
      x: [b, h, w, c] or one [h, w, c]; uint8 or floats in [-1, 1].

    Returns:
      The posterior of b images, of one with b = 1: a pytree of JAX arrays with
      `mean()`, `draws(key, n)`, `log_prob(z)`, ..., see `posterior.base`.

    Raises:
      UserError: another shape, type or range, a number that is not finite.
    """
    x = self._images(x)
    x = x.reshape(-1, *self.recipe.image_shape)
    q = self._in_chunks(partial(self._encode, self._vae), x)
    return jax.tree.map(jnp.asarray, q)

  def decode(self, z: ArrayLike, *, raw: bool = False) -> np.ndarray:
    """Images of latents.

    Args:
      z: [..., d].
      raw: the decoder's output as it is, which nothing bounds (and which is
        logits if `objective.reconstruction` is "bernoulli").

    Returns:
      [..., h, w, c], clipped to [-1, 1] unless `raw`.

    Raises:
      UserError: another shape, a number that is not finite.
    """
    z, latent = np.asarray(z), self.config.model.latent
    if z.shape[-1:] != (latent,) or not z.size:
      raise UserError(
        f"Latents of shape {z.shape} were given; wanted is [..., {latent}]."
      )
    z = self._floats(z, "Latents")
    x_hat = self._in_chunks(
      partial(self._decode, self._vae, raw=raw), z.reshape(-1, latent)
    )
    return x_hat.reshape(*z.shape[:-1], *x_hat.shape[1:])

  def discriminate(self, x: ArrayLike, *, raw: bool = False) -> np.ndarray:
    """The discriminator's logits of patches: over 0, it takes them for real.

    Args:
      x: [b, h, w, c] or one [h, w, c]; uint8 or floats in [-1, 1].
      raw: x is what `decode(z, raw=True)` gave, of any range: what the
        discriminator was trained on.

    Returns:
      [b, p, q, 1], of one image [p, q, 1].

    Raises:
      UserError: another shape, type or range; the run had no discriminator.
    """
    if self.recipe.disc is None:
      raise UserError(
        "This model was trained without a discriminator "
        "(adversarial.loss='none')."
      )
    x = self._images(x, bounded=not raw)
    logits = self._in_chunks(
      partial(self._logits, self._disc, raw=raw),
      x.reshape(-1, *self.recipe.image_shape),
    )
    return logits.reshape(*x.shape[:-3], *logits.shape[1:])

  def reconstruct(self, x: ArrayLike) -> np.ndarray:
    """Images encoded, and the means of their posteriors decoded.

    Args:
      x: [b, h, w, c] or one [h, w, c]; uint8 or floats in [-1, 1].

    Returns:
      Of x's shape, in [-1, 1].

    Raises:
      UserError: as `encode`.
    """
    return self.decode(self.encode(x).mean()).reshape(np.shape(x))

  def sample(
    self, key: jax.Array, n: int, *, temperature: float = 1.0
  ) -> np.ndarray:
    """New images: z from the prior (mostly N(0, I)), decoded.

    Args:
      key: of `jax.random.key`; the same key gives the same images.
      n: how many.
      temperature: of the prior's standard deviation; under 1 nearer the mean.

    Returns:
      [n, h, w, c] in [-1, 1].

    Raises:
      UserError: n is under 1, or the temperature negative.
    """
    if n < 1 or not 0 <= temperature < np.inf:
      raise UserError(
        f"n={n} has to be 1 or more, temperature={temperature} 0 or more."
      )
    z = self.recipe.vae.apply(
      self._vae, key, n, temperature, method="prior_draws"
    )
    return self.decode(z)

  def interpolate(self, x0: ArrayLike, x1: ArrayLike, steps: int) -> np.ndarray:
    """The way from one image to another, straight between their means.

    Args:
      x0: one image, [h, w, c].
      x1: another.
      steps: how many pictures, the reconstructions of both among them.

    Returns:
      [steps, h, w, c] in [-1, 1].

    Raises:
      UserError: as `encode`; several images; steps under 2.
    """
    ends = [self.encode(x).mean() for x in (x0, x1)]
    if len(ends[0]) != 1 or len(ends[1]) != 1:
      raise UserError(
        f"interpolate goes from one image to another; given were "
        f"{len(ends[0])} and {len(ends[1])}."
      )
    if steps < 2:
      raise UserError(f"steps={steps} has to be 2 or more, for both ends.")
    return self.decode(np.linspace(ends[0][0], ends[1][0], steps))

  # --- what comes in -------------------------------------------------------

  def _images(self, x: ArrayLike, *, bounded: bool = True) -> np.ndarray:
    """Checked images, [b, h, w, c] or [h, w, c], uint8 or this run's float."""
    x, shape = np.asarray(x), self.recipe.image_shape
    if x.shape[-3:] != shape or x.ndim not in (3, 4) or not x.size:
      size = ", ".join(map(str, shape))
      raise UserError(
        f"Images of shape {x.shape} were given; wanted are [b, {size}] or "
        f"[{size}]."
      )
    if x.dtype == np.uint8 and bounded:
      return x
    x = self._floats(x, "Images")
    if bounded and np.abs(x).max() > 1 + SLACK:
      raise UserError(
        f"Images from {x.min():.4g} to {x.max():.4g} were given; wanted are "
        "floats in [-1, 1] (x / 127.5 - 1 if they go to 255) or uint8."
      )
    return x

  def _floats(self, values: np.ndarray, what: str) -> np.ndarray:
    """Floats of this run's precision.

    Raises:
      UserError: they are none, or not finite.
    """
    if not jnp.issubdtype(values.dtype, jnp.floating):
      also = " in [-1, 1], or uint8 from 0 to 255" if what == "Images" else ""
      raise UserError(
        f"{what} of type {values.dtype} were given; wanted are floats{also}."
      )
    bad = values.size - np.isfinite(values).sum()
    if bad:
      raise UserError(
        f"{what} with {bad} of {values.size} numbers not finite were given."
      )
    return values.astype(self.recipe.dtype)

  # --- on the device -------------------------------------------------------

  def _in_chunks(self, function: Callable, rows: np.ndarray) -> Any:
    """function(rows), `batch_size` rows at a time; numpy arrays.

    The last chunk is filled up, so that all are compiled as one; a few rows
    alone are filled up to a power of two only, for a single image is not to
    cost a whole chunk.
    """
    n = len(rows)
    size = min(self.batch_size, 1 << (n - 1).bit_length())
    done = []
    for start in range(0, n, size):
      chunk = rows[start : start + size]
      missing = [(0, size - len(chunk))] + [(0, 0)] * (rows.ndim - 1)
      out = jax.device_get(function(np.pad(chunk, missing)))
      kept = slice(len(chunk))
      done.append(jax.tree.map(itemgetter(kept), out))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *done)


def _encode(recipe: Recipe, vae: dict, x: jax.Array) -> Posterior:
  return recipe.vae.apply(vae, pixels(x, recipe.dtype), method="encode")


def _decode(recipe: Recipe, vae: dict, z: jax.Array, *, raw: bool) -> jax.Array:
  x_hat = recipe.vae.apply(vae, z, method="decode")
  return x_hat if raw else jnp.clip(_image(recipe, x_hat), -1, 1)


def _logits(
  recipe: Recipe, disc: dict, x: jax.Array, *, raw: bool
) -> jax.Array:
  x = pixels(x, recipe.dtype)
  return recipe.disc.apply(disc, _image(recipe, x) if raw else x)


def _image(recipe: Recipe, x_hat: jax.Array) -> jax.Array:
  return objective.to_image(x_hat, recipe.reconstruction)

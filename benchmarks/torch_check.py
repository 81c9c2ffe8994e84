"""Checks that the PyTorch baseline computes the same results.

Uses the same weights (none at its initial zero or one), the same images and the
same eps. In float64: in float32, a ReLU input that is zero up to rounding may
have either sign, and a deep network's gradients then differ by up to 1e-2
(observed: 5e-3 of their norm) without any error.
"""

import functools
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import images, torch_weights
from benchmarks.torch_baseline import Options, Twin, flat
from gamix_jax import build, step
from gamix_jax.config import ConfigDict, from_json, to_json

# Relative to an array's largest value. Keras rounds Adam's decays to float32,
# so updates differ by 1e-5.
LIMITS = {"terms": 1e-6, "gradients": 1e-6, "update1": 1e-4, "update3": 1e-4}
STEPS = 3
BATCH = 4  # at most: this is a check, not a timing


class MismatchError(Exception):
  """The baseline computes something else, so there is nothing to time."""


def shaken(tree: Any, seed: int) -> Any:
  """Adds noise to weights and statistics; keeps positive ones positive."""
  rng = np.random.default_rng(seed)

  def leaf(path, v):
    noise = rng.normal(size=v.shape)
    name = path[-1].key
    if name in ("scale", "var"):
      return v * (1 + 0.2 * np.tanh(noise))
    return v + 0.05 * noise if v.ndim < 2 else v * (1 + 0.1 * noise)

  return jax.tree_util.tree_map_with_path(leaf, tree)


def noise_shape(config: ConfigDict) -> tuple[int, int, int, int]:
  """Returns the shape of eps, [n, b, k, d]."""
  return (
    config.objective.num_samples,
    config.data.batch_size,
    config.posterior.components,
    config.model.latent,
  )


def worst(got: dict, wanted: dict, share: float = 1e-6) -> tuple[float, str]:
  """Returns the largest difference of an array relative to its largest value.

  An array that consists of rounding errors is compared to `share` times the
  largest value of all arrays. Adam's first updates all have the same size, and
  those of rounding errors are arbitrary: they need share 1.
  """
  least = share * max(np.max(np.abs(v)) for v in wanted.values())
  off = {
    k: float(np.max(np.abs(got[k] - v)) / max(np.max(np.abs(v)), least, 1e-30))
    for k, v in wanted.items()
  }
  name = max(off, key=off.get)
  return off[name], name


def compare(config: ConfigDict, options: Options) -> dict[str, float]:
  """Compares the two steps in float64.

  Returns:
    The differences {"terms", "gradients", "update1", "update3"}.

  Raises:
    MismatchError: if one of them exceeds its tolerance.
  """
  config = from_json(to_json(config))
  config.dtype = "float64"
  config.data.batch_size = min(config.data.batch_size, BATCH)
  with jax.enable_x64(True):
    return _compare(config, options)


def _compare(config: ConfigDict, options: Options) -> dict[str, float]:
  spec, twin = build.train_spec(config), Twin(config, options)
  jit = jax.jit
  if jax.default_backend() == "cpu":  # compiling takes most of the time
    cheap = {"xla_backend_optimization_level": 0}
    jit = functools.partial(jax.jit, compiler_options=cheap)
  state = jax.device_get(jit(functools.partial(step.init, spec))())
  state = state.replace(
    vae=_shaken_net(state.vae, 1), disc=_shaken_net(state.disc, 2)
  )
  state = state.replace(ema=state.vae.params)
  twin.load(state)
  names = {"vae": torch_weights.named(twin.vae)}
  if twin.disc:
    names["disc"] = torch_weights.named(twin.disc)

  @jit
  def ours(state, batch):
    taken, gradients = [], step.gradients

    def recorded(*args):
      taken.append(gradients(*args))
      return taken[0]

    with mock.patch.object(step, "gradients", recorded):  # traced once
      state, metrics = step.train_step(spec, state, batch)
    return state, metrics, taken[0][1]

  rng, before, differences, where = (
    np.random.default_rng(0),
    _tables(state),
    {},
    {},
  )
  for t in range(STEPS):
    eps = rng.normal(size=noise_shape(config))
    image = images.smooth(config, t)
    theirs = [torch.from_numpy(v).to(options.device) for v in (image, eps)]
    given = eps if config.posterior.name == "mixture" else eps[:, :, 0]
    state, metrics, grads = ours(
      state, {"image": jnp.asarray(image), "eps": jnp.asarray(given)}
    )
    if t == 0:
      both_grads, terms = twin.gradients(*theirs)
      metrics = {k.split("/")[-1]: np.asarray(v) for k, v in metrics.items()}
      differences["terms"], where["terms"] = worst(
        {k: v.detach().cpu().numpy() for k, v in terms.items()},
        {k: metrics[k] for k in terms},
      )
      differences["gradients"], where["gradients"] = max(
        worst(flat(names[k], theirs), torch_weights.table(ours))
        for k, ours, theirs in zip(names, grads, both_grads, strict=False)
      )
    twin.step(*theirs)
    if t in (0, STEPS - 1):
      key = f"update{t + 1}"
      differences[key], where[key] = _updates_apart(twin, names, state, before)
  over = [k for k, v in differences.items() if not v <= LIMITS[k]]
  if over:
    shown = ", ".join(
      f"{k} {differences[k]:.2g} at {where[k]} (limit {LIMITS[k]})"
      for k in over
    )
    raise MismatchError(
      f"PyTorch's step gives other results, so it is not timed: {shown}."
    )
  return differences


def _shaken_net(net: step.NetworkState, seed: int) -> step.NetworkState:
  return net.replace(
    params=shaken(net.params, seed), batch_stats=shaken(net.batch_stats, seed)
  )


def _tables(state: step.TrainState) -> dict[str, dict]:
  return {
    "vae": torch_weights.table(state.vae.params),
    "disc": torch_weights.table(state.disc.params),
    "ema": torch_weights.table(state.ema),
  }


def _updates_apart(twin: Twin, names, state, before) -> tuple[float, str]:
  """Returns the largest difference of the networks' and average's updates."""
  after, off = _tables(state), []
  values = {"vae": twin.vae_params, "disc": twin.disc_params, "ema": twin.ema}
  for name, tensors in values.items():
    if tensors:
      keys = names.get(name, names["vae"])
      got, wanted = flat(keys, tensors), after[name]
      got, wanted = (
        {k: v[k] - before[name][k] for k in keys} for v in (got, wanted)
      )
      off.append(worst(got, wanted, share=1.0))
  return max(off)

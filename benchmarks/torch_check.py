"""That the twin computes the same numbers: terms, gradients, weights.

From the same weights (none of them at its initial zero or one), the same
images and the same eps. In float64: in float32 a ReLU's input that is zero but
for rounding goes either way, and a deep network's gradients then differ by
1e-2 (seen: 5e-3 of their length) though nothing is wrong.
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

# Of an array's largest number; Keras rounds Adam's decays to float32, so
# updates come apart by 1e-5.
LIMITS = {"terms": 1e-6, "gradients": 1e-6, "update1": 1e-4, "update3": 1e-4}
STEPS = 3
BATCH = 4  # at most: it is a check, not a timing


class MismatchError(Exception):
  """The twin computes something else, so there is nothing to time."""


def shaken(tree: Any, seed: int) -> Any:
  """Weights and statistics with noise on them, those over 0 still so."""
  rng = np.random.default_rng(seed)

  def leaf(path, v):
    noise = rng.normal(size=v.shape)
    name = path[-1].key
    if name in ("scale", "var"):
      return v * (1 + 0.2 * np.tanh(noise))
    return v + 0.05 * noise if v.ndim < 2 else v * (1 + 0.1 * noise)

  return jax.tree_util.tree_map_with_path(leaf, tree)


def noise_shape(config: ConfigDict) -> tuple[int, int, int, int]:
  """Of eps, [n, b, k, d]."""
  return (
    config.objective.num_samples,
    config.data.batch_size,
    config.posterior.components,
    config.model.latent,
  )


def _worst(got: dict, wanted: dict, share: float = 1e-6) -> tuple[float, str]:
  """The largest difference of an array, over the largest number in it.

  An array that is nothing but rounding counts by a share of the largest of
  all. Adam's first updates are of one size, and of rounding they are anything:
  there the share is 1.
  """
  least = share * max(np.max(np.abs(v)) for v in wanted.values())
  off = {
    k: float(np.max(np.abs(got[k] - v)) / max(np.max(np.abs(v)), least, 1e-30))
    for k, v in wanted.items()
  }
  name = max(off, key=off.get)
  return off[name], name


def compare(config: ConfigDict, options: Options) -> dict[str, float]:
  """Differences of the two, in float64.

  Returns:
    {"terms", "gradients", "update1", "update3"}.

  Raises:
    MismatchError: one of them is over its tolerance.
  """
  config = from_json(to_json(config))
  config.dtype = "float64"
  config.data.batch_size = min(config.data.batch_size, BATCH)
  with jax.enable_x64(True):
    return _compare(config, options)


def _compare(config: ConfigDict, options: Options) -> dict[str, float]:
  spec, twin = build.train_spec(config), Twin(config, options)
  jit = jax.jit
  if jax.default_backend() == "cpu":  # soonest done with compiling
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

    def heard(*args):
      taken.append(gradients(*args))
      return taken[0]

    with mock.patch.object(step, "gradients", heard):  # traced once
      state, metrics = step.train_step(spec, state, batch)
    return state, metrics, taken[0][1]

  rng, before, found, where = np.random.default_rng(0), _tables(state), {}, {}
  for t in range(STEPS):
    eps = rng.normal(size=noise_shape(config))
    image = images.smooth(config, t)
    theirs = [torch.from_numpy(v).to(options.device) for v in (image, eps)]
    given = eps if config.posterior.name == "mixture" else eps[:, :, 0]
    state, metrics, grads = ours(
      state, {"image": jnp.asarray(image), "eps": jnp.asarray(given)}
    )
    if t == 0:
      of_both, terms = twin.gradients(*theirs)
      metrics = {k.split("/")[-1]: np.asarray(v) for k, v in metrics.items()}
      found["terms"], where["terms"] = _worst(
        {k: v.detach().cpu().numpy() for k, v in terms.items()},
        {k: metrics[k] for k in terms},
      )
      found["gradients"], where["gradients"] = max(
        _worst(flat(names[k], theirs), torch_weights.table(ours))
        for k, ours, theirs in zip(names, grads, of_both, strict=False)
      )
    twin.step(*theirs)
    if t in (0, STEPS - 1):
      key = f"update{t + 1}"
      found[key], where[key] = _updates_apart(twin, names, state, before)
  over = [k for k, v in found.items() if not v <= LIMITS[k]]
  if over:
    shown = ", ".join(
      f"{k} {found[k]:.2g} at {where[k]} (limit {LIMITS[k]})" for k in over
    )
    raise MismatchError(
      f"PyTorch's step computes other numbers, so it is not timed: {shown}."
    )
  return found


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
  """The worst of the networks' and of the average's updates."""
  after, off = _tables(state), []
  values = {"vae": twin.vae_params, "disc": twin.disc_params, "ema": twin.ema}
  for name, tensors in values.items():
    if tensors:
      of = names.get(name, names["vae"])
      got, wanted = flat(of, tensors), after[name]
      got, wanted = (
        {k: v[k] - before[name][k] for k in of} for v in (got, wanted)
      )
      off.append(_worst(got, wanted, share=1.0))
  return max(off)

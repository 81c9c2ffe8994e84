"""A small model of several modalities, for tests: config, state and batch."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from conftest import alone, flat, state_of

from gamix_jax import build, config, objectives
from gamix_jax.modality import MASK, Modality
from gamix_jax.step import TrainSpec

# A vector, an image and a class.
MODALITIES = ("a 3 l2 2.0", "b 4x4x1 l1", "c 5 categorical")


def several(objective="elbo", modalities=MODALITIES, **changes):
  """Returns a config of several modalities; all terms have the weight 1.

  In keys of `changes`, `__` stands for a dot.
  """
  c = alone(flat)
  c.objective.name = objective
  c.objective.population = "debiased"
  terms = objectives.OBJECTIVES[objective].terms
  c.weights.update(dict.fromkeys(c.weights) | dict.fromkeys(terms, 1.0))
  c.data.modalities = tuple(modalities)
  c.data.flip = False
  c.model.encoder = c.model.decoder = "mlp"
  c.model.norm = c.model.input_norm = "none"
  c.model.encoder_features = c.model.decoder_features = (6,)
  c.multimodal.vector_encoder_features = (6,)
  c.multimodal.vector_decoder_features = (6,)
  c.multimodal.width, c.multimodal.heads = 8, 2
  separate = objective in ("mmvm", "mmvm_population")
  c.multimodal.fusion = "separate" if separate else "poe"
  for key, value in changes.items():
    config.put(c, key.replace("__", "."), value)
  return c


def all_masks(m: int) -> np.ndarray:
  """Returns the masks of all subsets of m modalities, [2^m, m]."""
  return np.array(list(itertools.product((0.0, 1.0), repeat=m)))


def batch(modalities: dict[str, Modality], mask: np.ndarray, seed: int = 0):
  """Returns random observations with a mask [b, m]; missing ones are zeros."""
  rng = np.random.default_rng(seed)
  rows = {MASK: jnp.asarray(mask, jnp.float32)}
  for i, (name, m) in enumerate(modalities.items()):
    shape = (len(mask), *m.shape)
    if m.likelihood.categorical:
      x = np.eye(m.shape[-1])[rng.integers(m.shape[-1], size=shape[:-1])]
    elif m.is_image:
      x = rng.integers(0, 256, shape)
    else:
      x = rng.normal(size=shape)
    there = mask[:, i].reshape(-1, *(1,) * len(m.shape)) > 0
    rows[name] = jnp.asarray(np.where(there, x, 0), m.dtype)
  return rows


def with_nan(spec: TrainSpec, rows: dict) -> dict:
  """Returns a batch as floats, with NaN in all missing observations."""
  x = spec.observations(rows)
  for i, name in enumerate(spec.modalities):
    there = x[MASK][:, i].reshape(-1, *(1,) * (x[name].ndim - 1)) > 0
    x[name] = jnp.where(there, x[name], jnp.nan)
  return x


@functools.cache
def _built(text: str):
  c = config.from_json(text)
  spec = build.train_spec(c)
  return spec, state_of(spec)


def built(c):
  """Returns the spec of a config and a state, none of whose weights is 0."""
  return _built(config.to_json(c))


def variables(state) -> dict:
  """Returns what `spec.vae.apply` takes."""
  return {"params": state.vae.params, "batch_stats": state.vae.batch_stats}


def nodes(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
  """Gauss-Hermite nodes and weights for N(0, I): [n^d, d] and [n^d].

  Means of polynomials up to the order 2 n - 1 are exact.
  """
  x, w = np.polynomial.hermite_e.hermegauss(n)
  w = w / w.sum()
  eps = np.stack(np.meshgrid(*[x] * d, indexing="ij"), -1).reshape(-1, d)
  weights = functools.reduce(np.multiply.outer, [w] * d).reshape(-1)
  return eps, weights


def leaves(tree) -> list[np.ndarray]:
  """Returns the arrays of a tree."""
  return [np.asarray(v) for v in jax.tree.leaves(tree)]

"""Pictures of held-out observations of several modalities."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gamix_jax import pictures
from gamix_jax.modality import MASK, to_float
from gamix_jax.step import TrainSpec

COLUMNS = 8  # observations


def compute(
  spec: TrainSpec, params: Any, batch_stats: Any, batch: Mapping[str, jax.Array]
) -> dict[str, Any]:
  """Decodes held-out observations and draws of the prior.

  Args:
    spec: of the run.
    params: of the VAE.
    batch_stats: of the VAE.
    batch: `COLUMNS` or more observations of every modality, with a mask.

  Returns:
    `reconstructions`: by modality, of the posterior's mean given all observed
    modalities. `translations`: {source: by modality}, given one modality only.
    `samples`: by modality, of draws of the prior.
  """
  vae = spec.vae.bind({"params": params, "batch_stats": batch_stats})
  x = {k: v[:COLUMNS] for k, v in spec.observations(batch).items()}
  latents = {"reconstructions": vae.encode(x).mean()}
  for i, name in enumerate(spec.modalities):
    only = x[MASK] * jnp.eye(len(spec.modalities))[i][None]
    latents[name] = vae.encode(x | {MASK: only}).mean()
  # The same draws every time, so that pictures can be compared.
  latents["samples"] = vae.prior_draws(jax.random.fold_in(spec.key(0), 2), 32)
  stops = np.cumsum([len(z) for z in latents.values()])[:-1]
  decoded = vae.decode(jnp.concatenate(list(latents.values())))
  parts: dict[str, dict[str, jax.Array]] = {k: {} for k in latents}
  for name, x_hat in decoded.items():
    mean = spec.modalities[name].likelihood.mean(x_hat)
    for k, part in zip(latents, jnp.split(mean, stops), strict=True):
      parts[k][name] = part
  return {
    "reconstructions": parts["reconstructions"],
    "translations": {name: parts[name] for name in spec.modalities},
    "samples": parts["samples"],
  }


def panels(
  spec: TrainSpec, batch: Mapping[str, np.ndarray], decoded: dict[str, Any]
) -> dict[str, np.ndarray]:
  """Lays them out: uint8 [h, w, c] by name; without images there are none.

  reconstructions: for each modality a row of originals and, below it, one of
  reconstructions.
  translations: for each modality a row of originals and, below it, a row of
  what was generated from it for every modality, in the modalities' order.
  samples: a row for each modality; images in a column belong together.
  """
  names = [k for k, m in spec.modalities.items() if m.is_image]
  if not names:
    return {}
  x = {k: np.asarray(to_float(batch[k][:COLUMNS])) for k in names}
  both, translated = [], []
  for name in names:
    both += [x[name], decoded["reconstructions"][name]]
    translated.append(x[name])
    translated += [decoded["translations"][name][k] for k in names]
  samples = [decoded["samples"][k] for k in names]
  return {
    "reconstructions": pictures.rows(both),
    "translations": pictures.rows(translated),
    "samples": pictures.rows(
      [s[i : i + COLUMNS] for i in range(0, 32, COLUMNS) for s in samples]
    ),
  }

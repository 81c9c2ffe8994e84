"""Values of the command's flags that several kinds of pictures have."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from gamix_jax.errors import UserError
from gamix_jax.inference.base import LoadedModel
from gamix_jax.inference.fitting import FITTED, ensure_fitted

SOURCE_NAMES = {
  "prior": "the prior",
  "population": "the population",
  "gmm": "the fitted mixture",
  "two_stage": "the second VAE",
  "vamp": "the pseudo-inputs",
}


def number(name: str, value: int | None, default: int, least: int = 1) -> int:
  """Returns a flag's value or its default; raises UserError if < `least`."""
  value = default if value is None else value
  if value < least:
    raise UserError(f"--{name}={value} must be {least} or more.")
  return value


def sampler(
  model: LoadedModel,
  *,
  source: str,
  temperature: float,
  seed: int,
  fit_images: int | None,
  components: str | None,
) -> tuple[Callable[[int], np.ndarray], str]:
  """Returns a function n -> latents and its description; fits if needed."""
  if components is not None and components != "bic":
    if not components.isdecimal():
      raise UserError(f"--components={components} must be an integer or bic.")
    components = int(components)
  if (fit_images, components) != (None, None) and source not in FITTED:
    raise UserError(
      f"--fit_images and --components need --source={' or '.join(FITTED)}."
    )
  ensure_fitted(model, source, images=fit_images, components=components)
  draw = functools.partial(
    model.draw_latents,
    jax.random.key(seed),
    source=source,
    temperature=temperature,
  )
  name = SOURCE_NAMES[source]
  return draw, f"{name}, temperature {temperature:g}, seed {seed}"

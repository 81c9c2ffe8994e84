"""The latent sources of one model: prior, pseudo-inputs, fitted samplers."""

from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.inference import samplers, two_stage
from gamix_jax.inference.device import Runner
from gamix_jax.posterior import Posterior

SOURCES = ("prior", "population", "gmm", "two_stage", "vamp")


class LatentSources:
  """The latent sources of one model; see the methods of `Model`."""

  def __init__(
    self,
    device: Runner,
    config: ConfigDict,
    step: int,
    which: str,
    workdir: Path | None,
  ) -> None:
    """Fitted samplers are read on first use; no workdir, no saving."""
    self._device, self._config = device, config
    self._step, self._which, self._workdir = step, which, workdir
    self._samplers: samplers.LatentSamplers | None = None

  def draw(
    self, key: jax.Array, n: int, source: str, temperature: float
  ) -> np.ndarray:
    """Draws latents [n, d]; see `Model.draw_latents`."""
    if n < 1 or not 0 <= temperature < np.inf:
      raise UserError(
        f"n={n} must be 1 or more, temperature={temperature} 0 or more."
      )
    self.check(source)
    if source in ("prior", "vamp"):
      return np.asarray(self._device.prior_draws(key, n, temperature))
    fitted = self._fitted(f"source={source!r}")
    if source == "population":
      return samplers.draw_population(fitted.population, key, n, temperature)
    if source == "two_stage":
      if fitted.second is None:
        raise UserError(
          "source='two_stage' needs a second VAE, and samplers were fitted "
          "without one; call model.fit_samplers(training_images, "
          "two_stage=True)."
        )
      z = two_stage.draw(fitted.second, key, n, temperature)
    else:
      z = samplers.draw_gmm(fitted.gmm, key, n, temperature)
    return z.astype(self._device.spec.dtype)

  def check(self, source: str) -> None:
    """Checks that this model supports the source.

    Raises:
      UserError: if not; the message lists the supported ones.
    """
    posterior, prior = self._config.posterior.name, self._config.prior.name
    supported = [s for s in SOURCES if s != "vamp" or prior == s]
    if source == "prior" and not self._device.spec.objective.has_prior:
      raise UserError(
        f"objective.name={self._config.objective.name!r} does not train the "
        "decoders for draws of a prior, so source='prior' would give no "
        "observations like those of the data; call "
        "model.fit_samplers(training_data) and use source='gmm' or "
        "'population'."
      )
    if self._device.spec.vae.posterior_type.discrete:
      supported = [s for s in supported if s not in ("gmm", "two_stage")]
    names = ", ".join(supported)
    if source not in SOURCES:
      raise UserError(f"source={source!r} must be one of {names}.")
    if source not in supported:
      raise UserError(
        f"source={source!r} does not work with posterior.name={posterior!r}, "
        f"prior.name={prior!r}; use one of {names}."
      )

  @property
  def default(self) -> str:
    """The prior, or the fitted mixture if the model has no prior."""
    return "prior" if self._device.spec.objective.has_prior else "gmm"

  def fit(
    self, q: Posterior, seed: int, components: int | str, second_stage: bool
  ) -> dict[str, Any]:
    """Fits samplers to posteriors of training images; saves them."""
    fitted = samplers.fit(q, seed, components, self._identity, second_stage)
    if self._workdir is not None:
      samplers.save(self._file, fitted)
    self._samplers = fitted
    return dict(fitted.about)

  def about(self) -> dict[str, Any] | None:
    """Returns the fitted samplers' metadata, or None if nothing was fitted."""
    if self._samplers is None and self._workdir is not None:
      x = self._device.spec.batch_shapes(1)
      like = jax.eval_shape(self._device.encoder, self._device.vae, x)
      self._samplers = samplers.read(self._file, self._identity, like)
    return None if self._samplers is None else dict(self._samplers.about)

  def log_density(self, z: ArrayLike) -> np.ndarray:
    """Returns the log density [b] of latents [b, d] under the fitted mixture.

    Raises:
      UserError: if nothing was fitted, or the latents are discrete.
    """
    self.check("gmm")
    fitted = self._fitted("by='population'")
    return fitted.gmm.score_samples(np.asarray(z, np.float64))

  @cached_property
  def _identity(self) -> dict[str, Any]:
    """Identifies the model's weights."""
    digest = samplers.digest(self._device.vae)
    return {"step": self._step, "which": self._which, "weights": digest}

  @property
  def _file(self) -> Path:
    return samplers.path(self._workdir, self._which, self._step)

  def _fitted(self, what: str) -> samplers.LatentSamplers:
    """Returns the fitted samplers; raises UserError if there are none."""
    if self.about() is None:
      raise UserError(
        f"{what} needs fitted samplers, and there are none for the "
        f"{self._which} weights of step {self._step}; call "
        "model.fit_samplers(training_images) first."
      )
    return self._samplers

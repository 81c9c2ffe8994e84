"""`LoadedModel`: what the models of images and of several modalities share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gamix_jax.config import ConfigDict
from gamix_jax.inference import latents
from gamix_jax.inference.device import Runner
from gamix_jax.inference.likelihood import Likelihood
from gamix_jax.inference.samplers import COMPONENTS
from gamix_jax.inference.sources import LatentSources
from gamix_jax.locate import Location
from gamix_jax.posterior import Posterior
from gamix_jax.step import TrainSpec


class LoadedModel:
  """A trained model.

  Attributes:
    config: the run's complete config.
    spec: its networks, see `step.TrainSpec`.
    step: the number of training steps.
    which: its weights: "ema" or "raw".
    workdir: its workdir, where samplers are saved; None if it was not loaded.
      Of a model that has none, see `locate.Location.output`.
    folder: what it was loaded from; None if it was not loaded.
    batch_size: observations on the devices at a time.
    variables: {"vae", "disc": {"params", "batch_stats"}}, on the devices.
  """

  def __init__(
    self,
    config: ConfigDict,
    spec: TrainSpec,
    step: int,
    vae: dict[str, Any],
    disc: dict[str, Any],
    *,
    batch_size: int | None = None,
    location: Location | None = None,
    which: str = "ema",
  ) -> None:
    """Wraps arrays that are in memory.

    Args:
      config: the run's config.
      spec: its networks.
      step: the number of training steps.
      vae: "params" and "batch_stats" of the VAE.
      disc: the same for the discriminator; empty if there is none.
      batch_size: see `load`.
      location: that they were read from; None: samplers are not saved.
      which: "ema" or "raw".

    Raises:
      UserError: if `batch_size` < 1.
    """
    self.config, self.spec, self.step = config, spec, step
    self.which = which
    self.workdir = location.output if location else None
    self.folder = location.folder if location else None
    self._device = Runner(spec, vae, disc, batch_size)
    self.batch_size = self._device.batch_size
    self.variables = {"vae": self._device.vae, "disc": self._device.disc}
    self._likelihood = Likelihood(self._device, config.posterior.name)
    self._sources = LatentSources(
      self._device, config, step, which, self.workdir
    )

  def _observations(self, x: Any) -> dict[str, np.ndarray]:
    """Validates what a user gave and returns it by modality.

    Raises:
      UserError: as `encode`.
    """
    raise NotImplementedError

  def encode(self, x: Any) -> Posterior:
    """Computes the posterior q(z | x) of b observations.

    Args:
      x: what the model was trained on, see the class.

    Returns:
      A pytree of JAX arrays with `mean()`, `sample(key, n)`, `log_prob(z)`,
      ..., see `posterior.base`.

    Raises:
      UserError: if shape, dtype or range is wrong, or a value is not finite.
    """
    return self._posterior(self._observations(x))

  def _posterior(self, x: dict[str, np.ndarray]) -> Posterior:
    """q(z | x) of validated observations."""
    return jax.tree.map(jnp.asarray, self._device.encode(x))

  def with_prior(self, q: Posterior) -> Posterior:
    """Returns q with `log_prior` and KL taken to this model's prior."""
    return self._device.with_prior(q)

  # --- new latents ---------------------------------------------------------

  def draw_latents(
    self,
    key: jax.Array,
    n: int,
    *,
    source: str = "prior",
    temperature: float = 1.0,
  ) -> np.ndarray:
    """Draws new latents.

    Args:
      key: from `jax.random.key`; the same key gives the same latents.
      n: number of latents.
      source: "prior", the model's (usually N(0, I)); "population", the
        posterior of a random training observation; "gmm", a Gaussian mixture
        fitted to draws of the population; "two_stage", a second VAE trained on
        them; "vamp", the posterior of a random pseudo-input, which is the prior
        if prior.name is "vamp". See `fit_samplers`.
      temperature: factor of the standard deviation (per component, for a
        mixture); values < 1 concentrate draws around the mean.

    Returns:
      [n, d].

    Raises:
      UserError: if n < 1, if the temperature is negative, or if the source is
        unknown, not supported by this model, or not fitted yet.
    """
    return self._sources.draw(key, n, source, temperature)

  def check_source(self, source: str) -> None:
    """Raises UserError if this model does not support the source."""
    self._sources.check(source)

  @property
  def default_source(self) -> str:
    """The source of new observations: "prior", or "gmm" if there is none."""
    return self._sources.default

  def fit_samplers(
    self,
    x: Any,
    *,
    seed: int = 0,
    components: int | str = COMPONENTS,
    two_stage: bool = False,
  ) -> dict[str, Any]:
    """Fits the sources "population", "gmm" and "two_stage" to training data.

    A loaded model saves them in its workdir, as `samplers/<which>_<step>.npz`,
    where the next `load` finds them. They are used only with the exact weights
    that they were fitted to.

    Args:
      x: training data, see `encode`; their posteriors are the population.
      seed: of the draws that the mixture is fitted to, and of its
        initialization.
      components: of the mixture; or "bic", see `samplers.fit`.
      two_stage: whether to train the second VAE, too.

    Returns:
      A description of the fit: step, which, images, components, covariance, ...

    Raises:
      UserError: as `encode` and `samplers.fit`, or if the file cannot be
        written.
    """
    q = self._device.encode(self._observations(x))
    return self._sources.fit(q, seed, components, two_stage)

  @property
  def fitted(self) -> dict[str, Any] | None:
    """The description of the fitted samplers, see `fit_samplers`, or None."""
    return self._sources.about()

  # --- bounds and maps -----------------------------------------------------

  def elbo(
    self, x: Any, samples: int = 16, *, key: jax.Array | None = None
  ) -> np.ndarray:
    """Estimates E_q [ ln p(x, z) - ln q(z | x) ] by sampling.

    Args:
      x: see `encode`.
      samples: number of draws; per component for a mixture.
      key: of the draws; default: a fixed key.

    Returns:
      [b] in nats.

    Raises:
      UserError: as `log_likelihood`.
    """
    return self.bounds(x, samples, key)["elbo"]

  def bounds(
    self, x: Any, samples: int, key: jax.Array | None = None
  ) -> dict[str, np.ndarray]:
    """Returns `elbo` and `iwae` from the same draws; see these methods."""
    key = jax.random.key(0) if key is None else key
    return self._likelihood.bounds(self._observations(x), samples, key)

  def latent_map(
    self, x: Any, method: str = "pca", seed: int = 0
  ) -> np.ndarray:
    """Projects the posterior means of observations to two dimensions.

    Args:
      x: see `encode`.
      method: "pca", "tsne", or "umap", which needs umap-learn.
      seed: of the method's random numbers.

    Returns:
      [b, 2].

    Raises:
      UserError: as `encode` and `latents.project`.
    """
    return latents.project(np.asarray(self.encode(x).mean()), method, seed)

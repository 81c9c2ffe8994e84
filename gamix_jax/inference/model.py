"""A trained model: all that can be asked of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.inference import arrays, maps, ways
from gamix_jax.inference.device import Runner
from gamix_jax.inference.likelihood import Likelihood
from gamix_jax.inference.samplers import COMPONENTS
from gamix_jax.inference.sources import Sources
from gamix_jax.modality import to_float
from gamix_jax.posterior import Posterior
from gamix_jax.step import TrainSpec

SCORES = ("reconstruction", "elbo", "population")


class Model:
  """A trained model; `load` makes it.

  Attributes:
    config: the run's, every key.
    spec: its networks, see `step.TrainSpec`.
    step: the steps it was trained.
    which: of its weights: "ema" or "raw".
    workdir: where it is from; None of one that was not loaded.
    batch_size: images on the devices at a time.
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
    workdir: Path | None = None,
    which: str = "ema",
  ) -> None:
    """Of arrays that are at hand; for what is not said see the attributes.

    Args:
      config: the run's.
      spec: its networks.
      step: of training.
      vae: its "params" and "batch_stats".
      disc: the discriminator's; empty where there is none.
      batch_size: see `load`.
      workdir: where samplers are kept.
      which: of the weights.

    Raises:
      UserError: `batch_size` is under 1.
    """
    self.config, self.spec, self.step = config, spec, step
    self.workdir, self.which = workdir, which
    self._device = Runner(spec, vae, disc, batch_size)
    self.batch_size = self._device.batch_size
    self.variables = {"vae": self._device.vae, "disc": self._device.disc}
    self._likelihood = Likelihood(self._device, config.posterior.name)
    self._sources = Sources(self._device, config, step, which, workdir)

  # --- there and back ------------------------------------------------------

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
    q = self._device.encode(arrays.batch(self.spec, x))
    return jax.tree.map(jnp.asarray, q)

  def with_prior(self, q: Posterior) -> Posterior:
    """q with this model's prior, which its `log_prior` and KL are then of."""
    return self._device.with_prior(q)

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
    latent = self.config.model.latent
    z = arrays.latents(z, latent, self.spec.dtype)
    x_hat = self._device.decode(z.reshape(-1, latent), raw=raw)
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
    if self.spec.disc is None:
      raise UserError(
        "This was trained without a discriminator (adversarial.loss='none')."
      )
    rows = arrays.batch(self.spec, x, bounded=not raw)
    logits = self._device.logits(rows, raw=raw)
    return logits.reshape(*np.shape(x)[:-3], *logits.shape[1:])

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

  # --- new images ----------------------------------------------------------

  def sample(
    self,
    key: jax.Array,
    n: int,
    *,
    source: str = "prior",
    temperature: float = 1.0,
  ) -> np.ndarray:
    """New images: `draw_latents`, decoded.

    Args:
      key: of `jax.random.key`; the same key gives the same images.
      n: how many.
      source: see `draw_latents`.
      temperature: see `draw_latents`.

    Returns:
      [n, h, w, c] in [-1, 1].

    Raises:
      UserError: as `draw_latents`.
    """
    return self.decode(
      self.draw_latents(key, n, source=source, temperature=temperature)
    )

  def draw_latents(
    self,
    key: jax.Array,
    n: int,
    *,
    source: str = "prior",
    temperature: float = 1.0,
  ) -> np.ndarray:
    """New latents.

    Args:
      key: of `jax.random.key`; the same key gives the same latents.
      n: how many.
      source: "prior", the model's (mostly N(0, I)); "population", a draw of a
        random training image's posterior; "gmm", of a Gaussian mixture fitted
        to such draws; "vamp", of a random pseudo-input's posterior, which is
        the prior where prior.name is "vamp". See `fit_samplers`.
      temperature: of the standard deviation, of each component where there
        are any; under 1 nearer its mean.

    Returns:
      [n, d].

    Raises:
      UserError: n is under 1, or the temperature negative; a source that is
        none, that this model has not, or that was not fitted yet.
    """
    return self._sources.draw(key, n, source, temperature)

  def check_source(self, source: str) -> None:
    """Raises UserError, with what fits, of a source this model cannot have."""
    self._sources.check(source)

  def fit_samplers(
    self,
    x: ArrayLike,
    *,
    seed: int = 0,
    components: int | str = COMPONENTS,
  ) -> dict[str, Any]:
    """Fits the sources "population" and "gmm" to training images.

    A loaded model keeps them beside its checkpoint, in
    `samplers/<which>_<step>.npz`, where the next `load` finds them; they are
    used with the very weights only that they were fitted to.

    Args:
      x: training images, [b, h, w, c]; all of them, or as many as are to be
        kept as the population.
      seed: of the draws that the mixture is fitted to, and of its start.
      components: of the mixture; or "bic", see `samplers.fit`.

    Returns:
      What was fitted: step, which, images, components, covariance, ...

    Raises:
      UserError: as `encode`; as `samplers.fit`; it cannot be written.
    """
    x = arrays.batch(self.spec, x)
    return self._sources.fit(self._device.encode(x), seed, components)

  @property
  def fitted(self) -> dict[str, Any] | None:
    """What `fit_samplers` has returned, now or in a run before; or None."""
    return self._sources.about()

  # --- ways ----------------------------------------------------------------

  def interpolate(
    self, x0: ArrayLike, x1: ArrayLike, steps: int, *, path: str = "straight"
  ) -> np.ndarray:
    """The way from one image to another, between their posteriors' means.

    Args:
      x0: one image, [h, w, c].
      x1: another.
      steps: how many pictures, the reconstructions of both among them.
      path: "straight" or "spherical", see `ways.between`.

    Returns:
      [steps, h, w, c] in [-1, 1].

    Raises:
      UserError: as `encode`; several images; steps under 2; no such path.
    """
    ends = [self.encode(x).mean() for x in (x0, x1)]
    a, b = map(len, ends)
    if a != 1 or b != 1:
      raise UserError(f"interpolate is of two images; given were {a} and {b}.")
    return self.decode(ways.between(ends[0][0], ends[1][0], steps, path))

  def traverse(
    self,
    image: ArrayLike,
    dims: int | Sequence[int],
    *,
    span: float = 3.0,
    steps: int = 7,
  ) -> np.ndarray:
    """An image's mean moved along one latent or two, decoded.

    Args:
      image: one, [h, w, c].
      dims: a latent, or two.
      span: how far to both sides, in standard deviations of the image's
        posterior; of a mixture, of the whole one.
      steps: how many pictures along each latent.

    Returns:
      [steps, h, w, c], or [steps, steps, h, w, c] with the first of two
      latents along the first axis; in [-1, 1].

    Raises:
      UserError: as `encode`; several images; as `ways.around`.
    """
    q = self.encode(arrays.single(self.spec, image, "A traversal"))
    return self.decode(ways.around(q, dims, span, steps))

  def components(self, image: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """What the mean of each component of an image's posterior decodes to.

    Args:
      image: one, [h, w, c].

    Returns:
      Weights [k], summing to 1, and images [k, h, w, c] in [-1, 1]; k = 1 of
      a family without components.

    Raises:
      UserError: as `encode`; several images.
    """
    q = self.encode(arrays.single(self.spec, image, "Components"))
    weights, mu, _ = q.components()
    return np.asarray(weights[0]), self.decode(mu[0])

  # --- numbers -------------------------------------------------------------

  def log_likelihood(
    self, x: ArrayLike, samples: int = 100, *, key: jax.Array | None = None
  ) -> np.ndarray:
    """The importance-weighted bound of ln p(x), of the likelihood trained on.

        ln 1/S sum_s p(x, z_s) / q(z_s | x),    z_s ~ q(z | x)

    Burda et al., arXiv:1509.00519; of a mixture stratified (2003.01687). p(x |
    z) is what the reconstruction term stands for, `modality.log_likelihood`.

    Args:
      x: [b, h, w, c] or one [h, w, c].
      samples: S, of each component where there are any.
      key: of the draws; the same ones every time if left out.

    Returns:
      [b] in nats.

    Raises:
      UserError: as `encode`; samples under 1; the family has no finite bound.
    """
    return self.bounds(x, samples, key)["iwae"]

  def elbo(
    self, x: ArrayLike, samples: int = 16, *, key: jax.Array | None = None
  ) -> np.ndarray:
    """E_q [ ln p(x, z) - ln q(z | x) ], estimated by draws.

    Args:
      x: [b, h, w, c] or one [h, w, c].
      samples: draws, of each component where there are any.
      key: of the draws; the same ones every time if left out.

    Returns:
      [b] in nats.

    Raises:
      UserError: as `log_likelihood`.
    """
    return self.bounds(x, samples, key)["elbo"]

  def anomaly_score(
    self, x: ArrayLike, by: str = "reconstruction"
  ) -> np.ndarray:
    """How unlike its training images an image is to the model: larger, more.

    Args:
      x: [b, h, w, c] or one [h, w, c].
      by: "reconstruction", the mean over pixels of the error that it was
        trained with, of the mean decoded; "elbo", minus it, in nats;
        "population", minus the log density in nats of the mean under the
        mixture that `fit_samplers` fitted to training images' codes.

    Returns:
      [b].

    Raises:
      UserError: as `encode`, as `elbo`; no such score; nothing fitted yet.
    """
    if by not in SCORES:
      raise UserError(f"by={by!r} must be one of {', '.join(SCORES)}.")
    if by == "elbo":
      return -self.elbo(x)
    if by == "population":
      return -self._sources.log_density(self.encode(x).mean())
    x_hat = self.decode(self.encode(x).mean(), raw=True)
    x = to_float(arrays.batch(self.spec, x), self.spec.dtype)
    return np.asarray(self.spec.image.error(x, x_hat))

  def latent_map(
    self, x: ArrayLike, method: str = "pca", seed: int = 0
  ) -> np.ndarray:
    """Images' places in a plane: the means of their posteriors, projected.

    Args:
      x: [b, h, w, c].
      method: "pca", "tsne", or "umap", which needs umap-learn.
      seed: of what is random in them.

    Returns:
      [b, 2].

    Raises:
      UserError: as `encode`; as `maps.plane`.
    """
    return maps.plane(np.asarray(self.encode(x).mean()), method, seed)

  def bounds(self, x, samples, key=None) -> dict[str, np.ndarray]:
    """`elbo` and `iwae` of the same draws, each as said above."""
    key = jax.random.key(0) if key is None else key
    return self._likelihood.bounds(arrays.batch(self.spec, x), samples, key)

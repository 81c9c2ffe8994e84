"""`Model`: the inference API of a trained model of images."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.typing import ArrayLike

from gamix_jax import occlusion
from gamix_jax.errors import UserError
from gamix_jax.inference import arrays, latents
from gamix_jax.inference.base import LoadedModel
from gamix_jax.modality import IMAGE, to_float
from gamix_jax.occlusion import HIDDEN
from gamix_jax.posterior import Posterior
from gamix_jax.registry import check_choice

SCORES = ("reconstruction", "elbo", "population")


class Model(LoadedModel):
  """A trained model of images; `load` returns one.

  The attributes are those of `LoadedModel`.

  A model that was trained with `data.occlude` takes whole images and hides a
  part of each from its encoder, which depends only on the image's place in the
  array; see `seen`. `encode` can be told what to hide.
  """

  def _observations(
    self, x: ArrayLike, hidden: ArrayLike | None = None
  ) -> dict[str, np.ndarray]:
    x = {IMAGE: arrays.batch(self.spec, x)}
    if hidden is None:
      return jax.device_get(self.spec.occluded(x))
    return x | {HIDDEN: arrays.hidden(self.spec, hidden, len(x[IMAGE]))}

  # --- encode and decode ---------------------------------------------------

  def encode(self, x: ArrayLike, hidden: ArrayLike | None = None) -> Posterior:
    """Computes the posterior q(z | x) of images.

    Args:
      x: [b, h, w, c] or one [h, w, c]; uint8 or floats in [-1, 1].
      hidden: what the encoder does not see, int [b, 4]: first row, first
        column, height and width of a rectangle; zeros: nothing. Default: of a
        model that was trained with `data.occlude` what `seen` hides, else
        nothing.

    Returns:
      The posterior of b images (b = 1 for a single image): a pytree of JAX
      arrays with `mean()`, `sample(key, n)`, `log_prob(z)`, ..., see
      `posterior.base`.

    Raises:
      UserError: if shape, dtype or range is wrong, or a value is not finite.

    Example:
      >>> q = model.encode(images)
      >>> type(q).__name__, q.mean().shape
      ('Gaussian', (8, 10))
      >>> z, weights = q.sample(key, 4)  # four draws of each posterior
      >>> z.shape
      (4, 8, 10)
    """
    return self._posterior(self._observations(x, hidden))

  def hidden(self, rows: ArrayLike) -> np.ndarray:
    """What is hidden of the images in these rows of an array, see `encode`.

    Returns:
      int [b, 4]; zeros for a model that was not trained with `data.occlude`.
    """
    rows = np.asarray(rows)
    if self.spec.occlude == occlusion.NONE:
      return np.zeros((len(rows), 4), np.int32)
    return np.asarray(self.spec.hidden(rows))

  def seen(self, x: ArrayLike) -> np.ndarray:
    """Images as the encoder sees them: what is hidden is grey, 0.

    Args:
      x: [b, h, w, c] or one [h, w, c]; uint8 or floats in [-1, 1].

    Returns:
      Images of x's shape, in [-1, 1].

    Raises:
      UserError: as `encode`.
    """
    of = self._observations(x)
    images = occlusion.seen(of | {IMAGE: to_float(of[IMAGE])}, IMAGE)
    return np.asarray(images).reshape(np.shape(x))

  def decode(self, z: ArrayLike, *, raw: bool = False) -> np.ndarray:
    """Decodes latents to images.

    Args:
      z: [..., d].
      raw: whether to return the decoder's unbounded output (logits if
        `objective.reconstruction` is "bernoulli").

    Returns:
      [..., h, w, c], clipped to [-1, 1] unless `raw`.

    Raises:
      UserError: if shape or dtype is wrong, or a value is not finite.

    Example:
      >>> model.decode(np.zeros((2, 4, 10))).shape
      (2, 4, 16, 16, 1)
    """
    latent = self.spec.vae.latent
    z = arrays.latents(z, latent, self.spec.dtype)
    rows = z.reshape(-1, latent)
    x_hat = self._device.decode(rows, [IMAGE], raw=raw)[IMAGE]
    return x_hat.reshape(*z.shape[:-1], *x_hat.shape[1:])

  def discriminate(self, x: ArrayLike, *, raw: bool = False) -> np.ndarray:
    """Computes the discriminator's logit per patch; > 0 means "real".

    Args:
      x: [b, h, w, c] or one [h, w, c]; uint8 or floats in [-1, 1].
      raw: whether x is an output of `decode(z, raw=True)`, of any range, as the
        discriminator was trained on.

    Returns:
      [b, p, q, 1]; [p, q, 1] for a single image.

    Raises:
      UserError: as `encode`, or if the run had no discriminator.
    """
    if self.spec.disc is None:
      raise UserError(
        "This model was trained without a discriminator "
        "(adversarial.loss='none')."
      )
    rows = arrays.batch(self.spec, x, bounded=not raw)
    logits = self._device.logits(rows, raw=raw)
    return logits.reshape(*np.shape(x)[:-3], *logits.shape[1:])

  def reconstruct(self, x: ArrayLike) -> np.ndarray:
    """Encodes images and decodes the posterior means.

    Args:
      x: [b, h, w, c] or one [h, w, c]; uint8 or floats in [-1, 1].

    Returns:
      Images of x's shape, in [-1, 1].

    Raises:
      UserError: as `encode`.

    Example:
      >>> error = np.abs(model.reconstruct(images) - (images / 127.5 - 1))
      >>> bool(error.mean() < 0.15)
      True
    """
    return self.decode(self.encode(x).mean()).reshape(np.shape(x))

  def complete(
    self, x: ArrayLike, n: int, *, key: jax.Array | None = None
  ) -> np.ndarray:
    """Decodes independent draws of q(z | x).

    Of a model that was trained with `data.occlude` these are n completions of
    each image.

    Args:
      x: [b, h, w, c] or one [h, w, c]; uint8 or floats in [-1, 1].
      n: number of draws of each image.
      key: of the draws; default: a fixed key.

    Returns:
      [n, *x.shape], in [-1, 1].

    Raises:
      UserError: as `encode`, or if n < 1.
    """
    if n < 1:
      raise UserError(f"n={n} must be 1 or more.")
    key = jax.random.key(0) if key is None else key
    z = self.encode(x).independent(key, n)
    return self.decode(np.asarray(z)).reshape(n, *np.shape(x))

  # --- new images ----------------------------------------------------------

  def sample(
    self,
    key: jax.Array,
    n: int,
    *,
    source: str = "prior",
    temperature: float = 1.0,
  ) -> np.ndarray:
    """Draws latents with `draw_latents` and decodes them to new images.

    Args:
      key: from `jax.random.key`; the same key gives the same images.
      n: number of images.
      source: see `draw_latents`.
      temperature: see `draw_latents`.

    Returns:
      [n, h, w, c] in [-1, 1].

    Raises:
      UserError: as `draw_latents`.

    Example:
      >>> new = model.sample(key, 16)
      >>> new.shape, bool((np.abs(new) <= 1).all())
      ((16, 16, 16, 1), True)
    """
    return self.decode(
      self.draw_latents(key, n, source=source, temperature=temperature)
    )

  # --- paths in latent space -----------------------------------------------

  def interpolate(
    self, x0: ArrayLike, x1: ArrayLike, steps: int, *, path: str = "straight"
  ) -> np.ndarray:
    """Interpolates between the posterior means of two images.

    Args:
      x0: the first image, [h, w, c].
      x1: the last image, [h, w, c].
      steps: number of images, including the reconstructions of both.
      path: "straight" or "spherical", see `latents.between`.

    Returns:
      [steps, h, w, c] in [-1, 1].

    Raises:
      UserError: as `encode`, if x0 or x1 has several images, if steps < 2, or
        if the path is unknown.

    Example:
      >>> row = model.interpolate(images[0], images[1], 8, path="spherical")
      >>> row.shape
      (8, 16, 16, 1)
    """
    ends = [self.encode(x).mean() for x in (x0, x1)]
    a, b = map(len, ends)
    if a != 1 or b != 1:
      raise UserError(
        f"interpolate needs exactly one image at each end; {a} and {b} were "
        "given."
      )
    return self.decode(latents.between(ends[0][0], ends[1][0], steps, path))

  def traverse(
    self,
    image: ArrayLike,
    dims: int | Sequence[int],
    *,
    span: float = 3.0,
    steps: int = 7,
  ) -> np.ndarray:
    """Moves an image's posterior mean along one or two latents and decodes it.

    Args:
      image: one image, [h, w, c].
      dims: the index of one latent, or of two.
      span: the largest offset, in standard deviations of the image's posterior
        (of the full mixture, if it is one).
      steps: number of images along each latent.

    Returns:
      [steps, h, w, c], or [steps, steps, h, w, c] with the first of two
      latents along the first axis; in [-1, 1].

    Raises:
      UserError: as `encode` and `latents.around`; several images.

    Example:
      >>> model.traverse(images[0], (0, 1), span=20, steps=4).shape
      (4, 4, 16, 16, 1)
    """
    q = self.encode(arrays.single(self.spec, image, "A traversal"))
    return self.decode(latents.around(q, dims, span, steps))

  def components(self, image: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Decodes the mean of each component of an image's posterior.

    Args:
      image: one image, [h, w, c].

    Returns:
      Weights [k], summing to 1, and images [k, h, w, c] in [-1, 1]; k = 1 for
      a family without components.

    Raises:
      UserError: as `encode`, or if there are several images.
    """
    q = self.encode(arrays.single(self.spec, image, "Components"))
    weights, mu, _ = q.components()
    return np.asarray(weights[0]), self.decode(mu[0])

  # --- bounds and scores ---------------------------------------------------

  def log_likelihood(
    self, x: ArrayLike, samples: int = 100, *, key: jax.Array | None = None
  ) -> np.ndarray:
    """Estimates the importance-weighted (IWAE) bound of ln p(x).

        ln 1/S sum_s p(x, z_s) / q(z_s | x),    z_s ~ q(z | x)

    Burda et al., arXiv:1509.00519; stratified for a mixture (2003.01687).
    p(x | z) is the likelihood of the reconstruction term, see
    `modality.log_likelihood`.

    Args:
      x: [b, h, w, c] or one [h, w, c].
      samples: S; per component for a mixture.
      key: of the draws; default: a fixed key.

    Returns:
      [b] in nats.

    Raises:
      UserError: as `encode`, if samples < 1, or if the posterior has no finite
        bound.
    """
    return self.bounds(x, samples, key)["iwae"]

  def anomaly_score(
    self, x: ArrayLike, by: str = "reconstruction"
  ) -> np.ndarray:
    """Computes an anomaly score per image; larger is more anomalous.

    Args:
      x: [b, h, w, c] or one [h, w, c].
      by: "reconstruction", the training reconstruction error, averaged over
        pixels, of the decoded posterior mean; "elbo", the negative ELBO in
        nats; "population", the negative log density in nats of the posterior
        mean under the mixture fitted by `fit_samplers`.

    Returns:
      [b].

    Raises:
      UserError: as `encode` and `elbo`, if the score is unknown, or if it needs
        samplers that are not fitted yet.
    """
    check_choice("by", by, SCORES)
    if by == "elbo":
      return -self.elbo(x)
    if by == "population":
      return -self._sources.log_density(self.encode(x).mean())
    x_hat = self.decode(self.encode(x).mean(), raw=True)
    x = to_float(arrays.batch(self.spec, x), self.spec.dtype)
    return np.asarray(self.spec.image.error(x, x_hat))

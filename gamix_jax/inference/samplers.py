"""Samplers of latents that are fitted after training and saved.

    population   z ~ q(z | x_i) for a random training image i
    gmm          z from a Gaussian mixture fitted to draws of the population
                 (Ghosh et al., arXiv:1903.12436, with 10 components of full
                 covariance)
    two_stage    z from a second VAE that is trained on draws of the population,
                 see `two_stage`

All approximate q(z), on which the decoder was trained and from which the prior
may differ. They are fitted to draws, not to posterior means, because the means
lack the variance of the posteriors themselves.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from gamix_jax import files
from gamix_jax.errors import UserError
from gamix_jax.inference import two_stage
from gamix_jax.posterior import Posterior

FORMAT = 1
COMPONENTS = 10  # arXiv:1903.12436, appendix
BIC_CANDIDATES = (1, 2, 4, 8, 16, 32)  # numbers of components
# Full covariances need at least this many images per latent and component; with
# fewer, covariances are diagonal.
IMAGES_PER_DIMENSION = 2
_SECOND_STAGE = "two_stage/"  # how its arrays' names begin
_GMM_ARRAYS = ("weights_", "means_", "covariances_", "precisions_cholesky_")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LatentSamplers:
  """Samplers fitted to the posteriors of training images.

  Attributes:
    about: metadata: weights, number of images, settings.
    population: the posteriors of those images.
    gmm: a fitted `sklearn.mixture.GaussianMixture`; None for discrete latents.
    second: a trained second stage; None if it was not asked for.
  """

  about: dict[str, Any]
  population: Posterior
  gmm: Any
  second: two_stage.Fitted | None = None


def fit(
  q: Posterior,
  seed: int,
  components: int | str,
  metadata: dict[str, Any],
  second_stage: bool = False,
) -> LatentSamplers:
  """Fits the population, the Gaussian mixture and, if asked to, a second VAE.

  Args:
    q: posteriors of n training images.
    seed: of the draws, one per image, and of the mixture's initialization.
    components: of the mixture; "bic" chooses the number from BIC_CANDIDATES
      with the lowest Bayesian information criterion. Covariances are full if
      there are 2 d images per component, else diagonal.
    metadata: further entries of `about`.
    second_stage: whether to train the second VAE.

  Raises:
    UserError: if components is invalid, if there are too few images, or if a
      second VAE of counts is asked for.
  """
  n = len(q.mean())
  by_bic = components == "bic"
  if not by_bic and (not isinstance(components, int) or components < 1):
    raise UserError(
      f"components={components!r} must be an integer >= 1 or 'bic'."
    )
  if n < 2:
    raise UserError("Samplers need at least 2 images to be fitted to.")
  if not by_bic and n < components:
    raise UserError(
      f"components={components} is too many for {n} images; use more images, "
      "or fewer components."
    )
  about = {**metadata, "format": FORMAT, "images": n, "seed": seed}
  population = jax.tree.map(np.asarray, q)
  if q.discrete:  # a Gaussian mixture cannot model counts
    if second_stage:
      raise UserError("two_stage=True is for continuous latents, not counts.")
    return LatentSamplers(about, population, None)
  z = draw_population(q, jax.random.key(seed), None)
  candidates = (
    [k for k in BIC_CANDIDATES if 2 * k <= n] if by_bic else [components]
  )
  fitted = [_fit_mixture(z, k, seed) for k in candidates]
  gmm = min(fitted, key=lambda m: m.bic(z)) if by_bic else fitted[0]
  about |= {
    "components": gmm.n_components,
    "covariance": gmm.covariance_type,
    "chosen_by": "bic" if by_bic else "number",
  }
  if not second_stage:
    return LatentSamplers(about, population, gmm)
  fitted = two_stage.fit(
    lambda q, key: _draw_population(q, key, 1.0, n=two_stage.BATCH),
    q,
    jax.random.fold_in(jax.random.key(seed), 1),
    z,
    two_stage.STEPS,
  )
  about["two_stage_steps"] = two_stage.STEPS
  return LatentSamplers(about, population, gmm, fitted)


def _fit_mixture(z: np.ndarray, components: int, seed: int) -> Any:
  from sklearn.mixture import GaussianMixture  # noqa: PLC0415  (takes a second)

  n, d = z.shape
  enough = n >= IMAGES_PER_DIMENSION * d * components
  return GaussianMixture(
    components,
    covariance_type="full" if enough else "diag",
    max_iter=500,
    random_state=seed % 2**32,
  ).fit(np.asarray(z, np.float64))


def draw_population(
  q: Posterior, key: jax.Array, n: int | None = None, temperature: float = 1.0
) -> np.ndarray:
  """Draws z [n, d] from n random posteriors, or one from each if n is None.

  The component of a posterior is drawn by its weight; the draw's offset from
  the component's mean is multiplied by the temperature.
  """
  return np.asarray(_draw_population(q, key, temperature, n=n))


@partial(jax.jit, static_argnames="n")
def _draw_population(
  q: Posterior, key: jax.Array, temperature: float, *, n: int | None
) -> jax.Array:
  image_key, draw_key, component_key = jax.random.split(key, 3)
  if n is not None:
    indices = jax.random.randint(image_key, (n,), 0, len(q.mean()))
    q = jax.tree.map(lambda leaf: leaf[indices], q)
  q = q.stratified()
  z, w = q.sample(draw_key, 1)  # one draw per component
  _, mu, _ = q.components()
  component = jax.random.categorical(component_key, jnp.log(w), axis=0)
  rows = jnp.arange(z.shape[1])
  z, mu = z[component, rows], mu[rows, component]
  # Exactly z at temperature 1, so that counts stay integers.
  return jnp.where(temperature == 1, z, mu + temperature * (z - mu))


def draw_gmm(
  gmm: Any, key: jax.Array, n: int, temperature: float = 1.0
) -> np.ndarray:
  """Draws z [n, d] from the mixture; temperature scales standard deviations."""
  from sklearn.mixture import GaussianMixture  # noqa: PLC0415

  rng = np.random.RandomState(np.asarray(jax.random.key_data(key)).ravel())
  scaled = GaussianMixture(gmm.n_components, random_state=rng)
  scaled.covariance_type = gmm.covariance_type
  scaled.weights_, scaled.means_ = gmm.weights_, gmm.means_
  scaled.precisions_cholesky_ = gmm.precisions_cholesky_
  scaled.covariances_ = gmm.covariances_ * temperature**2
  z, _ = scaled.sample(n)
  return rng.permutation(z)  # scikit-learn sorts them by component


# ---------------------------------------------------------- saved in a workdir


def path(folder: Path, which: str, step: int) -> Path:
  """Returns the file for the samplers of the given weights."""
  return folder / "samplers" / f"{which}_{step}.npz"


def digest(weights: Any) -> str:
  """Returns a hash that identifies a model's weights."""
  h = hashlib.sha256()
  for leaf in jax.tree.leaves(jax.device_get(weights)):
    h.update(np.ascontiguousarray(leaf))
  return h.hexdigest()[:16]


def save(file: Path, samplers: LatentSamplers) -> None:
  """Writes samplers as .npz, atomically.

  Raises:
    UserError: if the file cannot be written.
  """
  leaves = jax.tree.leaves(samplers.population)
  arrays = {f"population_{i}": leaf for i, leaf in enumerate(leaves)}
  if samplers.gmm is not None:
    arrays |= {f"gmm_{k}": getattr(samplers.gmm, k) for k in _GMM_ARRAYS}
  if samplers.second is not None:
    tree = samplers.second._asdict()
    flat = traverse_util.flatten_dict(tree, sep="/")
    arrays |= {_SECOND_STAGE + k: v for k, v in flat.items()}
  with files.writing(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic(file) as temporary:
      np.savez(temporary, about=json.dumps(samplers.about), **arrays)


def read(
  file: Path, metadata: dict[str, Any], like: Posterior
) -> LatentSamplers | None:
  """Reads samplers; None if missing, damaged or fitted to other weights.

  Args:
    file: written by `save`; may be missing.
    metadata: entries that the file's `about` must contain.
    like: a posterior of the model's family and shapes; values do not matter.
  """
  if not file.is_file():
    return None
  leaves, structure = jax.tree.flatten(like)
  try:
    with file.open("rb") as opened, np.load(opened) as arrays:
      about = json.loads(str(arrays["about"]))
      required = metadata | {"format": FORMAT}
      if any(about.get(k) != v for k, v in required.items()):
        _log.warning("%s was fitted to other weights; it is not used.", file)
        return None
      population = [arrays[f"population_{i}"] for i in range(len(leaves))]
      if any(
        array.shape[1:] != leaf.shape[1:]
        for array, leaf in zip(population, leaves, strict=True)
      ):
        raise ValueError("its arrays do not have the shapes of this model")
      parts = {
        k: arrays[f"gmm_{k}"] for k in _GMM_ARRAYS if f"gmm_{k}" in arrays
      }
      gmm = _restore_mixture(about, parts) if parts else None
      second = _restore_second_stage(arrays)
  except Exception as e:  # a damaged zip fails in many ways
    _log.warning("%s is damaged (%s); it is not used.", file, e)
    return None
  population = jax.tree.unflatten(structure, population)
  return LatentSamplers(about, population, gmm, second)


def _restore_second_stage(
  arrays: Mapping[str, np.ndarray],
) -> two_stage.Fitted | None:
  """Rebuilds the second stage from its arrays, if there are any."""
  flat = {
    k.removeprefix(_SECOND_STAGE): arrays[k]
    for k in arrays
    if k.startswith(_SECOND_STAGE)
  }
  if not flat:
    return None
  return two_stage.Fitted(**traverse_util.unflatten_dict(flat, sep="/"))


def _restore_mixture(
  about: dict[str, Any], parts: dict[str, np.ndarray]
) -> Any:
  """Rebuilds the fitted mixture from its arrays."""
  from sklearn.mixture import GaussianMixture  # noqa: PLC0415

  gmm = GaussianMixture(
    about["components"], covariance_type=about["covariance"]
  )
  for name in _GMM_ARRAYS:
    setattr(gmm, name, parts[name])
  return gmm

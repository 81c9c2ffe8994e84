"""Where latents come from besides the prior: fitted after training, and kept.

    population   z ~ q(z | x_i) of a random training image i
    gmm          z of a Gaussian mixture fitted to such z (Ghosh et al.,
                 arXiv:1903.12436, who take 10 components of full covariance)

Both stand in for q(z), which is where the decoder was trained; the prior need
not be there. The mixture is fitted to draws, not to means: their spread is
q(z)'s, of which the means lack the posteriors' own variance.
"""

import dataclasses
import hashlib
import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gamix_jax import files
from gamix_jax.errors import UserError
from gamix_jax.posterior import Posterior

FORMAT = 1
COMPONENTS = 10  # arXiv:1903.12436, appendix
BY_BIC = (1, 2, 4, 8, 16, 32)  # numbers of components that are tried
# A full covariance of d latents is taken from this times d images on; with
# fewer a component, the mixture gets diagonal ones.
IMAGES_PER_DIMENSION = 2
_ARRAYS = ("weights_", "means_", "covariances_", "precisions_cholesky_")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LatentSamplers:
  """What was fitted to a model's codes of some images.

  Attributes:
    about: of which weights and images, and how.
    population: the posteriors of those images.
    gmm: a fitted `sklearn.mixture.GaussianMixture`; None for counts.
  """

  about: dict[str, Any]
  population: Posterior
  gmm: Any


def fit(
  q: Posterior, seed: int, components: int | str, of: dict[str, Any]
) -> LatentSamplers:
  """Fits both.

  Args:
    q: posteriors of n training images.
    seed: of the draws, one an image, and of the mixture's start.
    components: of the mixture; "bic" for the number of `BY_BIC` with the least
      Bayesian information criterion. Each has a full covariance where there
      are 2 d images for it, else a diagonal one.
    of: what else is to be kept in `about`.

  Raises:
    UserError: components is no such number, or there are fewer images.
  """
  n = len(q.mean())
  several = components == "bic"
  if not several and (not isinstance(components, int) or components < 1):
    raise UserError(
      f"components={components!r} is neither a number from 1 on nor 'bic'."
    )
  if n < 2:
    raise UserError("Samplers cannot be fitted to one image; 2 or more are.")
  if not several and n < components:
    raise UserError(
      f"A mixture of components={components} cannot be fitted to {n} images; "
      "give more images, or fewer components."
    )
  about = {**of, "format": FORMAT, "images": n, "seed": seed}
  population = jax.tree.map(np.asarray, q)
  if q.discrete:  # counts, which no Gaussian mixture makes
    return LatentSamplers(about, population, None)
  z = draw_population(q, jax.random.key(seed), None)
  tried = [k for k in BY_BIC if 2 * k <= n] if several else [components]
  fitted = [_mixture(z, k, seed) for k in tried]
  gmm = min(fitted, key=lambda m: m.bic(z)) if several else fitted[0]
  about |= {
    "components": gmm.n_components,
    "covariance": gmm.covariance_type,
    "chosen_by": "bic" if several else "number",
  }
  return LatentSamplers(about, population, gmm)


def _mixture(z: np.ndarray, components: int, seed: int) -> Any:
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
  q: Posterior, key: jax.Array, n: int | None, temperature: float = 1.0
) -> np.ndarray:
  """z [n, d] of n random ones of the posteriors; None: of each of them, one.

  A posterior's component is drawn by its weight; the draw's distance from the
  component's mean is multiplied by the temperature.
  """
  return np.asarray(_of_population(q, key, temperature, n=n))


@partial(jax.jit, static_argnames="n")
def _of_population(
  q: Posterior, key: jax.Array, temperature: float, *, n: int | None
) -> jax.Array:
  image_key, draw_key, component_key = jax.random.split(key, 3)
  if n is not None:
    chosen = jax.random.randint(image_key, (n,), 0, len(q.mean()))
    q = jax.tree.map(lambda leaf: leaf[chosen], q)
  z, w = q.sample(draw_key, 1)  # a stratum for each component
  _, mu, _ = q.components()
  component = jax.random.categorical(component_key, jnp.log(w), axis=0)
  rows = jnp.arange(z.shape[1])
  z, mu = z[component, rows], mu[rows, component]
  # z itself at 1, so that counts stay counts.
  return jnp.where(temperature == 1, z, mu + temperature * (z - mu))


def draw_gmm(
  gmm: Any, key: jax.Array, n: int, temperature: float = 1.0
) -> np.ndarray:
  """z [n, d] of the mixture, its components' spread times the temperature."""
  from sklearn.mixture import GaussianMixture  # noqa: PLC0415

  rng = np.random.RandomState(np.asarray(jax.random.key_data(key)).ravel())
  cooled = GaussianMixture(gmm.n_components, random_state=rng)
  cooled.covariance_type = gmm.covariance_type
  cooled.weights_, cooled.means_ = gmm.weights_, gmm.means_
  cooled.precisions_cholesky_ = gmm.precisions_cholesky_
  cooled.covariances_ = gmm.covariances_ * temperature**2
  z, _ = cooled.sample(n)
  return rng.permutation(z)  # they come sorted by component


# ---------------------------------------------------------- kept in a workdir


def path(folder: Path, which: str, step: int) -> Path:
  """Where the samplers of these weights are kept."""
  return folder / "samplers" / f"{which}_{step}.npz"


def digest(weights: Any) -> str:
  """A name for a model's weights, made of all their numbers."""
  h = hashlib.sha256()
  for leaf in jax.tree.leaves(jax.device_get(weights)):
    h.update(np.ascontiguousarray(leaf))
  return h.hexdigest()[:16]


def save(file: Path, samplers: LatentSamplers) -> None:
  """Writes samplers as .npz, complete or not at all.

  Raises:
    UserError: the file cannot be written.
  """
  leaves = jax.tree.leaves(samplers.population)
  arrays = {f"population_{i}": leaf for i, leaf in enumerate(leaves)}
  if samplers.gmm is not None:
    arrays |= {f"gmm_{k}": getattr(samplers.gmm, k) for k in _ARRAYS}
  with files.writing(file):
    file.parent.mkdir(exist_ok=True)
    with files.atomic(file) as temporary:
      np.savez(temporary, about=json.dumps(samplers.about), **arrays)


def read(
  file: Path, of: dict[str, Any], like: Posterior
) -> LatentSamplers | None:
  """The samplers of a file; None if it holds none of these weights.

  Args:
    file: as `save` wrote it; there may be none.
    of: what its `about` has to say.
    like: a posterior of this family, of any arrays.
  """
  if not file.is_file():
    return None
  leaves, structure = jax.tree.flatten(like)
  try:
    with file.open("rb") as opened, np.load(opened) as arrays:
      about = json.loads(str(arrays["about"]))
      wanted = of | {"format": FORMAT}
      if any(about.get(k) != v for k, v in wanted.items()):
        _log.warning("%s is of other weights; it is not used.", file)
        return None
      found = [arrays[f"population_{i}"] for i in range(len(leaves))]
      if any(
        f.shape[1:] != leaf.shape[1:]
        for f, leaf in zip(found, leaves, strict=True)
      ):
        raise ValueError("its arrays are not of this model's latents")
      parts = {k: arrays[f"gmm_{k}"] for k in _ARRAYS if f"gmm_{k}" in arrays}
      gmm = _fitted(about, parts) if parts else None
  except Exception as e:  # a damaged zip fails in many ways
    _log.warning("%s is damaged (%s); it is not used.", file, e)
    return None
  return LatentSamplers(about, jax.tree.unflatten(structure, found), gmm)


def _fitted(about: dict[str, Any], parts: dict[str, np.ndarray]) -> Any:
  """The mixture of its arrays."""
  from sklearn.mixture import GaussianMixture  # noqa: PLC0415

  gmm = GaussianMixture(
    about["components"], covariance_type=about["covariance"]
  )
  for name in _ARRAYS:
    setattr(gmm, name, parts[name])
  return gmm

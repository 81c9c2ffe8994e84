"""What is measured of a trained model."""

from collections.abc import Sequence

import jax
import numpy as np

from benchmarks.population.images import Images
from gamix_jax import metrics, pictures
from gamix_jax.inference import Model

SAMPLES_KEY, SURGERY_KEY = 20, 21  # the same for every run
FITTED_TO = 10_000  # training images that samplers are fitted to, at most
SHOWN = 16  # images of each kind in a picture

Numbers = dict[str, float]


class Judge:
  """Measures models against held-out images."""

  def __init__(
    self,
    features: metrics.classifier_features,
    held_out: Images,
    train: Images,
  ):
    """Computes the features of the held-out images.

    Args:
      features: of images.
      held_out: that models are judged on.
      train: that samplers are fitted to.
    """
    self._features, self._held_out = features, held_out
    self._train = train.x[:FITTED_TO]
    self._x = pictures.to_float(held_out.x)
    self._real = features(self._x)

  def __call__(
    self, model: Model, sources: Sequence[str], complete: bool
  ) -> tuple[Numbers, np.ndarray]:
    """Measures a model.

    Args:
      model: as trained.
      sources: of latents that samples are judged from: prior, gmm, two_stage.
      complete: whether precision, recall, density and coverage of samples and
        the numbers of the codes are measured, too.

    Returns:
      The numbers, and reconstructions above samples from the first source, a
      picture.
    """
    n = len(self._held_out)
    q = model.encode(self._held_out.x)
    made, features = self._decoded(model, np.asarray(q.mean()))
    numbers = {
      "mae": float(np.abs(made - self._x).mean(dtype=np.float64)),
      "fd_reconstructions": metrics.frechet_distance(features, self._real),
    }
    rows = [self._x[:SHOWN], made[:SHOWN]]
    if set(sources) - {"prior"}:
      model.fit_samplers(self._train, two_stage="two_stage" in sources)
    for source in sources:
      z = model.draw_latents(jax.random.key(SAMPLES_KEY), n, source=source)
      made, features = self._decoded(model, z)
      numbers[f"fd_{source}"] = metrics.frechet_distance(features, self._real)
      rows.append(made[:SHOWN])
      if complete:
        found = metrics.prdc(self._real, features)
        numbers |= {f"{k}_{source}": v for k, v in found.items()}
    if complete:
      numbers |= _of_codes(q)
    return numbers, pictures.grid(np.concatenate(rows), SHOWN)

  def _decoded(
    self, model: Model, z: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Decodes latents to images of 8 bits; returns them and their features."""
    x = pictures.to_float(pictures.to_uint8(model.decode(z)))
    return x, self._features(x)


def _of_codes(q) -> Numbers:
  """The population's KL, and how many latents are used."""
  mean, var = np.asarray(q.mean()), np.asarray(metrics.total_variance(q))
  numbers = {
    "active_units": metrics.latent_report(mean, var)["active_units"],
    "population_kl_gaussian": metrics.population_kl_gaussian(mean, var),
  }
  if q.has_density:
    found = metrics.surgery(q, jax.random.key(SURGERY_KEY))
    names = ("kl", "mutual_information", "population_kl")
    numbers |= {name: found[name] for name in names}
  return numbers

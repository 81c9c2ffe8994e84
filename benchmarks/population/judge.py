"""What is measured of a trained model."""

from collections.abc import Sequence

import jax
import numpy as np

from benchmarks.population.images import Images
from gamix_jax import metrics, pictures
from gamix_jax.inference import Model

SAMPLES_KEY, SURGERY_KEY = 20, 21  # the same for every run
FITTED_TO = 10_000  # training images of samplers and probes, at most
SHOWN = 16  # images of each kind in a picture

Numbers = dict[str, float]


class Judge:
  """Measures models against held-out images."""

  def __init__(
    self,
    features: metrics.classifier_features,
    held_out: Images,
    train: Images,
    inception: metrics.inception_features | None = None,
  ):
    """Computes the features of the held-out images.

    Args:
      features: of images.
      held_out: that models are judged on.
      train: that samplers and probes are fitted to.
      inception: for a FID of complete judgements; None: there is none.
    """
    self._held_out = held_out
    self._train = Images(train.x[:FITTED_TO], train.labels[:FITTED_TO])
    self._x = pictures.to_float(held_out.x)
    self._features = {"fd": features}
    if inception is not None:
      name = "fid" if inception.official else f"fd_{inception.name}"
      self._features[name] = inception
    self._real = {k: f(self._x) for k, f in self._features.items()}

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
    made = _decoded(model, np.asarray(q.mean()))
    error = np.abs(made - self._x).mean(dtype=np.float64)
    numbers = {"mae": float(error)}
    numbers |= self._distances("reconstructions", made, complete)[0]
    rows = [self._x[:SHOWN], made[:SHOWN]]
    if set(sources) - {"prior"}:
      model.fit_samplers(self._train.x, two_stage="two_stage" in sources)
    for source in sources:
      z = model.draw_latents(jax.random.key(SAMPLES_KEY), n, source=source)
      made = _decoded(model, z)
      distances, features = self._distances(source, made, complete)
      numbers |= distances
      rows.append(made[:SHOWN])
      if complete:
        found = metrics.prdc(self._real["fd"], features)
        numbers |= {f"{k}_{source}": v for k, v in found.items()}
    if complete:
      numbers |= _of_codes(q) | self._probes(model, np.asarray(q.mean()))
    return numbers, pictures.grid(np.concatenate(rows), SHOWN)

  def _probes(self, model: Model, codes: np.ndarray) -> Numbers:
    """How well labels can be predicted from the posterior's mean."""
    train = np.asarray(model.encode(self._train.x).mean())
    arrays = train, self._train.labels, codes, self._held_out.labels
    return {
      "linear_probe": metrics.linear_probe(*arrays).value,
      "knn": metrics.knn(*arrays).value,
    }

  def _distances(
    self, kind: str, x: np.ndarray, complete: bool
  ) -> tuple[Numbers, np.ndarray]:
    """Frechet distances of images, and their classifier features."""
    names = list(self._features) if complete else ["fd"]
    features = {name: self._features[name](x) for name in names}
    return {
      f"{name}_{kind}": metrics.frechet_distance(v, self._real[name])
      for name, v in features.items()
    }, features["fd"]


def _decoded(model: Model, z: np.ndarray) -> np.ndarray:
  """Decodes latents to images of 8 bits, in [-1, 1]."""
  return pictures.to_float(pictures.to_uint8(model.decode(z)))


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

"""The measurements of a model: `evaluate` takes all, `compare` some of them."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import numpy as np

from gamix_jax import metrics, occlusion, pictures
from gamix_jax.errors import UserError
from gamix_jax.evaluate import completions
from gamix_jax.evaluate.eval_inputs import EvalInputs, ImageStats
from gamix_jax.evaluate.results import Results
from gamix_jax.inference.fitting import FITTED
from gamix_jax.inference.model import SCORES
from gamix_jax.inference.samplers import COMPONENTS
from gamix_jax.metrics.distances import NEIGHBOURS

PIXELS = "8 bits a channel"
# For the pieces of the KL every draw is compared with every posterior.
SURGERY_IMAGES = 2_000
# Samples whose mean sharpness is so many times that of images have noise.
NOISY = 1.25
# Keys of the random draws; the sources of samples have 0, 1, ...
BOUNDS_KEY, SURGERY_KEY, COMPLETIONS_KEY = 10, 11, 12
# Why a Bernoulli likelihood has no bits per dimension.
GREY = (
  "a Bernoulli likelihood is no density of grey levels, so that there are no "
  "bits of them; the nats are of its cross-entropy"
)
BINARY = "of binary pixels nats are compared; these are of discrete data"


class EvalRun:
  """The measurements of one model; each method adds its numbers.

  Attributes:
    inputs: see `EvalInputs`.
    numbers: see `Results`.
    shown: {name of a set of images: the first of them, in [-1, 1]}.
    scores: {anomaly score: (of known images, of unseen classes)}.
    warnings: what a reader should not overlook.
  """

  def __init__(
    self, inputs: EvalInputs, say: Callable[[str], None] = lambda line: None
  ):
    """Measures nothing yet; `say` gets a line for each part."""
    self.inputs, self._say = inputs, say
    self.numbers = Results(inputs.protocol)
    self.shown: dict[str, np.ndarray] = {}
    self.scores: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    self.warnings: list[str] = []

  # --- pictures ------------------------------------------------------------

  @cached_property
  def _real(self) -> ImageStats:
    return self.inputs.image_stats(self.inputs.images.x)

  def reconstructions(self) -> None:
    """Errors of what the posterior's mean decodes to, and its distance."""
    inputs, numbers = self.inputs, self.numbers
    x = inputs.images.x
    self._say(f"reconstructions of {len(x):,} images")
    mean = np.asarray(inputs.q.mean())
    of = {"images": len(x), "decoded": "the posterior's mean"}
    functions = dict(
      mae=metrics.absolute_error, psnr=metrics.psnr, ssim=metrics.ssim
    )
    if min(x.shape[1:3]) < metrics.SSIM_WINDOW:
      del functions["ssim"]
      numbers.missing(["ssim"], "images under SSIM's window of 11x11", **of)
    each: dict[str, list[np.ndarray]] = {name: [] for name in functions}

    def reconstruct(rows):
      x_hat = inputs.model.decode(mean[rows])
      original = pictures.to_float(x[rows])
      for name, function in functions.items():
        each[name].append(function(original, x_hat))
      return x_hat

    made = inputs.image_stats((len(x), reconstruct))
    for name, parts in each.items():
      value = metrics.mean_and_error(np.concatenate(parts))
      numbers.add(name, value, **of, pixels="not rounded")
    self._sharpness("images", self._real)
    self._sharpness("reconstructions", made)
    self.shown |= {"originals": self._real.first, "reconstructions": made.first}
    self._distances("reconstructions", made, pixels=PIXELS)

  def samples(self, source: str, z: np.ndarray, **own: Any) -> None:
    """Sharpness and distances of what latents [n, d] decode to.

    Args:
      source: of the latents, for the numbers' names.
      z: the latents.
      **own: the protocol of these numbers.
    """
    made = self.inputs.image_stats(
      (len(z), lambda rows: self.inputs.model.decode(z[rows]))
    )
    self._sharpness(source, made)
    sharpness = made.sharpness.mean(), self._real.sharpness.mean()
    self.warnings += noisy_samples(source, *sharpness)
    self.shown[source] = made.first
    self._distances(source, made, pixels=PIXELS, **own)

  def _sharpness(self, kind: str, images: ImageStats) -> None:
    name = f"sharpness_{kind}"
    if np.isnan(images.sharpness).all():
      reason = "not defined: images under the Laplacian's 3x3"
      self.numbers.missing([name], reason, pixels=PIXELS)
      return
    value = metrics.mean_and_error(images.sharpness)
    n = len(images.sharpness)
    self.numbers.add(name, value, images=n, pixels=PIXELS)

  def _distances(self, kind: str, made: ImageStats, **own: Any) -> None:
    """To the held-out images; of reconstructions the Frechet distance alone."""
    features, numbers = self.inputs.features, self.numbers
    own = features.protocol | own
    frechet, kernel, *shares = self._distance_names(kind)
    paired = kind == "reconstructions"
    a, b = self._real.features, made.features
    if b is None:
      names = [frechet] if paired else [frechet, kernel, *shares]
      numbers.missing(names, features.reason, **own)
      return
    own |= {"images": len(b), "against images": len(a)}
    own["against"] = f"{self.inputs.split} images"

    def frechet_distance():
      numbers.add(frechet, metrics.frechet_distance(a, b), **own)

    def kernel_distance():
      value = metrics.kernel_distance(a, b)
      numbers.add(kernel, value, kernel="cubic, all pairs", **own)

    def neighbours():
      for share, value in metrics.prdc(a, b, NEIGHBOURS).items():
        numbers.add(f"{share}_{kind}", value, neighbours=NEIGHBOURS, **own)

    numbers.attempt([frechet], frechet_distance, **own)
    if not paired:
      numbers.attempt([kernel], kernel_distance, **own)
      numbers.attempt(shares, neighbours, **own)

  def _distance_names(self, kind: str) -> list[str]:
    features = self.inputs.features
    shares = ("precision", "recall", "density", "coverage")
    return [f"{k}_{kind}" for k in (features.fd, features.kd, *shares)]

  def all_samples(self) -> None:
    """As many samples of every source as there are images."""
    inputs, n = self.inputs, len(self.inputs.images)
    if inputs.features.extract:
      self.warnings += few_images(n)
    self._say(f"{len(inputs.train):,} training images")
    if len(inputs.train) >= n:  # how far real images are from real ones
      real = inputs.image_stats(inputs.train.x[:n])
      self._distances("training_images", real, pixels=PIXELS)
    fitted, refused = self._fit_samplers()
    for i, source in enumerate(inputs.settings.sources):
      self._say(f"{n:,} samples, source {source}")
      own = {"sampler": source, "temperature": 1.0}
      if source in FITTED and fitted:
        own["sampler fitted to images"] = fitted["images"]
      if source == "gmm" and fitted and "components" in fitted:
        own["components"] = fitted["components"]
        own["covariance"] = fitted["covariance"]
      if source == "two_stage" and fitted and "two_stage_steps" in fitted:
        own["steps of the second VAE"] = fitted["two_stage_steps"]
      try:
        z = inputs.model.draw_latents(inputs.key(i), n, source=source)
      except UserError as e:
        names = [f"sharpness_{source}", *self._distance_names(source)]
        self.numbers.missing(names, refused or str(e), pixels=PIXELS, **own)
        continue
      self.samples(source, z, **own)

  def _fit_samplers(self) -> tuple[dict[str, Any] | None, str]:
    """What is fitted to training images, and why it could not be done."""
    model, train = self.inputs.model, self.inputs.train
    seed = self.inputs.settings.seed
    second = "two_stage" in self.inputs.settings.sources
    second = second and not model.spec.vae.posterior_type.discrete
    found = model.fitted
    complete = found is not None and (not second or "two_stage_steps" in found)
    if complete and found["seed"] == seed:
      return found, ""
    # Of fewer images than components the mixture is one Gaussian.
    components = COMPONENTS if len(train) >= COMPONENTS else 1
    try:
      return model.fit_samplers(
        train.x, seed=seed, components=components, two_stage=second
      ), ""
    except UserError as e:
      return model.fitted, str(e)

  # --- densities -----------------------------------------------------------

  def bounds(self) -> None:
    """The ELBO and the importance-weighted bound of ln p(x)."""
    inputs, settings = self.inputs, self.inputs.settings
    x = inputs.images.x[: settings.bound_images]
    own = {
      "images": len(x),
      "draws": settings.draws,
      "likelihood": inputs.likelihood,
    }
    self._say(f"bounds of ln p(x): {len(x):,} images, {settings.draws} draws")
    bits = ["elbo_bits_per_dim", "iwae_bits_per_dim"]

    def measure():
      found = inputs.model.bounds(x, settings.draws, inputs.key(BOUNDS_KEY))
      continuous = inputs.model.spec.image.likelihood.continuous
      dims = int(np.prod(x.shape[1:]))
      for name, each in found.items():
        self.numbers.add(name, metrics.mean_and_error(each), **own)
        if continuous:
          value = metrics.mean_and_error(metrics.bits_per_dim(each, dims))
          self.numbers.add(f"{name}_bits_per_dim", value, **own)
      if not continuous:
        binary = inputs.model.config.data.binarize != "none"
        self.numbers.missing(bits, BINARY if binary else GREY, **own)

    self.numbers.attempt(["elbo", "iwae", *bits], measure, **own)

  @property
  def standard_prior(self) -> bool:
    """Whether the prior is N(0, I)."""
    vae = self.inputs.model.spec.vae
    family = vae.posterior_type
    return vae.prior is None and family.standard_normal_prior

  @cached_property
  def moments(self) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each image's posterior, [n, d], float64."""
    q = self.inputs.q
    mean, var = q.mean(), metrics.total_variance(q)
    return np.asarray(mean, np.float64), np.asarray(var, np.float64)

  def latents(
    self, key: jax.Array, at_most: int | None = SURGERY_IMAGES
  ) -> None:
    """What the codes use, and the pieces of the KL.

    Args:
      key: of the draws for these pieces, one an image.
      at_most: the first so many images have draws; None is all.
    """
    self._say("the latents")
    self._units()
    if self.standard_prior:
      self._gaussian_kl()
    q, model = self.inputs.q, self.inputs.model
    if not q.has_finite_elbo:
      pieces = ["kl", "mutual_information", "population_kl"]
      reason = "the family's densities give no finite KL"
      self.numbers.missing(pieces, reason)
      return
    n = min(len(self.inputs.images), at_most or len(self.inputs.images))
    q = jax.tree.map(lambda leaf: leaf[:n], q)
    gaussian = self.standard_prior and model.config.posterior.name in (
      "gaussian",
      "mixture",
    )
    found = metrics.surgery(
      q,
      key,
      log_prior=model.with_prior(q).log_prior,
      gaussian_components=gaussian,
    )
    for name, value in found.items():
      self.numbers.add(name, value, images=n, draws=1)

  def _units(self) -> None:
    """Of latents, of components, of rates: how many are used."""
    numbers, (mean, var) = self.numbers, self.moments
    own = {"images": len(mean)}
    for name, value in metrics.latent_report(mean, var).items():
      numbers.add(name, value, **own)
    if len(mean) == 1:
      reason = "not defined: the means of one image do not vary"
      numbers.missing(["active_units"], reason, **own)
    weights, _, each_var = self.inputs.q.components()
    if weights.shape[1] > 1:
      for name, value in metrics.mixture_report(weights, each_var).items():
        numbers.add(name, value, **own)
    if self.inputs.q.discrete:
      for name, value in metrics.sparseness(mean).items():
        if np.isfinite(value):
          numbers.add(name, value, **own)
          continue
        reason = "not defined of one latent, one image, or rates of 0 alone"
        numbers.missing([name], reason, **own)

  def _gaussian_kl(self) -> None:
    """Of the Gaussian with the population's moments, if they have full rank."""
    name, (n, d) = "population_kl_gaussian", self.moments[0].shape
    if n > d:
      value = metrics.population_kl_gaussian(*self.moments)
      self.numbers.add(name, value, images=n)
      return
    reason = "not defined: the covariance needs more images than latents, and "
    reason += f"there are {n} images and {d} latents"
    if self.inputs.images.total > d:
      reason += f"; raise eval.images to {d + 1} or more"
    self.numbers.missing([name], reason, images=n)

  # --- incomplete images ---------------------------------------------------

  def completions(self) -> None:
    """Of a model with `data.occlude`: draws of what it did not see."""
    inputs = self.inputs
    if inputs.model.spec.occlude == occlusion.NONE:
      return
    self._say("completions of what the encoder does not see")
    key = inputs.key(COMPLETIONS_KEY)
    completions.measure(inputs, key, self.numbers)

  # --- uses of the codes ---------------------------------------------------

  def anomalies(self) -> None:
    """How well anomaly scores detect classes that were not trained on."""
    inputs = self.inputs
    names = [f"auroc_{score}" for score in SCORES]
    if not inputs.excluded or inputs.unseen is None:
      reason = "not defined: no class was held out of the training (config key "
      reason += "data.exclude_labels)"
      if inputs.excluded:
        reason = f"not defined: the {inputs.split} split has no image of the "
        reason += f"excluded classes {', '.join(inputs.excluded)}"
      self.numbers.missing(names, reason)
      return
    known = inputs.images.x[: inputs.settings.bound_images]
    unseen = inputs.unseen.x
    self._say(f"anomaly scores of {len(known):,} and {len(unseen):,} images")
    own = {
      "images": len(known),
      "unseen images": len(unseen),
      "unseen classes": inputs.excluded,
    }
    for name, score in zip(names, SCORES, strict=True):

      def measure(name=name, score=score):
        both = inputs.model.anomaly_score(
          np.concatenate([known, unseen]), score
        )
        pair = both[: len(known)], both[len(known) :]
        self.numbers.add(name, metrics.auroc(*pair), **own)
        self.scores[score] = pair

      self.numbers.attempt([name], measure, **own)

  def probes(self) -> None:
    """How well labels can be predicted from the codes."""
    inputs = self.inputs
    names = ["linear_probe", "knn", "majority_class"]
    labels = inputs.images.labels
    if not inputs.train.labelled or labels.min() < 0:
      self.numbers.missing(names, "the data has no labels of two classes")
      return
    if inputs.split == "train":
      self.numbers.missing(names, "fitted on the training split: judge another")
      return
    train = inputs.train
    codes = np.asarray(inputs.model.encode(train.x).mean())
    self._say(f"probes of the codes of {len(train):,} training images")
    own = {
      "fitted to images": len(train),
      "images": len(labels),
      "codes": "posterior means, standardised",
    }
    test = np.asarray(inputs.q.mean())
    arrays = codes, train.labels, test, labels
    for name, function, how in (
      ("linear_probe", metrics.linear_probe, {"C": 1.0}),
      ("knn", metrics.knn, {"neighbours": NEIGHBOURS}),
    ):

      def measure(name=name, function=function, how=how):
        value, error = function(*arrays)
        error = error if len(labels) > 1 else None  # as of any one image
        self.numbers.add(name, (value, error), **own, **how)

      self.numbers.attempt([name], measure, **own)
    values, counts = np.unique(train.labels, return_counts=True)
    share = float(np.mean(labels == values[counts.argmax()]))
    self.numbers.add("majority_class", share, images=len(labels))


def few_images(n: int) -> list[str]:
  """A warning about the Frechet distances of n images, if they need one."""
  if not 1 < n < metrics.ENOUGH_IMAGES:
    return []
  return [
    f"The Frechet distances are of {n:,} images, under "
    f"{metrics.ENOUGH_IMAGES:,}: they are biased upwards and comparable only "
    "with others of the same count."
  ]


def noisy_samples(source: str, samples: float, images: float) -> list[str]:
  """A warning about samples that are noise, if they seem to be.

  Args:
    source: of the samples' latents.
    samples: their mean sharpness.
    images: that of held-out images; NaN where it is not defined.
  """
  if not samples > NOISY * images:
    return []
  return [
    f"Samples ({source}) vary more from pixel to pixel than images do: "
    f"sharpness {samples:.2g} against {images:.2g}. They may be noise, which "
    "distances and shares of a classifier's features can miss: look at them."
  ]


def evaluate(
  inputs: EvalInputs, say: Callable[[str], None] = lambda line: None
) -> EvalRun:
  """All measurements; `say` gets a line for each part."""
  run = EvalRun(inputs, say)
  run.reconstructions()
  run.all_samples()
  run.bounds()
  run.latents(inputs.key(SURGERY_KEY))
  run.completions()
  run.anomalies()
  run.probes()
  return run

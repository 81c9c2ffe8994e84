"""What is measured of a subject."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gamix_jax import metrics
from gamix_jax.errors import UserError
from gamix_jax.evaluate.eval_inputs import EvalInputs, ImageStats, slices
from gamix_jax.evaluate.results import Results
from gamix_jax.inference.samplers import COMPONENTS
from gamix_jax.metrics.distances import NEIGHBOURS

PICTURES = "8 bits a channel"
SCORES = ("reconstruction", "elbo", "population")
# For the pieces of the KL every draw is held against every posterior.
SURGERY_IMAGES = 2_000


class EvalRun:
  """Numbers, and what the pictures are made of.

  Attributes:
    numbers: see `Results`.
    shown: {name of a set of images: the first of them, in [-1, 1]}.
    scores: {anomaly score: (of known, of odd images)}.
    warnings: what a reader should not overlook.
  """

  def __init__(self, subject: EvalInputs, say: Callable[[str], None]):
    """Measures all; `say` is told what, as it goes."""
    self.subject, self._say = subject, say
    self.numbers = Results(subject.protocol)
    self.shown: dict[str, np.ndarray] = {}
    self.scores: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    self.warnings: list[str] = []
    n = len(subject.images)
    self._all = {"images": n}
    self._name_features()
    real = self._reconstructions()
    self._samples(real)
    self._bounds()
    self._latent()
    self._anomaly()
    self._probes()

  # --- pictures ------------------------------------------------------------

  def _name_features(self) -> None:
    subject = self.subject
    self._say("features")
    try:
      features = subject.features
    except UserError as e:
      if subject.settings.features != "auto":
        raise  # what was asked for is not to be
      subject.features = None
      self.features, self._no_features = {}, str(e)
      self.fd = lambda kind: f"fd_{kind}"
      self.kd = lambda kind: f"kd_{kind}"
      return
    if subject.settings.inception_weights:
      of = {"resize": "299x299, as TensorFlow 1 did"}
    else:
      of = {"resize": "none"}
    if (sha256 := getattr(features, "sha256", None)) is not None:
      of["sha256"] = sha256
    if hasattr(features, "accuracy"):
      of["classes"] = len(np.unique(subject.train.labels))
      of["trained on images"] = len(subject.train)
      if subject.images.labels.min() >= 0:
        right = sum(
          features.accuracy(
            subject.images.x[rows] / 127.5 - 1, subject.images.labels[rows]
          )
          * (rows.stop - rows.start)
          for rows in slices(len(subject.images))
        )
        of["accuracy"] = round(right / len(subject.images), 4)
    self.features = {"features": features.name} | {
      f"features, {k}": v for k, v in of.items()
    }
    official = getattr(features, "official", False)
    short = "" if official else f"_{features.name}"
    self.fd = lambda kind: f"{'fid' if official else 'fd'}{short}_{kind}"
    self.kd = lambda kind: f"{'kid' if official else 'kd'}{short}_{kind}"
    self._no_features = ""

  def _reconstructions(self) -> ImageStats:
    subject, numbers = self.subject, self.numbers
    x = subject.images.x
    self._say(f"reconstructions of {len(x):,} images")
    mean = np.asarray(subject.q.mean())
    of = {"images": len(x), "decoded": "the posterior's mean"}
    each: dict[str, list[np.ndarray]] = {"mae": [], "psnr": [], "ssim": []}
    functions = dict(
      mae=metrics.absolute_error, psnr=metrics.psnr, ssim=metrics.ssim
    )
    units = {"mae": "of [-1, 1]", "psnr": "dB", "ssim": ""}

    def made(rows):
      x_hat = subject.model.decode(mean[rows])
      original = np.asarray(x[rows], np.float32) / 127.5 - 1
      for name, parts in each.items():
        if name == "ssim" and min(original.shape[1:3]) < metrics.SSIM_WINDOW:
          continue
        parts.append(functions[name](original, x_hat))
      return x_hat

    seen = subject.look((len(x), made))
    real = subject.look(x)
    for name, parts in each.items():
      if parts:
        value = metrics.mean_and_error(np.concatenate(parts))
        numbers.add(name, value, units[name], **of, pixels="not rounded")
      else:
        numbers.missing([name], "images under SSIM's window of 11x11", **of)
    self._sharpness("images", real)
    self._sharpness("reconstructions", seen)
    self.shown |= {"originals": real.shown, "reconstructions": seen.shown}
    self._distance("reconstructions", real, seen, pixels=PICTURES)
    return real

  def _sharpness(self, kind: str, seen: ImageStats) -> None:
    name = f"sharpness_{kind}"
    if np.isnan(seen.sharpness).all():
      reason = "not defined: images under the Laplacian's 3x3"
      self.numbers.missing([name], reason, pixels=PICTURES)
      return
    self.numbers.add(
      name,
      metrics.mean_and_error(seen.sharpness),
      "of [0, 1], squared",
      images=len(seen.sharpness),
      pixels=PICTURES,
    )

  def _distance(
    self, kind: str, real: ImageStats, seen: ImageStats, **own: Any
  ) -> None:
    """The Frechet distance, and of what is not paired the others too."""
    paired = kind == "reconstructions"
    own = self.features | own
    names = self._names(kind)
    if seen.features is None:
      names = names[:1] if paired else names
      self.numbers.missing(names, self._no_features, **own)
      return
    a, b = real.features, seen.features
    own |= {"images": len(b), "against images": len(a)}
    own["against"] = f"{self.subject.split} images"
    add, attempt = self.numbers.add, self.numbers.attempt
    name, kernel, *shares = names

    def frechet():
      add(name, metrics.frechet_distance(a, b), "features squared", **own)

    def mean_discrepancy():
      value = tuple(metrics.kernel_distance(a, b))
      add(kernel, value, "", kernel="cubic, all pairs", **own)

    def neighbours():
      for share, value in metrics.prdc(a, b, NEIGHBOURS).items():
        add(f"{share}_{kind}", value, "", neighbours=NEIGHBOURS, **own)

    attempt([name], frechet, **own)
    if not paired:
      attempt([kernel], mean_discrepancy, **own)
      attempt(shares, neighbours, **own)

  def _names(self, kind: str) -> list[str]:
    """Of the distances and shares of a set of images."""
    shares = ("precision", "recall", "density", "coverage")
    return [self.fd(kind), self.kd(kind), *(f"{k}_{kind}" for k in shares)]

  def _samples(self, real: ImageStats) -> None:
    subject, n = self.subject, len(self.subject.images)
    if 1 < n < metrics.ENOUGH_IMAGES and real.features is not None:
      self.warnings.append(
        f"The Frechet distances are of {n:,} images, under "
        f"{metrics.ENOUGH_IMAGES:,}: biased upwards, to be compared with "
        "others of the same count only."
      )
    self._say(f"{len(subject.train):,} training images")
    if len(subject.train) >= n:  # how far real images are from real ones
      seen = subject.look(subject.train.x[:n])
      self._distance("training_images", real, seen, pixels=PICTURES)
    model, seed = subject.model, subject.settings.seed
    fitted, refused = model.fitted, ""
    if fitted is None or fitted["seed"] != seed:
      try:
        # Of fewer images than components the mixture is one Gaussian.
        components = COMPONENTS if len(subject.train) >= COMPONENTS else 1
        fitted = model.fit_samplers(
          subject.train.x, seed=seed, components=components
        )
      except UserError as e:
        refused = str(e)
    for i, source in enumerate(subject.settings.sources):
      self._say(f"{n:,} samples, source {source}")
      own = {"pixels": PICTURES, "sampler": source, "temperature": 1.0}
      if source in ("population", "gmm") and fitted:
        own["sampler fitted to images"] = fitted["images"]
      if source == "gmm" and fitted and "components" in fitted:
        own["components"] = fitted["components"]
        own["covariance"] = fitted["covariance"]
      try:
        z = model.draw_latents(subject.key(i), n, source=source)
      except UserError as e:
        names = [f"sharpness_{source}", *self._names(source)]
        self.numbers.missing(names, refused or str(e), **own)
        continue
      seen = subject.look((n, lambda rows, z=z: model.decode(z[rows])))
      self._sharpness(source, seen)
      self.shown[source] = seen.shown
      self._distance(source, real, seen, **own)

  # --- densities -----------------------------------------------------------

  def _bounds(self) -> None:
    subject, settings = self.subject, self.subject.settings
    x = subject.images.x[: settings.bound_images]
    own = {
      "images": len(x),
      "draws": settings.draws,
      "likelihood": subject.likelihood,
    }
    self._say(f"bounds of ln p(x): {len(x):,} images, {settings.draws} draws")
    bits = ["elbo_bits_per_dim", "iwae_bits_per_dim"]

    def measure():
      found = subject.model.bounds(x, settings.draws, subject.key(10))
      continuous = subject.model.recipe.image.likelihood.continuous
      dims = int(np.prod(x.shape[1:]))
      for name, each in found.items():
        self.numbers.add(name, metrics.mean_and_error(each), "nats", **own)
        if continuous:
          value = metrics.mean_and_error(metrics.bits_per_dim(each, dims))
          self.numbers.add(f"{name}_bits_per_dim", value, "bits", **own)
      if not continuous:
        self.numbers.missing(
          bits,
          "a Bernoulli likelihood is no density of grey levels, so that there "
          "are no bits of them; the nats are of its cross-entropy",
          **own,
        )

    self.numbers.attempt(["elbo", "iwae", *bits], measure, **own)

  def _latent(self) -> None:
    subject, numbers = self.subject, self.numbers
    self._say("the latents")
    q, vae = subject.q, subject.model.recipe.vae
    weights, mu, var = q.components()
    mean = np.asarray(q.mean(), np.float64)
    second = np.sum(weights[..., None] * (np.square(mu) + var), axis=1)
    spread = np.asarray(second, np.float64) - np.square(mean)
    self.moments = mean, spread
    self.standard = (
      vae.prior is None and vae.posterior.posterior_type.standard_normal_prior
    )
    for name, value in metrics.latent_report(mean, spread).items():
      numbers.add(name, value, "", **self._all)
    if len(mean) == 1:
      reason = "not defined: the means of one image do not vary"
      numbers.missing(["active_units"], reason, **self._all)
    if subject.model.recipe.vae.posterior.posterior_type.discrete:
      for name, value in metrics.sparseness(mean).items():
        if np.isfinite(value):
          numbers.add(name, value, "", **self._all)
          continue
        reason = "not defined of one latent, one image, or rates of 0 alone"
        numbers.missing([name], reason, **self._all)
    if self.standard:
      self._gaussian_kl(mean, spread)
    pieces = ["kl", "mutual_information", "population_kl"]
    if not q.has_finite_elbo:
      numbers.missing(pieces, "the family's densities give no finite KL")
      return
    n = min(len(mean), SURGERY_IMAGES)
    own = {"images": n, "draws": 1}
    some = jax.tree.map(lambda leaf: leaf[:n], q)
    gaussian = self.standard and subject.model.config.posterior.name in (
      "gaussian",
      "mixture",
    )
    found = metrics.surgery(
      some,
      subject.key(11),
      log_prior=subject.model._device.with_prior(some).log_prior,
      gaussian_components=gaussian,
    )
    for name, value in found.items():
      numbers.add(name, value, "nats", **own)

  def _gaussian_kl(self, mean: np.ndarray, spread: np.ndarray) -> None:
    """Of the Gaussian with the population's moments, if they have full rank."""
    name, (n, d) = "population_kl_gaussian", mean.shape
    if n > d:
      value = metrics.population_kl_gaussian(mean, spread)
      self.numbers.add(name, value, "nats", **self._all)
      return
    reason = "not defined: the covariance needs more images than latents, and "
    reason += f"there are {n} images and {d} latents"
    if self.subject.images.of > d:
      reason += f"; raise eval.images to {d + 1} or more"
    self.numbers.missing([name], reason, **self._all)

  # --- what codes tell -----------------------------------------------------

  def _anomaly(self) -> None:
    subject = self.subject
    names = [f"auroc_{score}" for score in SCORES]
    if not subject.excluded or subject.odd is None:
      reason = "not defined: no class was held out of the training (config key "
      reason += "data.exclude_labels)"
      if subject.excluded:
        reason = f"not defined: the {subject.split} split has no image of the "
        reason += f"excluded classes {', '.join(subject.excluded)}"
      self.numbers.missing(names, reason)
      return
    known = subject.images.x[: subject.settings.bound_images]
    odd = subject.odd.x
    self._say(f"anomaly scores of {len(known):,} and {len(odd):,} images")
    own = {
      "images": len(known),
      "odd images": len(odd),
      "odd classes": subject.excluded,
    }
    for name, score in zip(names, SCORES, strict=True):

      def measure(name=name, score=score):
        both = subject.model.anomaly_score(np.concatenate([known, odd]), score)
        pair = both[: len(known)], both[len(known) :]
        self.numbers.add(name, tuple(metrics.auroc(*pair)), "", **own)
        self.scores[score] = pair

      self.numbers.attempt([name], measure, **own)

  def _probes(self) -> None:
    subject = self.subject
    names = ["linear_probe", "knn", "majority_class"]
    labels = subject.images.labels
    if not subject.train.labelled or labels.min() < 0:
      self.numbers.missing(names, "the data has no labels of two classes")
      return
    if subject.split == "train":
      self.numbers.missing(names, "fitted on the training split: judge another")
      return
    train, codes = subject.train, subject.train_codes
    self._say(f"probes of the codes of {len(train):,} training images")
    own = {
      "fitted to images": len(train),
      "images": len(labels),
      "codes": "posterior means, standardised",
    }
    test = np.asarray(subject.q.mean())
    arrays = codes, train.labels, test, labels
    for name, function, how in (
      ("linear_probe", metrics.linear_probe, {"C": 1.0}),
      ("knn", metrics.knn, {"neighbours": NEIGHBOURS}),
    ):

      def measure(name=name, function=function, how=how):
        value, error = function(*arrays)
        error = error if len(labels) > 1 else None  # as of any one image
        self.numbers.add(name, (value, error), "", **own, **how)

      self.numbers.attempt([name], measure, **own)
    values, counts = np.unique(train.labels, return_counts=True)
    share = float(np.mean(labels == values[counts.argmax()]))
    self.numbers.add("majority_class", share, "", images=len(labels))

"""The measurements of a model of several modalities.

`evaluate` takes all, `compare` some of them.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from gamix_jax import metrics, modality, train_metrics
from gamix_jax.data.linear_gaussian import LinearGaussian
from gamix_jax.errors import UserError
from gamix_jax.evaluate.multimodal_inputs import MultimodalInputs
from gamix_jax.evaluate.observations import Observations, by_size, joined
from gamix_jax.evaluate.results import Results
from gamix_jax.inference.samplers import COMPONENTS, draw_population

# Keys of the random draws.
TRANSLATIONS_KEY, SAMPLES_KEY, BOUNDS_KEY, CONDITIONAL_KEY = range(4)
SUBSETS = 10  # of a size, at most
SHOWN = 8  # observations in a picture
KEPT = 64  # observations whose translations are kept, to choose from
NO_PRIOR = (
  "the prior of mmvm depends on the data and is none for an observation to "
  "come, so that there is no p(x)"
)
PROBE = "logistic regression, C 1, standardised posterior means"


class _Translated(NamedTuple):
  """Images [n, h, w, c] of observations, and what was made of them."""

  x: dict[str, np.ndarray]
  made: dict[str, np.ndarray]


class MultimodalRun:
  """The measurements of one model; each method adds its numbers.

  Attributes:
    inputs: see `MultimodalInputs`.
    numbers: see `Results`.
    shown: pictures by name: rows of images in [-1, 1], each [SHOWN, h, w, c].
    warnings: what a reader should not overlook.
  """

  def __init__(
    self,
    inputs: MultimodalInputs,
    say: Callable[[str], None] = lambda line: None,
    subsets: int = SUBSETS,
  ):
    """Measures nothing yet; `say` gets a line for each part.

    Args:
      inputs: what is judged.
      say: see above.
      subsets: of a size from 2 on, at most.
    """
    self.inputs, self._say = inputs, say
    self.numbers = Results(inputs.protocol)
    self.shown: dict[str, list[np.ndarray]] = {}
    self.warnings: list[str] = []
    self._translated: dict[str, tuple[np.ndarray, dict[str, np.ndarray]]] = {}
    self._subsets = by_size(inputs.test.names, subsets, inputs.settings.seed)

  @property
  def _modalities(self) -> modality.Modalities:
    return self.inputs.model.spec.modalities

  def _untrained(self, size: int, numbers: Sequence[str]) -> bool:
    """Whether the model cannot encode so many modalities.

    If so, these numbers have the reason in place of a value.
    """
    try:
      self.inputs.model.check_trained(size)
    except UserError as e:
      self.numbers.missing(numbers, str(e))
      return True
    return False

  # --- reconstructions -----------------------------------------------------

  def reconstructions(self) -> None:
    """Errors and likelihoods of what the posterior's mean decodes to."""
    inputs, test = self.inputs, self.inputs.test
    self._say(f"reconstructions of {len(test):,} observations")
    raw = inputs.model.decode(np.asarray(inputs.q.mean()), raw=True)
    weight = inputs.model.config.weights.recon
    of = {"given": "all that is observed", "decoded": "the posterior's mean"}
    total, errors, shown = np.zeros(len(test)), [], []
    for name, m in self._modalities.items():
      rows = test.rows_with([name])
      if not len(rows):
        reason = f"{name} is missing in all observations"
        self.numbers.missing([f"mae/{name}"], reason)
        continue
      x = _as_float(test.x[name][rows])
      x_hat = np.asarray(raw[name])[rows]
      own = of | {"observations": len(rows)}
      for key, each in _reconstruction_errors(m, x, x_hat).items():
        value = metrics.mean_and_error(each)
        self.numbers.add(f"{key}/{name}", value, **own)
        if key == "mae" and m.is_image:
          errors.append(value[0])
      log_prob = np.asarray(m.log_prob(x, x_hat, weight * m.weight))
      total[rows] += log_prob
      self.numbers.add(
        f"reconstruction_log_likelihood/{name}",
        metrics.mean_and_error(log_prob),
        **own,
        likelihood=m.likelihood.describe(m.size, weight * m.weight),
      )
      if m.is_image:
        shown += [x[:SHOWN], _shown(m, x_hat[:SHOWN])]
    if len(errors) == len(self._modalities):
      own = of | {"observations": len(test), "mean over": "modalities"}
      self.numbers.add("mae", float(np.mean(errors)), **own)
    self.numbers.add(
      "reconstruction_log_likelihood",
      metrics.mean_and_error(total),
      **of,
      observations=len(test),
      likelihood=inputs.likelihood,
    )
    if shown:
      self.shown["reconstructions"] = shown

  # --- labels --------------------------------------------------------------

  def probes(self) -> None:
    """How well labels can be predicted from the latents."""
    inputs, names = self.inputs, self.inputs.test.names
    sizes = [f"linear_probe_size/{k}" for k in self._subsets]
    numbers = [*(f"linear_probe/{name}" for name in names), *sizes]
    train, test = inputs.train, inputs.test
    if not train.labelled or test.labels.min() < 0:
      reason = "the data has no labels of two classes"
      self.numbers.missing(numbers, reason)
      return
    if inputs.split == "train":
      reason = "fitted on the training split: judge another"
      self.numbers.missing(numbers, reason)
      return
    values, counts = np.unique(train.labels, return_counts=True)
    share = float(np.mean(test.labels == values[counts.argmax()]))
    self.numbers.add("majority_class", share, observations=len(test))
    if inputs.separate:
      self._separate_probes(sizes)
      return
    for size, subsets in self._subsets.items():
      single = numbers[: len(names)] if size == 1 else []
      if self._untrained(size, [*single, sizes[size - 1]]):
        continue
      self._say(f"probes of the latents given {size}")
      found = {}
      for subset in subsets:
        single = [f"linear_probe/{subset[0]}"] if size == 1 else []

        def measure(subset=subset, single=single, found=found):
          value, own = self._probe(subset, self._codes)
          found[subset] = value[0]
          for name in single:
            self.numbers.add(name, value, **own)

        self.numbers.attempt(single or [sizes[size - 1]], measure)
      if len(found) == len(subsets):
        self.numbers.add(
          sizes[size - 1],
          float(np.mean(list(found.values()))),
          probe=PROBE,
          subsets=[joined(s) for s in subsets],
          **self._probe_rows(),
        )

  def _separate_probes(self, sizes: Sequence[str]) -> None:
    """Every modality's latents depend on that modality alone."""
    self._say("probes of each modality's latents")
    values = []
    for i, name in enumerate(self.inputs.test.names):

      def measure(i=i, name=name):
        value, own = self._probe(
          [name], lambda rows, s, i=i: self._own(rows, s, i)
        )
        values.append(value[0])
        latents = f"those of {name}"
        self.numbers.add(f"linear_probe/{name}", value, latents=latents, **own)

      self.numbers.attempt([f"linear_probe/{name}"], measure)
    if len(values) == len(self.inputs.test.names):
      for name in (sizes[0], sizes[-1]):
        self.numbers.add(
          name,
          float(np.mean(values)),
          probe=PROBE,
          latents="of each modality, which depend on that modality alone",
          **self._probe_rows(),
        )

  def _probe_rows(self) -> dict[str, Any]:
    return {
      "fitted to observations": len(self.inputs.train),
      "observations": len(self.inputs.test),
    }

  def _probe(
    self,
    subset: Sequence[str],
    codes: Callable[[Observations, Sequence[str]], np.ndarray],
  ) -> tuple[tuple[float, float], dict[str, Any]]:
    """A probe's accuracy and error, and its protocol."""
    rows = [o.rows_with(subset) for o in (self.inputs.train, self.inputs.test)]
    if min(map(len, rows)) == 0:
      raise UserError(f"no observation has all of {joined(subset)}")
    arrays = []
    for o, r in zip((self.inputs.train, self.inputs.test), rows, strict=True):
      arrays += [codes(o, subset), o.labels[r]]
    own = {
      "probe": PROBE,
      "fitted to observations": len(rows[0]),
      "observations": len(rows[1]),
    }
    return tuple(metrics.linear_probe(*arrays)), own

  def _codes(self, o: Observations, subset: Sequence[str]) -> np.ndarray:
    """Posterior means [n, d] of those that have all of a subset."""
    rows = o.rows_with(subset)
    return np.asarray(self.inputs.model.encode(o.only(subset, rows)).mean())

  def _own(self, o: Observations, subset: Sequence[str], i: int) -> np.ndarray:
    """The same, of the latents of modality i alone, [n, l]."""
    codes = self._codes(o, subset)
    return codes.reshape(len(codes), len(o.names), -1)[:, i]

  # --- translations --------------------------------------------------------

  def translations(self, each: bool = True, distances: bool = True) -> None:
    """Whether generated modalities have the class of what they are made from.

    Args:
      each: whether every pair has a number of its own, besides the means.
      distances: whether to measure Frechet distances of the pairs of two.
    """
    inputs, names = self.inputs, self.inputs.test.names
    of = inputs.classifiers.of
    for name, classifier in of.items():
      self.numbers.add(
        f"classifier_accuracy/{name}",
        classifier.accuracy,
        **classifier.protocol,
        observations=len(inputs.test.rows_with([name])),
      )
    sizes = [f"coherence_size/{k}" for k in range(1, len(names))]
    if inputs.test.labels.min() < 0 or not of:
      reason = "the data has no labels of two classes"
      if inputs.train.labelled:
        reason = "; ".join(inputs.classifiers.reasons.values()) or reason
      self.numbers.missing([*sizes, "joint_coherence"], reason)
      return
    for reason in inputs.classifiers.reasons.values():
      self.warnings.append(f"No coherence of {reason}.")
    few = 1 < len(inputs.test) < metrics.ENOUGH_IMAGES
    if distances and few and self._features:
      self.warnings.append(
        f"The Frechet distances are of {len(inputs.test):,} observations at "
        f"most, under {metrics.ENOUGH_IMAGES:,}: they are biased upwards and "
        "comparable only with others of the same count."
      )
    for size in range(1, len(names)):
      if self._untrained(size, [f"coherence_size/{size}"]):
        continue
      self._say(f"translations from {size} of {len(names)} modalities")
      found: list[float] = []
      for i, subset in enumerate(self._subsets[size]):
        found += self._translate(subset, i, each, distances and size == 1)
      if found:
        self.numbers.add(
          f"coherence_size/{size}",
          float(np.mean(found)),
          given=[joined(s) for s in self._subsets[size]],
          generated="each modality outside of these, from a draw",
          observations=len(self._rows(self._subsets[size][0])),
        )

  def _rows(self, subset: Sequence[str]) -> np.ndarray:
    """Observations that are translated from a subset."""
    rows = self.inputs.test.rows_with(subset)
    if len(subset) == 1:
      return rows
    return rows[: self.inputs.settings.bound_images]

  def _translate(
    self, subset: Sequence[str], number: int, each: bool, distances: bool
  ) -> list[float]:
    """Adds the numbers of one subset; returns the coherences."""
    inputs, test = self.inputs, self.inputs.test
    rows = self._rows(subset)
    if not len(rows):
      return []
    made = self._generate(subset, rows, number)
    if len(subset) == 1:
      kept = {k: np.asarray(v)[:KEPT] for k, v in made.items()}
      self._translated[subset[0]] = rows[:KEPT], kept
    found = []
    for target, classifier in inputs.classifiers.of.items():
      if target in subset:
        continue
      pair = f"{joined(subset)}->{target}"
      features, classes = classifier.with_features(np.asarray(made[target]))
      right = (classes == test.labels[rows]).astype(np.float64)
      value = metrics.mean_and_error(right)
      found.append(value[0])
      own = {"observations": len(rows), "decoded": "a draw of the posterior"}
      if each:
        self.numbers.add(f"coherence/{pair}", value, **own)
      if distances and features is not None:
        self._distance(target, pair, features)
    return found

  def _distance(self, target: str, pair: str, features: np.ndarray) -> None:
    """The Frechet distance of generated features to those of held-out ones."""
    classifier = self.inputs.classifiers.of[target]
    name = f"fd_{classifier.name}/{pair}"
    real = self._features[target]
    own = dict(classifier.protocol) | {
      "observations": len(features),
      "against": f"{len(real):,} of the {self.inputs.split} split",
    }

    def measure():
      self.numbers.add(name, metrics.frechet_distance(real, features), **own)

    self.numbers.attempt([name], measure, **own)

  @cached_property
  def _features(self) -> dict[str, np.ndarray]:
    """Features of the held-out images of each modality."""
    test = self.inputs.test
    found = {}
    for name, classifier in self.inputs.classifiers.of.items():
      x = test.x[name][test.rows_with([name])]
      features, _ = classifier.with_features(x)
      if features is not None:
        found[name] = features
    return found

  def pictures(self) -> None:
    """Keeps translations from each modality, for a picture."""
    if 1 not in self.inputs.model.trained_sizes:
      return
    shown = []
    for name, m in self._modalities.items():
      translated = self._few(name)
      if m.is_image and len(translated.x):
        shown.append(translated.x[name])
      shown += [v for k, v in translated.made.items() if k != name]
    if shown and len(shown[0]):
      self.shown["translations"] = shown

  def strip(self) -> dict[str, np.ndarray]:
    """Images of the last image modality, for a small picture.

    Returns:
      [n, h, w, c] each, n up to SHOWN: `originals`; `translations` of the same
      observations from one other modality, an image if there is one; `samples`,
      if there are some. Empty without images, with one modality only, or if
      the model cannot encode a single one.
    """
    images = self._images
    others = [*images[:-1], *(k for k in self._modalities if k not in images)]
    if not images or not others or 1 not in self.inputs.model.trained_sizes:
      return {}
    target, translated = images[-1], self._few(others[0])
    if not len(translated.x[target]):
      return {}
    found = {
      "originals": translated.x[target],
      "translations": translated.made[target],
    }
    if "samples" in self.shown:
      found["samples"] = self.shown["samples"][images.index(target)]
    return found

  @property
  def _images(self) -> list[str]:
    """The modalities that are images."""
    return [name for name, m in self._modalities.items() if m.is_image]

  def _few(self, source: str) -> "_Translated":
    """A few observations, and what they are translated to from one modality."""
    if source not in self._translated:
      rows = self._rows([source])[:KEPT]
      self._translated[source] = rows, self._generate([source], rows, 0)
    rows, made = self._translated[source]
    test, images = self.inputs.test, self._images
    columns = [test.names.index(k) for k in images]
    there = np.flatnonzero((test.mask[rows][:, columns] > 0).all(axis=1))
    there = there[:SHOWN]
    return _Translated(
      {k: _as_float(test.x[k][rows[there]]) for k in images},
      {k: np.asarray(made[k])[there] for k in images},
    )

  def _generate(
    self, subset: Sequence[str], rows: np.ndarray, number: int
  ) -> dict[str, np.ndarray]:
    """All modalities of rows, decoded from a draw of q(z | x_subset).

    Args:
      subset: what is given.
      rows: of `test`.
      number: of the subset among those of its size, for the draw's key.
    """
    inputs = self.inputs
    q = inputs.model.encode(inputs.test.only(subset, rows))
    key = inputs.key(TRANSLATIONS_KEY, len(subset), number)
    return inputs.model.decode(draw_population(q, key))

  # --- samples -------------------------------------------------------------

  def samples(self, distances: bool = True) -> None:
    """Whether the modalities of samples have the same class.

    Args:
      distances: whether to measure their Frechet distances.
    """
    inputs, n = self.inputs, len(self.inputs.test)
    self._say(f"{n:,} samples")
    try:
      source, own = self._source()
      z = inputs.model.draw_latents(inputs.key(SAMPLES_KEY), n, source=source)
    except UserError as e:
      self.numbers.missing(["joint_coherence"], str(e))
      return
    made = inputs.model.decode(z)
    if self._images:
      self.shown["samples"] = [made[k][:SHOWN] for k in self._images]
    classes = []
    for name, classifier in inputs.classifiers.of.items():
      features, found = classifier.with_features(np.asarray(made[name]))
      classes.append(found)
      if distances and features is not None:
        self._distance(name, f"{source}->{name}", features)
    if len(classes) < 2:
      reason = "fewer than two modalities have a classifier"
      self.numbers.missing(["joint_coherence"], reason)
      return
    same = np.all(np.stack(classes) == classes[0], axis=0)
    own |= {"samples": n, "classified": list(inputs.classifiers.of)}
    value = metrics.mean_and_error(same.astype(np.float64))
    self.numbers.add("joint_coherence", value, **own)
    value = _effective_classes(np.concatenate(classes))
    self.numbers.add("sample_classes", value, **own)

  def _source(self) -> tuple[str, dict[str, Any]]:
    """Where samples are drawn from, and what the protocol says about it."""
    inputs = self.inputs
    source = inputs.model.default_source
    own: dict[str, Any] = {"sampler": source}
    if source in ("gmm", "population"):
      train = inputs.train
      n = len(train)
      about = inputs.model.fit_samplers(
        inputs.observed(train),
        seed=inputs.settings.seed,
        components=COMPONENTS if n >= COMPONENTS else 1,
      )
      own["sampler fitted to observations"] = about["images"]
      if "components" in about:
        own["components"] = about["components"]
        own["covariance"] = about["covariance"]
    return source, own

  # --- densities -----------------------------------------------------------

  def bounds(self) -> None:
    """The importance-weighted bound of ln p(x), and its exact value."""
    inputs, draws = self.inputs, self.inputs.settings.draws
    test = inputs.test.first(inputs.settings.bound_images)
    own = {
      "observations": len(test),
      "draws": draws,
      "likelihood": inputs.likelihood,
    }
    self._say(f"bounds of ln p(x): {len(test):,} observations, {draws} draws")
    names = ["elbo", "iwae"]
    if not inputs.model.spec.objective.has_prior:
      self.numbers.missing(names, NO_PRIOR, **own)
      return
    if inputs.separate:
      own["prior"] = "N(0, I) of each modality's latents, independent"
    exact = self._exact(test)
    if exact is not None:
      names.append("log_likelihood_gap")
      value = metrics.mean_and_error(exact)
      n = len(test)
      self.numbers.add("exact_log_likelihood", value, observations=n)

    def measure():
      found = inputs.model.bounds(
        inputs.observed(test), draws, inputs.key(BOUNDS_KEY)
      )
      for name, each in found.items():
        self.numbers.add(name, metrics.mean_and_error(each), **own)
      if exact is not None:
        gap = metrics.mean_and_error(exact - found["iwae"])
        self.numbers.add("log_likelihood_gap", gap, **own)

    self.numbers.attempt(names, measure, **own)

  def _exact(self, test: Observations) -> np.ndarray | None:
    """Exact ln p(x) in nats, [n], of data whose law is known."""
    config = self.inputs.model.config
    if not config.data.source.startswith("linear_gaussian"):
      return None
    law = LinearGaussian.of_source(config.data.source)
    n = len(test)
    # Modalities that `data.modalities` leaves out are not observed.
    x = {
      k: test.x.get(k, np.zeros((n, len(w)))) for k, w in law.loadings.items()
    }
    mask = np.zeros((n, len(law.names)))
    for i, name in enumerate(test.names):
      mask[:, law.names.index(name)] = test.mask[:, i]
    return law.log_prob(x, mask)

  def conditional_bounds(self) -> None:
    """Log-likelihoods of each modality given another, and given the rest."""
    inputs, names = self.inputs, self.inputs.test.names
    self._say("conditional log-likelihoods")
    for i, (given, target) in enumerate(_conditions(names)):
      name = f"conditional_log_likelihood/{joined(given)}->{target}"
      rows = inputs.test.rows_with([*given, target])
      rows = rows[: inputs.settings.bound_images]
      own = {
        "observations": len(rows),
        "draws": inputs.settings.draws,
        "likelihood": inputs.likelihood,
      }
      if not len(rows):
        reason = f"no observation has all of {joined([*given, target])}"
        self.numbers.missing([name], reason, **own)
        continue

      def measure(
        name=name, given=given, target=target, rows=rows, own=own, i=i
      ):
        each = inputs.model.log_likelihood(
          inputs.test.only([*given, target], rows),
          inputs.settings.draws,
          given=given,
          of=(target,),
          key=inputs.key(CONDITIONAL_KEY, i),
        )
        self.numbers.add(name, metrics.mean_and_error(each), **own)

      self.numbers.attempt([name], measure, **own)

  # --- latents -------------------------------------------------------------

  def true_sources(self) -> None:
    """How well the latents are the true sources, where these are known."""
    inputs = self.inputs
    if inputs.sources is None:
      return
    codes = np.asarray(inputs.q.mean())
    own = {"observations": len(codes), "latents": "posterior means"}
    for name, function in (
      ("mcc_weak", metrics.mcc_weak),
      ("mcc_strong", metrics.mcc_strong),
    ):

      def measure(name=name, function=function):
        self.numbers.add(name, function(inputs.sources, codes), **own)

      self.numbers.attempt([name], measure, **own)


def _effective_classes(classes: np.ndarray) -> float:
  """exp of the entropy of classes [n]: how many there are, effectively."""
  _, counts = np.unique(classes, return_counts=True)
  share = counts / counts.sum()
  return float(np.exp(-np.sum(share * np.log(share))))


def _conditions(
  names: Sequence[str],
) -> Iterator[tuple[tuple[str, ...], str]]:
  """What is given, and of what the likelihood is: one and the rest."""
  yield from (((a,), b) for a, b in itertools.permutations(names, 2))
  if len(names) > 2:
    yield from ((tuple(n for n in names if n != b), b) for b in names)


def _as_float(x: np.ndarray) -> np.ndarray:
  return np.asarray(modality.to_float(np.asarray(x)), np.float32)


def _shown(m: modality.Modality, x_hat: np.ndarray) -> np.ndarray:
  """The mean of p(x | z) for the decoder's output, as images are shown."""
  mean = np.asarray(m.likelihood.mean(x_hat))
  return np.clip(mean, -1, 1) if m.is_image else mean


def _reconstruction_errors(
  m: modality.Modality, x: np.ndarray, x_hat: np.ndarray
) -> dict[str, np.ndarray]:
  """As `train_metrics.reconstruction`, NumPy arrays [n]."""
  found = train_metrics.reconstruction(m, x, x_hat)
  return {k: np.asarray(v, np.float64) for k, v in found.items()}


def evaluate(
  inputs: MultimodalInputs, say: Callable[[str], None] = lambda line: None
) -> MultimodalRun:
  """All measurements; `say` gets a line for each part."""
  run = MultimodalRun(inputs, say)
  run.reconstructions()
  run.translations()
  run.pictures()
  run.samples()
  run.bounds()
  run.conditional_bounds()
  run.true_sources()
  run.probes()
  return run

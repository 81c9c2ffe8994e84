"""Warns when logged metrics show a problem: GAN, latent codes, or input."""

import collections
import math
from collections.abc import Iterator, Mapping

from gamix_jax import objectives, preset_values
from gamix_jax.config import ConfigDict
from gamix_jax.posterior import POSTERIORS

# Number of reports that a warning is based on, so that one unusual batch does
# not cause one.
WINDOW = 3
BLIND_ACCURACY = 0.55  # chance level is 0.5
SATURATED_ACCURACY = 0.98
# Mean logit of real minus that of fake; the gradient is then about e^-6.
SATURATED_GAP = 6.0
# Steps after the VAE learns from a discriminator with its full weight, before
# the discriminator is judged. An untrained one is blind. One that still trains
# alone (adversarial.gen_delay) or against a small weight (ramp.adversarial) may
# well tell everything apart, since the VAE hardly works against it yet.
SETTLING = 500
COLLAPSED_FRACTION = 0.5
# Terms that widen single posteriors.
WIDENING = ("collapse_penalty", "kl", "kernel", "mutual_information")
# Posterior collapse ("dead" in messages) is checked from step DEAD_AFTER on,
# since codes may become informative until then, and at the end of a shorter run
# of at least DEAD_AT_END steps. Ramps do not delay the check, since codes are
# least constrained while a weight is small. The check continues to the end,
# since codes may collapse as the weight grows.
DEAD_AFTER, DEAD_AT_END = 500, 100
DEAD_KL = 0.5  # nats per image
DEAD_EXPLAINED = 0.05  # fraction of the variance over images that is explained
# Settings that prevent collapse, together with the initial variance and the
# ramp of `preset_values`. None is enough alone. Found on MNIST at 16x16.
RESTART_LEARNING_RATE, RESTART_WARMUP = 2e-3, 50
FAR_BELOW = 20  # times; the published weight is 20 times below our default
# Fraction of the time spent waiting for data: the warning appears above the
# first value and is withdrawn below the second.
WAITING_FRACTION, NOT_WAITING_FRACTION = 0.1, 0.05


class HealthMonitor:
  """Prints each warning once, and again only after its status has changed."""

  def __init__(self, config: ConfigDict, cached: bool = True):
    """Creates a monitor without history.

    Args:
      config: of the run.
      cached: whether decoded images are cached; `data.cache` is then not
        recommended.
    """
    self._config, self._cached = config, cached
    self._window: collections.deque = collections.deque(maxlen=WINDOW)
    self._steps: collections.deque = collections.deque(maxlen=WINDOW)
    self._last: dict[str, str] = {}
    self._skipped = 0.0

  def messages(self, done: int, scalars: Mapping[str, float]) -> list[str]:
    """Returns new messages for the user, given the scalars of step `done`."""
    self._window.append(scalars)
    self._steps.append(done)
    lines = []
    if scalars["nonfinite/total"] > self._skipped:
      new = scalars["nonfinite/total"] - self._skipped
      lines.append(f"{done}: {new:.0f} updates skipped, not finite.")
      self._skipped = scalars["nonfinite/total"]
    checks = {}
    if len(self._window) == WINDOW:
      checks = {"variance": self._variance(), "data": self._data()}
      # All reports of the window must be of a discriminator that has settled.
      if self._steps[0] >= self._judged_from():
        checks["gan"] = self._gan()
    ended = done >= max(self._config.steps, DEAD_AT_END)
    if ended or (len(self._window) == WINDOW and done >= DEAD_AFTER):
      checks["collapse"] = self._collapse()
    for name, (status, text) in checks.items():
      if status != self._last.get(name, ""):
        lines.append(f"{done}: {text or RECOVERED[name]}")
      self._last[name] = status
    return lines

  def _mean(self, name: str) -> float:
    return sum(s[name] for s in self._window) / len(self._window)

  def _judged_from(self) -> float:
    """The first step at which the discriminator is judged; inf without one."""
    section = self._config.adversarial
    if section.loss == "none":
      return math.inf
    alone = section.disc_start + section.gen_delay
    return alone + self._config.ramp.adversarial + SETTLING

  def _gan(self) -> tuple[str, str]:
    """Checks the discriminator: (status, message), both empty if it is fine."""
    accuracy = self._mean("disc/accuracy")
    gap = self._mean("disc/logits_real") - self._mean("disc/logits_fake")
    if accuracy < BLIND_ACCURACY:
      return "blind", (
        f"the discriminator is blind (it classifies {accuracy:.0%} of patches "
        "correctly): it gives little to learn from. Raise its learning rate or "
        "width, or let it train alone first (adversarial.gen_delay)."
      )
    if accuracy > SATURATED_ACCURACY and gap > SATURATED_GAP:
      return "saturated", (
        "the discriminator is saturated (it classifies "
        f"{accuracy:.0%} correctly, logits {gap:.1f} apart): its gradient "
        "vanishes. Lower its learning rate, or raise weights.adversarial."
      )
    return "", ""

  def _variance(self) -> tuple[str, str]:
    """Checks the posterior's variances: (status, message)."""
    objective = self._config.objective
    terms = objectives.OBJECTIVES[objective.name].terms
    widening = [t for t in WIDENING if t in terms]
    of_population = "population_kl" in terms
    form = objectives.population.FORMS[objective.population]
    # Points may match the population as well.
    if not widening or (of_population and form.all_moments):
      return "", ""
    fraction = self._mean("posterior/collapsed_fraction")
    if fraction > COLLAPSED_FRACTION:
      return "collapsed", (
        f"{fraction:.0%} of the posterior's variances are near 0: codes are "
        "points, and N(0, I) will not decode well. Raise "
        f"weights.{widening[0]} or lower weights.recon."
      )
    return "", ""

  def _collapse(self) -> tuple[str, str]:
    """Checks for posterior collapse in every report: (status, message)."""
    kl = [s["posterior/kl"] for s in self._window if "posterior/kl" in s]
    explained = [s["posterior/explained_variance"] for s in self._window]
    low_kl = max(kl, default=DEAD_KL) < DEAD_KL
    same_reconstruction = max(explained) < DEAD_EXPLAINED
    if not (low_kl or same_reconstruction):
      return "", ""
    text = "the run is dead:"
    if kl:
      text += f" the codes' KL to the prior is {max(kl[-1], 0):.2g} nats"
      text += ", next to no information, and" if low_kl else ", but"
    text += f" reconstructions explain {max(explained[-1], 0):.0%} of the "
    text += "images' variance"
    if same_reconstruction:
      text += ": every image has about the same reconstruction"
    flags = " ".join(f"--config.{key}={v}" for key, v in self._restart_keys())
    return "dead", (
      f"{text}. If this does not change, restart in another --workdir with "
      f"{flags}"
    )

  def _restart_keys(self) -> Iterator[tuple[str, str]]:
    """Yields (key, value) of the settings to change to prevent collapse."""
    c = self._config
    if (
      POSTERIORS[c.posterior.name].family.has_variance
      and c.posterior.initial_logvar > preset_values.INITIAL_LOGVAR
    ):
      yield "posterior.initial_logvar", f"{preset_values.INITIAL_LOGVAR:g}"
    length = preset_values.ramp_steps(c)
    for term in objectives.OBJECTIVES[c.objective.name].ramped:
      if c.ramp[term] < length:
        yield f"ramp.{term}", f"{length}"
    if c.optim.vae.learning_rate < RESTART_LEARNING_RATE:
      yield "optim.vae.learning_rate", f"{RESTART_LEARNING_RATE:g}"
    if c.optim.vae.warmup < RESTART_WARMUP:
      yield "optim.vae.warmup", f"{RESTART_WARMUP}"
    yield "weights.recon", f"{self._restart_weight():g}"

  def _restart_weight(self) -> float:
    """The weight of `recon` to try: twice as large, or the default.

    The default where the weight is far below it, like 1 in the place of the
    number of pixels: the error is a mean over pixels.
    """
    doubled = 2 * self._config.weights.recon
    if self._config.data.modalities:
      return doubled
    default = preset_values.default_weights(self._config)["recon"]
    return default if doubled * FAR_BELOW < default else doubled

  def _data(self) -> tuple[str, str]:
    """Checks the input pipeline: (status, message)."""
    name = "input/wait_fraction"
    # All reports must agree, since no batches are prefetched for the first.
    least = min(s[name] for s in self._window)
    waiting = self._last.get("data") == "waiting"
    if least <= (NOT_WAITING_FRACTION if waiting else WAITING_FRACTION):
      return "", ""
    text = f"{self._mean(name):.0%} of the time is spent waiting for data"
    if self._cached:
      return "waiting", f"{text}, though images are decoded already."
    return "waiting", (
      f"{text}: --config.data.cache=memory (or a folder) decodes each image "
      "once; --config.data.workers=N decodes in N processes."
    )


# Messages for a status that is fine again.
RECOVERED = {
  "data": "data arrive in time again.",
  "gan": "the discriminator is neither blind nor saturated any more.",
  "variance": "the posterior's variances are not near 0 any more.",
  "collapse": "the run is not dead any more: codes distinguish images.",
}

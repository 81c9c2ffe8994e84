"""Plain words on what the logged numbers mean: is the GAN, the code, well?"""

import collections
from collections.abc import Iterator, Mapping

from gamix_jax import objectives, preset_values
from gamix_jax.config import ConfigDict
from gamix_jax.posterior import POSTERIORS

# Over this many reports, so that one batch is no verdict.
WINDOW = 3
BLIND_ACCURACY = 0.55  # of 0.5, telling real from fake by chance
SATURATED_ACCURACY = 0.98
SATURATED_GAP = 6.0  # mean logit of real less that of fake: e^-6 of gradient
COLLAPSED_SHARE = 0.5
# Whether a run is dead is judged from this step on, before which it may be
# about to wake; at the end of a shorter one that had the second number of
# steps. A ramp is no reason to wait: codes are freest while a weight is small.
# And it is judged to the end, since codes may die as the weight grows.
DEAD_AFTER, DEAD_AT_END = 500, 100
DEAD_KL = 0.5  # nats an image
DEAD_SHARE = 0.05  # of the variance over images that reconstructions explain
# Of a start that wakes codes, beside the initial variance and the ramp of
# `preset_values`: all of it together, none alone. Found on MNIST at 16x16.
WAKING_RATE, WAKING_WARMUP = 2e-3, 50
WAITING_SHARE, NOT_WAITING_SHARE = 0.1, 0.05  # of the time, for data


class HealthMonitor:
  """Says a thing once, and again only after it had changed."""

  def __init__(self, config: ConfigDict, cached: bool = True):
    """What there is to judge.

    Args:
      config: of the run.
      cached: whether images are decoded once, so that no `data.cache` is left
        to recommend.
    """
    self._config, self._cached = config, cached
    self._window: collections.deque = collections.deque(maxlen=WINDOW)
    self._last: dict[str, str] = {}
    self._skipped = 0.0

  def messages(self, done: int, scalars: Mapping[str, float]) -> list[str]:
    """New lines for the user after these scalars of step `done`."""
    self._window.append(scalars)
    lines = []
    if scalars["nonfinite/total"] > self._skipped:
      new = scalars["nonfinite/total"] - self._skipped
      lines.append(f"{done}: {new:.0f} updates skipped, not finite.")
      self._skipped = scalars["nonfinite/total"]
    said = {}
    if len(self._window) == WINDOW:
      said = {"code": self._code(), "data": self._data()}
      if self._config.adversarial.loss != "none":
        said["gan"] = self._gan()
    ended = done >= max(self._config.steps, DEAD_AT_END)
    if ended or (len(self._window) == WINDOW and done >= DEAD_AFTER):
      said["life"] = self._life()
    for subject, (ill, text) in said.items():
      if ill != self._last.get(subject, ""):
        lines.append(f"{done}: {text or WELL[subject]}")
      self._last[subject] = ill
    return lines

  def _mean(self, name: str) -> float:
    return sum(s[name] for s in self._window) / len(self._window)

  def _gan(self) -> tuple[str, str]:
    """(status, message) of the discriminator; empty where it is well."""
    accuracy = self._mean("disc/accuracy")
    gap = self._mean("disc/logits_real") - self._mean("disc/logits_fake")
    if accuracy < BLIND_ACCURACY:
      return "blind", (
        f"the discriminator is blind (it tells {accuracy:.0%} of patches "
        "rightly): it gives little to learn from. Raise its learning rate or "
        "width, or let it train alone first (adversarial.gen_delay)."
      )
    if accuracy > SATURATED_ACCURACY and gap > SATURATED_GAP:
      return "saturated", (
        f"the discriminator is saturated (it tells {accuracy:.0%} rightly, "
        f"logits {gap:.1f} apart): its gradient vanishes. Lower its learning "
        "rate, or raise weights.adversarial."
      )
    return "", ""

  def _code(self) -> tuple[str, str]:
    share = self._mean("posterior/collapsed_fraction")
    if share > COLLAPSED_SHARE:
      return "collapsed", (
        f"{share:.0%} of the posterior's variances are near 0: codes are "
        "points, and N(0, I) will not decode well. Raise "
        "weights.collapse_penalty or lower weights.recon."
      )
    return "", ""

  def _life(self) -> tuple[str, str]:
    """Whether codes carry no information, in every report of the window."""
    kl = [s["posterior/kl"] for s in self._window if "posterior/kl" in s]
    share = [s["posterior/explained_variance"] for s in self._window]
    silent, alike = max(kl, default=DEAD_KL) < DEAD_KL, max(share) < DEAD_SHARE
    if not (silent or alike):
      return "", ""
    text = "the run is dead:"
    if kl:
      text += f" the codes' KL to the prior is {max(kl[-1], 0):.2g} nats"
      text += ", next to no information, and" if silent else ", but"
    text += f" reconstructions explain {max(share[-1], 0):.0%} of the images' "
    text += "variance"
    if alike:
      text += ": every image has about the same reconstruction"
    flags = " ".join(f"--config.{key}={v}" for key, v in self._waking())
    return "dead", (
      f"{text}. If it stays so, start anew in another --workdir with {flags}"
    )

  def _waking(self) -> Iterator[tuple[str, str]]:
    """Keys and values of a start that wakes codes, where they differ."""
    c = self._config
    discrete = POSTERIORS[c.posterior.name].family.discrete  # has no variance
    if (
      not discrete and c.posterior.initial_logvar > preset_values.INITIAL_LOGVAR
    ):
      yield "posterior.initial_logvar", f"{preset_values.INITIAL_LOGVAR:g}"
    length = preset_values.ramp_steps(c)
    for term in objectives.OBJECTIVES[c.objective.name].ramped:
      if c.ramp[term] < length:
        yield f"ramp.{term}", f"{length}"
    if c.optim.vae.learning_rate < WAKING_RATE:
      yield "optim.vae.learning_rate", f"{WAKING_RATE:g}"
    if c.optim.vae.warmup < WAKING_WARMUP:
      yield "optim.vae.warmup", f"{WAKING_WARMUP}"
    yield "weights.recon", f"{2 * c.weights.recon:g}"

  def _data(self) -> tuple[str, str]:
    name = "input/wait_fraction"
    # All reports, since the first one's batches are not made ahead.
    least = min(s[name] for s in self._window)
    ill = self._last.get("data") == "waiting"
    if least <= (NOT_WAITING_SHARE if ill else WAITING_SHARE):
      return "", ""
    text = f"{self._mean(name):.0%} of the time goes by in waiting for data"
    if self._cached:
      return "waiting", f"{text}, though images are decoded already."
    return "waiting", (
      f"{text}: --config.data.cache=memory (or a folder) decodes each image "
      "once; --config.data.workers=N decodes in N processes."
    )


WELL = {
  "data": "data comes in time again.",
  "gan": "the discriminator is neither blind nor saturated any more.",
  "code": "the posterior's variances are off 0 again.",
  "life": "the run is not dead any more: codes tell images apart.",
}

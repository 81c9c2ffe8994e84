"""Plain words on what the logged numbers mean: is the GAN, the code, well?"""

import collections
from collections.abc import Mapping

# Over this many reports, so that one batch is no verdict.
WINDOW = 3
BLIND_ACCURACY = 0.55  # of 0.5, telling real from fake by chance
SATURATED_ACCURACY = 0.98
SATURATED_GAP = 6.0  # mean logit of real less that of fake: e^-6 of gradient
COLLAPSED_SHARE = 0.5
WAITING_SHARE, NOT_WAITING_SHARE = 0.1, 0.05  # of the time, for data


class Verdict:
  """Says a thing once, and again only after it had changed."""

  def __init__(self, adversarial: bool, cached: bool = True):
    """What there is to judge.

    Args:
      adversarial: whether there is a discriminator.
      cached: whether images are decoded once, so that no `data.cache` is left
        to recommend.
    """
    self._adversarial, self._cached = adversarial, cached
    self._window: collections.deque = collections.deque(maxlen=WINDOW)
    self._last: dict[str, str] = {}
    self._skipped = 0.0

  def of(self, done: int, scalars: Mapping[str, float]) -> list[str]:
    """New lines for the user after these scalars of step `done`."""
    self._window.append(scalars)
    lines = []
    if scalars["skipped"] > self._skipped:
      new = scalars["skipped"] - self._skipped
      lines.append(f"{done}: {new:.0f} updates skipped, not finite.")
      self._skipped = scalars["skipped"]
    if len(self._window) == WINDOW:
      said = {"code": self._code(), "data": self._data()}
      if self._adversarial:
        said["gan"] = self._gan()
      for subject, (ill, text) in said.items():
        if ill != self._last.get(subject, ""):
          lines.append(f"{done}: {text or WELL[subject]}")
        self._last[subject] = ill
    return lines

  def _mean(self, name: str) -> float:
    return sum(s[name] for s in self._window) / len(self._window)

  def _gan(self) -> tuple[str, str]:
    """What it is ill of, which stays while the numbers change; a text."""
    accuracy = self._mean("disc/accuracy")
    gap = self._mean("disc/logits_real") - self._mean("disc/logits_fake")
    if accuracy < BLIND_ACCURACY:
      return "blind", (
        f"the discriminator is blind (it tells {accuracy:.0%} of patches "
        "rightly): it gives little to learn from. Raise its learning rate or "
        "width, or let it train alone first (adversarial.delay)."
      )
    if accuracy > SATURATED_ACCURACY and gap > SATURATED_GAP:
      return "saturated", (
        f"the discriminator is saturated (it tells {accuracy:.0%} rightly, "
        f"logits {gap:.1f} apart): its gradient vanishes. Lower its learning "
        "rate, or raise weights.fool."
      )
    return "", ""

  def _code(self) -> tuple[str, str]:
    share = self._mean("posterior/collapsed_share")
    if share > COLLAPSED_SHARE:
      return "collapsed", (
        f"{share:.0%} of the posterior's variances are near 0: codes are "
        "points, and N(0, I) will not decode well. Raise weights.collapse or "
        "lower weights.recon."
      )
    return "", ""

  def _data(self) -> tuple[str, str]:
    name = "speed/share_waiting_for_data"
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
}

"""Training progress: a progress bar on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping

import tqdm

from gamix_jax.config import PEER_TERMS


def duration(seconds: float) -> str:
  """Formats a duration: `1 h 02 min`, `3 min 20 s`, `12 s`."""
  seconds = round(seconds)
  minutes, s = divmod(seconds, 60)
  hours, m = divmod(minutes, 60)
  if hours:
    return f"{hours} h {m:02d} min"
  return f"{m} min {s:02d} s" if m else f"{s} s"


class Progress:
  """Prints progress and measures speed, without pauses such as evaluation."""

  def __init__(
    self, begin: int, steps: int, batch_size: int, shown: bool = True
  ):
    """Starts the clock, and the progress bar on a terminal.

    Args:
      begin: steps that are already done.
      steps: length of the run.
      batch_size: images per step.
      shown: whether to print; only the main process does.
    """
    self._shown = shown
    self._steps, self._batch = steps, batch_size
    self._start = time.monotonic()
    self._done = self._last_done = begin  # now, and at the last `speed`
    self._last_time = self._start
    self._paused = self._waited = 0.0
    self._bar = None
    if shown and sys.stderr.isatty():
      self._bar = tqdm.tqdm(
        total=steps, initial=begin, unit="step", dynamic_ncols=True
      )

  def advance(self, done: int) -> None:
    """Records that step `done` was dispatched."""
    self._done = done
    if self._bar is not None:
      self._bar.update()

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Context whose time does not count as training."""
    start = time.monotonic()
    yield
    self._paused += time.monotonic() - start

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Context whose time counts as waiting for data."""
    start = time.monotonic()
    yield
    self._waited += time.monotonic() - start

  def speed(self) -> dict[str, float]:
    """Returns images/s and the fraction of waiting, since the last call."""
    now = time.monotonic()
    seconds = max(now - self._last_time - self._paused, 1e-9)
    steps = self._done - self._last_done
    out = {
      "speed/images_per_second": steps * self._batch / seconds,
      "input/wait_fraction": self._waited / seconds,
    }
    self._last_time, self._last_done = now, self._done
    self._paused = self._waited = 0.0
    return out

  def show(self, done: int, scalars: Mapping[str, float]) -> None:
    """Prints the losses, the KL in nats, the speed and the time left."""
    losses = "  ".join(
      f"{k.split('/')[1]} {scalars[k]:.4g}"
      for k in PROGRESS_SCALARS
      if k in scalars
    )
    rate = scalars["speed/images_per_second"]
    if self._bar is not None:
      self._bar.set_postfix_str(f"{losses}  {rate:.0f} images/s")
      return
    if not self._shown:
      return
    left = (self._steps - done) * self._batch / max(rate, 1e-9)
    print(
      f"{done:>{len(str(self._steps))}}/{self._steps}  {losses}  "
      f"{rate:.0f} images/s, {duration(left)} left",
      flush=True,
    )

  def say(self, line: str) -> None:
    """Prints a separate line."""
    if self._bar is not None:
      self._bar.write(line)
    elif self._shown:
      print(line, flush=True)

  def elapsed(self) -> str:
    """Returns the formatted time since the start."""
    return duration(time.monotonic() - self._start)

  def close(self) -> None:
    """Closes the progress bar."""
    if self._bar is not None:
      self._bar.close()


# Scalars in the progress line. `posterior/kl` is shown for every objective, if
# the family has it, since it reveals posterior collapse.
PROGRESS_SCALARS = (
  *("vae/recon", "vae/population_kl", "vae/collapse_penalty"),
  *(f"vae/{term}" for term in PEER_TERMS),
  "posterior/kl",
  *("vae/adversarial", "disc/real", "disc/fake"),
)
# Metrics in the line of held-out results. A unit counts as active as soon as
# its mean varies; `mutual_information` shows how much the codes carry, in nats.
HELD_OUT = ("mae", "psnr", "elbo", "kl", "mutual_information", "active_units")

"""How far a run is: a bar on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping

import tqdm


def duration(seconds: float) -> str:
  """For people: `1 h 02 min`, `3 min 20 s`, `12 s`."""
  seconds = round(seconds)
  minutes, s = divmod(seconds, 60)
  hours, m = divmod(minutes, 60)
  if hours:
    return f"{hours} h {m:02d} min"
  return f"{m} min {s:02d} s" if m else f"{s} s"


class Progress:
  """Counts steps and time; pauses (evaluation) do not count as speed."""

  def __init__(
    self, begin: int, steps: int, batch_size: int, shown: bool = True
  ):
    """`begin` of `steps` are done; nothing is seen of one not `shown`."""
    self._shown = shown
    self._steps, self._batch = steps, batch_size
    self._start = time.monotonic()
    self._done = self._mark_done = begin
    self._mark = self._start
    self._out = self._waited = 0.0
    self._bar = None
    if shown and sys.stderr.isatty():
      self._bar = tqdm.tqdm(
        total=steps, initial=begin, unit="step", dynamic_ncols=True
      )

  def advance(self, done: int) -> None:
    """A step was started."""
    self._done = done
    if self._bar is not None:
      self._bar.update()

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Time that is not training."""
    start = time.monotonic()
    yield
    self._out += time.monotonic() - start

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Time spent for want of a batch."""
    start = time.monotonic()
    yield
    self._waited += time.monotonic() - start

  def speed(self) -> dict[str, float]:
    """Since the last call: images/s, and the share spent waiting for data."""
    now = time.monotonic()
    seconds = max(now - self._mark - self._out, 1e-9)
    steps = self._done - self._mark_done
    out = {
      "speed/images_per_second": steps * self._batch / seconds,
      "input/wait_fraction": self._waited / seconds,
    }
    self._mark, self._mark_done = now, self._done
    self._out = self._waited = 0.0
    return out

  def show(self, done: int, scalars: Mapping[str, float]) -> None:
    """The losses, the codes' KL in nats, the speed and the time left."""
    losses = "  ".join(
      f"{k.split('/')[1]} {scalars[k]:.4g}" for k in SHOWN if k in scalars
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
    """A line of its own."""
    if self._bar is not None:
      self._bar.write(line)
    elif self._shown:
      print(line, flush=True)

  def elapsed(self) -> str:
    """Since the start, for people."""
    return duration(time.monotonic() - self._start)

  def close(self) -> None:
    """Ends the bar."""
    if self._bar is not None:
      self._bar.close()


# Of the scalars, those that are shown. `posterior/kl` is there whatever the
# objective, where the family has one: without it nobody sees a dead code.
SHOWN = (
  *("vae/recon", "vae/population_kl", "vae/collapse_penalty", "posterior/kl"),
  *("vae/adversarial", "disc/real", "disc/fake"),
)
# Of the held-out numbers, those of a line. A unit is active as soon as its mean
# moves; how much the codes say is beside it, in nats.
HELD_OUT = ("mae", "psnr", "elbo", "kl", "mutual_information", "active_units")

"""Progress lines, with a fake clock."""

import re

import pytest

from gamix_jax.training import progress
from gamix_jax.training.progress import Progress, duration


@pytest.fixture
def clock(monkeypatch):
  class Clock:
    now = 1000.0

  monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
  return Clock


@pytest.mark.parametrize(
  ("seconds", "text"),
  [
    (0.4, "0 s"),
    (59.6, "1 min 00 s"),
    (200, "3 min 20 s"),
    (3600, "1 h 00 min"),
    (93_900, "26 h 05 min"),
  ],
)
def test_duration(seconds, text):
  assert duration(seconds) == text


def test_speed_leaves_out_the_pauses(clock):
  p = Progress(10, 100, batch_size=8)
  for done in range(11, 21):
    with p.waiting():
      clock.now += 0.1
    clock.now += 0.3
    p.advance(done)
  with p.paused():
    clock.now += 60
  found = p.speed()
  assert found["speed/images_per_second"] == pytest.approx(10 * 8 / 4)
  assert found["input/wait_fraction"] == pytest.approx(0.25)
  clock.now += 2
  p.advance(21)
  assert p.speed()["speed/images_per_second"] == pytest.approx(4)
  assert p.elapsed() == "1 min 06 s"


def test_plain_line(clock, capsys):
  p = Progress(0, 1000, batch_size=4)
  clock.now += 2
  p.advance(10)
  scalars = {
    **{"vae/recon": 0.123456, "vae/loss": 9.0, "disc/real": 0.5},
    **p.speed(),
  }
  p.show(10, scalars)
  p.say("hello")
  p.close()
  out, err = capsys.readouterr()
  assert out == (
    "  10/1000  recon 0.1235  real 0.5  20 images/s, 3 min 18 s left\nhello\n"
  )
  assert err == ""


def test_the_codes_kl_is_shown_for_every_objective(clock, capsys):
  """Once, in the same place; a family without a kl has none."""
  own = {"vae/recon": 0.5, "speed/images_per_second": 7.0, "disc/real": 0.25}
  p = Progress(0, 100, batch_size=4)
  p.show(10, own | {"posterior/kl": 3.21, "vae/population_kl": 0.5})
  p.show(20, own | {"posterior/kl": 3.21, "vae/kl": 3.21})
  p.show(30, own)
  shown = [line.split("7 im")[0] for line in capsys.readouterr()[0].split("\n")]
  assert shown[:3] == [
    " 10/100  recon 0.5  population_kl 0.5  kl 3.21  real 0.25  ",
    " 20/100  recon 0.5  kl 3.21  real 0.25  ",
    " 30/100  recon 0.5  real 0.25  ",
  ]


def test_bar(clock, capsys, monkeypatch):
  monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
  p = Progress(3, 5, batch_size=4)
  p.advance(4)
  p.show(4, {"vae/recon": 0.25, "speed/images_per_second": 7.0})
  p.say("hello")
  p.advance(5)
  p.close()
  out, err = capsys.readouterr()
  assert out == "hello\n"
  assert re.search(r"80%.*4/5", err)
  assert "recon 0.25  7 images/s" in err
  assert re.search(r"100%.*5/5", err)

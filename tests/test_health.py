"""The verdict in plain words: when it is said, and when it is not."""

import pytest

from gamix_jax.health import WINDOW, Verdict

WELL = {
  "skipped": 0.0,
  "disc/accuracy": 0.8,
  "disc/logits_real": 1.0,
  "disc/logits_fake": -1.0,
  "posterior/collapsed_share": 0.0,
  "speed/share_waiting_for_data": 0.01,
}
BLIND = WELL | {"disc/accuracy": 0.5}
SATURATED = WELL | {
  "disc/accuracy": 1.0,
  "disc/logits_real": 5.0,
  "disc/logits_fake": -5.0,
}
WAITING = WELL | {"speed/share_waiting_for_data": 0.43}
COLLAPSED = WELL | {"posterior/collapsed_share": 0.9}


def said(*scalars, adversarial=True, cached=False):
  """All lines, with the report (from 0) that each came with."""
  verdict = Verdict(adversarial, cached)
  return [(i, line) for i, s in enumerate(scalars) for line in verdict.of(i, s)]


def test_nothing_of_a_healthy_run():
  assert said(*[WELL] * 10) == []


@pytest.mark.parametrize(
  ("ill", "words"),
  [
    (BLIND, ("blind", "50%", "learning rate")),
    (SATURATED, ("saturated", "100%", "10.0 apart", "weights.fool")),
    (COLLAPSED, ("90%", "near 0", "weights.collapse")),
    (WAITING, ("43% of the time", "waiting for data", "data.cache=memory")),
  ],
  ids=["blind", "saturated", "collapsed", "waiting"],
)
def test_said_once_and_unsaid_once(ill, words):
  lines = said(*[ill] * 10, *[WELL] * 10, *[ill] * 10)
  assert len(lines) == 3, lines  # though its numbers move in between
  assert lines[0][0] == WINDOW - 1  # not of one batch
  for word in words:
    assert word in lines[0][1]
  assert lines[0][1].startswith(f"{WINDOW - 1}: ")
  assert 10 <= lines[1][0] < 10 + WINDOW
  assert lines[1][1].endswith(("any more.", "again."))
  assert 20 <= lines[2][0] < 20 + WINDOW


def test_one_bad_report_is_no_verdict():
  assert said(*[WELL] * 5, BLIND, *[WELL] * 5) == []


def test_sure_is_not_saturated():
  """All told rightly, but with logits that leave a gradient."""
  near = SATURATED | {"disc/logits_real": 2.0, "disc/logits_fake": -2.0}
  assert said(*[near] * 5) == []


def test_no_discriminator_no_verdict_of_it():
  alone = {k: v for k, v in COLLAPSED.items() if not k.startswith("disc/")}
  (line,) = said(*[alone] * 5, adversarial=False)
  assert "variances" in line[1]


def test_both_at_once():
  both = BLIND | {"posterior/collapsed_share": 0.9}
  assert len(said(*[both] * 5)) == 2


def test_waiting_is_told_by_all_reports_and_what_is_left_to_do():
  first = [WAITING, WELL, WELL, WELL]
  assert said(*first) == []
  near = WELL | {"speed/share_waiting_for_data": 0.07}
  assert len(said(*[WAITING, near] * 5, *[WAITING] * 3, *[near] * 9)) == 1
  (line,) = said(*[WAITING] * 5, cached=True)
  assert "decoded already" in line[1] and "cache" not in line[1]


def test_skipped_updates_are_counted():
  counts = [0, 0, 2, 2, 5]
  lines = said(*[WELL | {"skipped": float(n)} for n in counts])
  assert lines == [
    (2, "2: 2 updates skipped, not finite."),
    (4, "4: 3 updates skipped, not finite."),
  ]

"""The verdict in plain words: when it is said, and when it is not."""

from functools import partial

import pytest
from conftest import EVAE, alone, elbo, small

from gamix_jax import build, config
from gamix_jax.training.monitor import (
  DEAD_AFTER,
  DEAD_AT_END,
  WINDOW,
  HealthMonitor,
)

WELL = {
  "nonfinite/total": 0.0,
  "disc/accuracy": 0.8,
  "disc/logits_real": 1.0,
  "disc/logits_fake": -1.0,
  "posterior/collapsed_fraction": 0.0,
  "posterior/kl": 6.0,
  "posterior/explained_variance": 0.6,
  "input/wait_fraction": 0.01,
}
BLIND = WELL | {"disc/accuracy": 0.5}
SATURATED = WELL | {
  "disc/accuracy": 1.0,
  "disc/logits_real": 5.0,
  "disc/logits_fake": -5.0,
}
WAITING = WELL | {"input/wait_fraction": 0.43}
COLLAPSED = WELL | {"posterior/collapsed_fraction": 0.9}
DEAD = WELL | {"posterior/kl": 0.02, "posterior/explained_variance": 0.012}
POISSON = dict(posterior__name="poisson", posterior__initial_logvar=0.0)


def said(*scalars, adversarial=True, cached=False):
  """All lines, with the report (from 0) that each came with."""
  verdict = HealthMonitor(small() if adversarial else alone(), cached)
  return [
    (i, line) for i, s in enumerate(scalars) for line in verdict.messages(i, s)
  ]


def lived(c, *scalars, every=100):
  """All lines of a run of a config, a report each 100 steps."""
  verdict = HealthMonitor(c)
  return [
    line
    for i, s in enumerate(scalars, 1)
    for line in verdict.messages(min(i * every, c.steps), s)
  ]


def flags(line):
  """{key: value} of the flags in a line."""
  found = [w for w in line.split() if w.startswith("--config.")]
  return dict(w.removeprefix("--config.").split("=") for w in found)


def test_nothing_of_a_healthy_run():
  assert said(*[WELL] * 10) == []


@pytest.mark.parametrize(
  ("ill", "words"),
  [
    (BLIND, ("blind", "50%", "learning rate")),
    (SATURATED, ("saturated", "100%", "10.0 apart", "weights.adversarial")),
    (COLLAPSED, ("90%", "near 0", "weights.collapse_penalty")),
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
  both = BLIND | {"posterior/collapsed_fraction": 0.9}
  assert len(said(*[both] * 5)) == 2


def test_waiting_is_told_by_all_reports_and_what_is_left_to_do():
  first = [WAITING, WELL, WELL, WELL]
  assert said(*first) == []
  near = WELL | {"input/wait_fraction": 0.07}
  assert len(said(*[WAITING, near] * 5, *[WAITING] * 3, *[near] * 9)) == 1
  (line,) = said(*[WAITING] * 5, cached=True)
  assert "decoded already" in line[1] and "cache" not in line[1]


def test_skipped_updates_are_counted():
  counts = [0, 0, 2, 2, 5]
  lines = said(*[WELL | {"nonfinite/total": float(n)} for n in counts])
  assert lines == [
    (2, "2: 2 updates skipped, not finite."),
    (4, "4: 3 updates skipped, not finite."),
  ]


# ---------------------------------------------------------- dead


def test_a_dead_run_is_called_dead_once():
  (line,) = lived(small(), *[DEAD] * 30)
  assert line.startswith(f"{DEAD_AFTER}: the run is dead")
  for words in ("KL to the prior is 0.02 nats", "explain 1%", "about the same"):
    assert words in line


def test_a_run_that_wakes_and_dies_is_told_each_time():
  """It dies after it looked alive, as where a ramp ends."""
  lines = lived(small(), *[DEAD] * 6, *[WELL] * 6, *[DEAD] * 6)
  steps = [int(line.split(":")[0]) for line in lines]
  assert steps == [DEAD_AFTER, 700, 1200 + 100 * WINDOW]
  assert lines[1].endswith("not dead any more: codes distinguish images.")
  assert lived(small(), *[DEAD] * 4, *[WELL] * 9) == []  # awake by then


@pytest.mark.parametrize(
  ("changes", "words", "not_words"),
  [
    ({"posterior/kl": 0.3}, ("0.3 nats, next to no", "60%"), ("the same",)),
    (
      {"posterior/explained_variance": -0.4},
      ("6 nats, but", "explain 0%", "the same"),
      ("no information",),
    ),
    (
      {"posterior/explained_variance": 0.02, "posterior/kl": None},
      ("dead: reconstructions explain 2%",),
      ("nats",),
    ),
  ],
  ids=["silent", "alike", "without_kl"],
)
def test_each_sign_of_death_is_enough(changes, words, not_words):
  scalars = {k: v for k, v in (WELL | changes).items() if v is not None}
  (line,) = lived(small(), *[scalars] * 9)
  assert all(w in line for w in words), line
  assert not any(w in line for w in not_words), line


def test_a_live_family_without_kl_is_left_alone():
  scalars = {k: v for k, v in WELL.items() if k != "posterior/kl"}
  assert lived(small(**EVAE), *[scalars] * 9) == []


@pytest.mark.parametrize("steps", [DEAD_AT_END, 150, 250, 450])
def test_a_short_run_is_called_dead_at_its_end(steps):
  (line,) = lived(small(steps=steps), *[DEAD] * -(-steps // 100))
  assert line.startswith(f"{steps}: the run is dead")


def test_a_trial_of_a_few_steps_is_not_judged():
  assert lived(small(steps=3), *[DEAD] * 3, every=1) == []


STARTS = {
  "gamix": (small, {"ramp.collapse_penalty"}),
  "elbo": (partial(elbo, small), {"ramp.kl"}),
  "siwae": (partial(elbo, small), set()),
  "evae": (partial(small, **EVAE), {"ramp.kernel"}),
  "poisson": (partial(elbo, partial(small, **POISSON)), {"ramp.kl"}),
}


@pytest.mark.parametrize("name", STARTS)
def test_what_to_change_is_a_config_that_goes(name):
  """Its flags fit the objective and the family; set, few are left to set."""
  make, ramps = STARTS[name]
  c = make()
  if name == "siwae":
    c.objective.name = name
  (line,) = lived(c, *[DEAD] * 9)
  found = flags(line)
  assert {k for k in found if k.startswith("ramp.")} == ramps
  assert ("posterior.initial_logvar" in found) == (name != "poisson")
  assert {found[k] for k in ramps} <= {"600"}
  assert float(found["weights.recon"]) == 2 * c.weights.recon
  for key, value in found.items():
    section, _, last = key.rpartition(".")
    holder = config.get(c, section)
    holder[last] = type(holder[last])(float(value))
  config.check(c)
  build.train_spec(c)
  (line,) = lived(c, *[DEAD] * 9)
  assert flags(line).keys() == {"weights.recon"}


def test_a_better_start_than_ours_is_kept():
  c = small(
    posterior__initial_logvar=-6.0,
    ramp__collapse_penalty=5_000,
    optim__vae__learning_rate=3e-3,
    optim__vae__warmup=100,
  )
  (line,) = lived(c, *[DEAD] * 9)
  assert flags(line).keys() == {"weights.recon"}


def test_an_early_number_that_is_wild_hides_no_life():
  """The share of an untrained decoder may be far below 0."""
  wild = DEAD | {"posterior/explained_variance": -50.0, "posterior/kl": 9.0}
  assert lived(small(), *[wild] * 4, *[WELL] * 5) == []

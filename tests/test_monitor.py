"""The health monitor's verdicts: when they are printed, and when not."""

from functools import partial

import pytest
from conftest import EVAE, alone, elbo, small

from gamix_jax import build, config
from gamix_jax.training.monitor import (
  DEAD_AFTER,
  DEAD_AT_END,
  SETTLING,
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


def lines_by_report(*scalars, adversarial=True, cached=False):
  """Returns all lines, each with its report number (from 0).

  Reports are of each step from that on where a discriminator is judged.
  """
  verdict = HealthMonitor(small() if adversarial else alone(), cached)
  return [
    (i, line)
    for i, s in enumerate(scalars)
    for line in verdict.messages(SETTLING + i, s)
  ]


def lines_of(c, *scalars, every=100):
  """Returns all lines of a run of a config, with a report every 100 steps."""
  verdict = HealthMonitor(c)
  return [
    line
    for i, s in enumerate(scalars, 1)
    for line in verdict.messages(min(i * every, c.steps), s)
  ]


def flags(line):
  """Returns {key: value} of the flags in a line."""
  found = [w for w in line.split() if w.startswith("--config.")]
  return dict(w.removeprefix("--config.").split("=") for w in found)


def test_no_verdict_on_a_healthy_run():
  assert lines_by_report(*[WELL] * 10) == []


@pytest.mark.parametrize(
  ("report", "words"),
  [
    (BLIND, ("blind", "50%", "learning rate")),
    (SATURATED, ("saturated", "100%", "10.0 apart", "weights.adversarial")),
    (COLLAPSED, ("90%", "near 0", "weights.collapse_penalty")),
    (WAITING, ("43% of the time", "waiting for data", "data.cache=memory")),
  ],
  ids=["blind", "saturated", "collapsed", "waiting"],
)
def test_a_verdict_is_printed_once_and_withdrawn_once(report, words):
  lines = lines_by_report(*[report] * 10, *[WELL] * 10, *[report] * 10)
  assert len(lines) == 3, lines  # although the values vary in between
  assert lines[0][0] == WINDOW - 1  # not from one batch
  for word in words:
    assert word in lines[0][1]
  assert lines[0][1].startswith(f"{SETTLING + WINDOW - 1}: ")
  assert 10 <= lines[1][0] < 10 + WINDOW
  assert lines[1][1].endswith(("any more.", "again."))
  assert 20 <= lines[2][0] < 20 + WINDOW


def test_one_bad_report_is_no_verdict():
  assert lines_by_report(*[WELL] * 5, BLIND, *[WELL] * 5) == []


def test_sure_is_not_saturated():
  """All classified correctly, but with logits that leave a gradient."""
  near = SATURATED | {"disc/logits_real": 2.0, "disc/logits_fake": -2.0}
  assert lines_by_report(*[near] * 5) == []


@pytest.mark.parametrize("bad", [BLIND, SATURATED], ids=["blind", "saturated"])
@pytest.mark.parametrize("every", [100, 400, 5_000])
def test_a_discriminator_is_judged_once_it_has_settled(bad, every):
  """Not while it does not learn, learns alone, or has a small weight."""
  c = small(
    steps=100_000,
    adversarial__disc_start=1_000,
    adversarial__gen_delay=200,
    ramp__adversarial=300,
  )
  untrained = {k: v for k, v in WELL.items() if not k.startswith("disc/")}
  before = 1_000 // every
  (line,) = lines_of(c, *[untrained] * before, *[bad] * 40, every=every)
  settled = 1_000 + 200 + 300 + SETTLING
  first = -(-settled // every) * every
  assert line.startswith(f"{first + (WINDOW - 1) * every}: the discriminator")


def test_without_a_discriminator_no_verdict_on_it():
  alone = {k: v for k, v in COLLAPSED.items() if not k.startswith("disc/")}
  (line,) = lines_by_report(*[alone] * 5, adversarial=False)
  assert "variances" in line[1]


@pytest.mark.parametrize("form", ["quadratic", "kernel"])
def test_points_are_fine_if_all_moments_match(form):
  c = small(objective__population=form)
  lines = lines_of(c, *[COLLAPSED] * 5)
  assert len(lines) == (0 if form == "kernel" else 1)


def test_both_at_once():
  both = BLIND | {"posterior/collapsed_fraction": 0.9}
  assert len(lines_by_report(*[both] * 5)) == 2


def test_waiting_for_data_counts_all_reports():
  first = [WAITING, WELL, WELL, WELL]
  assert lines_by_report(*first) == []
  near = WELL | {"input/wait_fraction": 0.07}
  assert (
    len(lines_by_report(*[WAITING, near] * 5, *[WAITING] * 3, *[near] * 9)) == 1
  )
  (line,) = lines_by_report(*[WAITING] * 5, cached=True)
  assert "decoded already" in line[1] and "cache" not in line[1]


def test_skipped_updates_are_counted():
  counts = [0, 0, 2, 2, 5]
  lines = lines_by_report(
    *[WELL | {"nonfinite/total": float(n)} for n in counts]
  )
  assert lines == [
    (2, f"{SETTLING + 2}: 2 updates skipped, not finite."),
    (4, f"{SETTLING + 4}: 3 updates skipped, not finite."),
  ]


# ---------------------------------------------------------- dead


def test_a_dead_run_is_called_dead_once():
  (line,) = lines_of(small(), *[DEAD] * 30)
  assert line.startswith(f"{DEAD_AFTER}: the run is dead")
  for words in ("KL to the prior is 0.02 nats", "explain 1%", "about the same"):
    assert words in line


def test_a_run_that_wakes_and_dies_is_reported_each_time():
  """It dies after it looked alive, as at the end of a ramp."""
  lines = lines_of(small(), *[DEAD] * 6, *[WELL] * 6, *[DEAD] * 6)
  steps = [int(line.split(":")[0]) for line in lines]
  assert steps == [DEAD_AFTER, 700, 1200 + 100 * WINDOW]
  assert lines[1].endswith("not dead any more: codes distinguish images.")
  assert lines_of(small(), *[DEAD] * 4, *[WELL] * 9) == []  # awake by then


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
  (line,) = lines_of(small(), *[scalars] * 9)
  assert all(w in line for w in words), line
  assert not any(w in line for w in not_words), line


def test_a_live_family_without_kl_is_left_alone():
  scalars = {k: v for k, v in WELL.items() if k != "posterior/kl"}
  assert lines_of(small(**EVAE), *[scalars] * 9) == []


@pytest.mark.parametrize("steps", [DEAD_AT_END, 150, 250, 450])
def test_a_short_run_is_called_dead_at_its_end(steps):
  (line,) = lines_of(small(steps=steps), *[DEAD] * -(-steps // 100))
  assert line.startswith(f"{steps}: the run is dead")


def test_a_trial_of_a_few_steps_is_not_judged():
  assert lines_of(small(steps=3), *[DEAD] * 3, every=1) == []


STARTS = {
  "gamix": (small, {"ramp.collapse_penalty"}),
  "elbo": (partial(elbo, small), {"ramp.kl"}),
  "siwae": (partial(elbo, small), set()),
  "evae": (partial(small, **EVAE), {"ramp.kernel"}),
  "poisson": (partial(elbo, partial(small, **POISSON)), {"ramp.kl"}),
}


@pytest.mark.parametrize("name", STARTS)
def test_the_advice_is_a_valid_config(name):
  """Its flags fit the objective and the family; keys already set are kept."""
  make, ramps = STARTS[name]
  c = make()
  if name == "siwae":
    c.objective.name = name
  (line,) = lines_of(c, *[DEAD] * 9)
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
  (line,) = lines_of(c, *[DEAD] * 9)
  assert flags(line).keys() == {"weights.recon"}


@pytest.mark.parametrize(
  ("reconstruction", "weight", "advised"),
  [
    ("bernoulli", 1, 64),  # 8x8 pixels
    ("bernoulli", 10, 20),
    ("l1", 0.5, 32),
    ("l1", 5, 10),
  ],
)
def test_a_weight_that_forgets_the_number_of_pixels(
  reconstruction, weight, advised
):
  """The error is a mean over pixels, the ELBO has their sum."""
  c = small(objective__reconstruction=reconstruction, weights__recon=weight)
  (line,) = lines_of(c, *[DEAD] * 9)
  assert float(flags(line)["weights.recon"]) == advised


def test_a_better_start_than_ours_is_kept():
  c = small(
    posterior__initial_logvar=-6.0,
    ramp__collapse_penalty=5_000,
    optim__vae__learning_rate=3e-3,
    optim__vae__warmup=100,
  )
  (line,) = lines_of(c, *[DEAD] * 9)
  assert flags(line).keys() == {"weights.recon"}


def test_an_early_outlier_does_not_hide_a_live_run():
  """The explained variance of an untrained decoder may be far below 0."""
  wild = DEAD | {"posterior/explained_variance": -50.0, "posterior/kl": 9.0}
  assert lines_of(small(), *[wild] * 4, *[WELL] * 5) == []

"""Checks that a run's start is alive, by its metrics.

Runs 150 steps of digits with the shipped config, and with a start that leads to
posterior collapse, which must be reported.
"""

import re

import numpy as np
import pytest
from program import Jobs, chosen, config_of, rows

from gamix_jax import data

STEPS = 150
SHORT = (
  "--config=configs/digits.py",
  f"--config.steps={STEPS}",
  "--config.log_every=50",
  f"--config.eval_every={STEPS}",
  f"--config.checkpoint.every={STEPS}",
)
# Wide initial posteriors, a large initial KL weight, a low learning rate.
DYING = (
  *("--config.objective.name=elbo", "--config.weights.kl=10"),
  *(
    "--config.weights.population_kl=None",
    "--config.weights.collapse_penalty=None",
  ),
  *(
    f"--config.ramp.{k}=0"
    for k in ("population_kl", "collapse_penalty", "kl", "adversarial")
  ),
  "--config.adversarial.loss=none",
  *(f"--config.weights.{k}=None" for k in ("adversarial", "real", "fake")),
  *("--config.posterior.initial_logvar=0", "--config.optim.vae.warmup=0"),
  "--config.optim.vae.learning_rate=1e-3",
)
RUNS = {
  "shipped": lambda folder: [*SHORT, f"--workdir={folder}/run"],
  "dying": lambda folder: [*SHORT, *DYING, f"--workdir={folder}/run"],
}


@pytest.fixture(scope="module")
def jobs(program, request, tmp_path_factory):
  names = chosen(request.session, request.path)
  return Jobs(program, RUNS, names, tmp_path_factory.mktemp("jobs"))


@pytest.fixture
def run(jobs, job):
  """Returns a run's output and its last metrics, including validation."""
  ran, folder = jobs[job]
  assert ran.returncode == 0, ran.stderr
  last = [r for r in rows(folder / "run") if r["step"] == STEPS]
  return ran.stdout, {k: v for row in last for k, v in row.items()}


@pytest.fixture(scope="module")
def median_image_error():
  """Returns the held-out error of the pixelwise median image."""
  c = config_of("digits")
  train, test = (
    np.stack([s[i]["image"] for i in range(len(s))]) / 127.5 - 1
    for s in (
      data.open_dataset(c.data, split, c.seed) for split in ("train", "test")
    )
  )
  return np.mean(np.abs(test - np.median(train, axis=0)))


@pytest.mark.parametrize("job", ["shipped"])
def test_the_shipped_start_is_alive(run, median_image_error):
  """An empty code would have at least the median's error."""
  output, numbers = run
  assert numbers["eval/mutual_information"] > 3
  assert numbers["eval/mae"] < 0.7 * median_image_error
  assert numbers["posterior/explained_variance"] > 0.3
  assert "dead" not in output


@pytest.mark.parametrize("job", ["dying"])
def test_a_dead_run_is_called_dead(run, median_image_error):
  """Its metrics are dead, too; the advice works as a command line."""
  output, numbers = run
  assert numbers["eval/mutual_information"] < 0.3
  assert numbers["eval/mae"] > 0.9 * median_image_error
  (line,) = re.findall(r"^\d+: the run is dead: .*", output, re.M)
  assert line.startswith(f"{STEPS}: ")
  for flag in (
    *("posterior.initial_logvar=-4", "ramp.kl=37"),
    *("optim.vae.learning_rate=0.002", "optim.vae.warmup=50"),
  ):
    assert f"--config.{flag}" in line
  assert "ramp.collapse_penalty" not in line
  held_out = re.search(rf"^held out at {STEPS}: .*", output, re.M)[0]
  order = [held_out.index(f"{k} ") for k in ("mae", "kl", "active_units")]
  assert order == sorted(order)
  assert "  mutual_information " in held_out

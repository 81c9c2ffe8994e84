"""Shared by all tests: small configs, their states and compiled steps.

Compiling dominates the cost of testing a step, so each config's step is
compiled once per session, with the cheapest XLA options.
"""

import collections
import dataclasses
import functools
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from program import QUICK, Program, complete_config_of

from gamix_jax import (
  build,
  config,
  data,
  networks,
  objectives,
  posterior,
  registry,
  save_errors,
  step,
)
from gamix_jax.checkpoint import Checkpoints
from gamix_jax.likelihood import LIKELIHOODS
from gamix_jax.modality import Modality
from gamix_jax.networks import VAEOutput
from gamix_jax.training import loop

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks.*

jax.config.update("jax_numpy_rank_promotion", "raise")


def jit(function, **kwargs):
  """jax.jit that compiles in a third of the time."""
  return jax.jit(function, compiler_options=QUICK, **kwargs)


def small(**changes):
  """Returns the published config with 4-channel networks on 8x8 grey images.

  In keys of `changes`, `__` stands for a dot.
  """
  c = config.base()
  c.data.image_size, c.data.channels, c.data.batch_size = 8, 1, 8
  c.model.latent = 4
  c.model.encoder_features = (4, 4)
  c.model.decoder_features = (4, 1)
  c.model.discriminator_features = (4, 1)
  c.model.discriminator_strides = (2, 1)
  for key, value in changes.items():
    config.put(c, key.replace("__", "."), value)
  return c


FLAT = dict(
  data__image_size=4,
  model__encoder_features=(4,),
  model__decoder_features=(1,),
)


def flat(**changes):
  """Returns `small` without residual blocks: a step compiles in a second."""
  return small(**(FLAT | changes))


# A `flat` config with moving statistics and moments, compiled once.
FLAT_BATCH = flat(
  model__norm="batch",
  objective__population="debiased",
  objective__num_samples=2,
)


# The published Epanechnikov VAE, instead of gamix.
EVAE = dict(
  posterior__name="epanechnikov",
  posterior__epanechnikov__prior="uniform",
  objective__name="evae",
  weights__population_kl=None,
  weights__collapse_penalty=None,
  weights__kernel=1.0,
)


def elbo(make=small, **changes):
  """Returns a config with the standard VAE's objective."""
  return make(
    objective__name="elbo",
    weights__population_kl=None,
    weights__collapse_penalty=None,
    weights__kl=1.0,
    **changes,
  )


def alone(make=small, **changes):
  """Returns a config without a discriminator."""
  names = ("adversarial", "real", "fake")
  none = {f"weights__{k}": None for k in names}
  return make(adversarial__loss="none", **none, **changes)


def _filled(seed, path, shape):
  """Returns values for a leaf, all different from its initial value."""
  name = jax.tree_util.keystr(path)
  rng = np.random.default_rng([seed, *name.encode()])
  noise = rng.normal(size=shape.shape)
  if "kernel" in name:
    value = noise * np.sqrt(1.5 / np.prod(shape.shape[:-1]))
  elif "scale" in name or "var" in name.rsplit("'", 2)[-2]:
    value = 1 + 0.2 * np.tanh(noise)
  else:
    value = 0.1 * noise
  return jnp.asarray(value, shape.dtype)


def state_of(spec, seed=0):
  """Returns a state with weights from NumPy: no compilation, no zero biases."""
  shapes = jax.eval_shape(functools.partial(step.init, spec))

  def net(shape):
    params, stats = (
      jax.tree_util.tree_map_with_path(functools.partial(_filled, seed), tree)
      for tree in (shape.params, shape.batch_stats)
    )
    slots = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape.opt_state)
    return step.NetworkState(params, stats, slots)

  vae = net(shapes.vae)
  return step.TrainState(
    step=jnp.zeros((), jnp.int32),
    vae=vae,
    disc=net(shapes.disc) if shapes.disc.params else shapes.disc,
    objective=spec.objective.init(),
    ema=vae.params,
    nonfinite=jnp.zeros(2, jnp.int32),
  )


def save_run(folder, config_, *states):
  """Writes a workdir with these states, at steps 5, 10, ..."""
  folder.mkdir()
  (folder / "config.json").write_text(config.to_json(config_))
  with Checkpoints(folder / "checkpoints", keep=9) as checkpoints:
    for i, state in enumerate(states):
      checkpoints.save(5 * (i + 1), state)


def images(c, seed=0):
  """Returns a batch of smooth images in [-1, 1]."""
  rng = np.random.default_rng(seed)
  h, w, channels = config.image_shape(c)
  i, j = np.meshgrid(np.arange(h) / h, np.arange(w) / w, indexing="ij")
  a = rng.normal(size=(4, c.data.batch_size, 1, 1, channels))
  i, j = i[None, ..., None], j[None, ..., None]
  x = np.tanh(a[0] * np.sin(6 * i + a[1]) + a[2] * np.cos(6 * j + a[3]))
  return {"image": jnp.asarray(x, jnp.float32)}


def modalities(kind, shape):
  """Returns the modalities of one image, with a likelihood given by name."""
  return {"image": Modality(shape, LIKELIHOODS[kind])}


def output(x, q, z, w, x_hat, **rest):
  """Returns the output of an image VAE's forward pass."""
  return VAEOutput({"image": x}, q, z, w, {"image": x_hat}, **rest)


class Run:
  """A config's spec, initial state and batch, and its compiled functions."""

  def __init__(self, c):
    self.config = c
    self.spec = build.train_spec(c)
    self.state = state_of(self.spec)
    self.batch = images(c)

  @functools.cached_property
  def _step(self):
    def with_weights(of_vae, of_disc, state, batch):
      weights = dataclasses.replace(self.spec.weights, vae=of_vae, disc=of_disc)
      spec = dataclasses.replace(self.spec, weights=weights)
      return step.train_step(spec, state, batch)

    return jit(with_weights)

  def step(self, state, batch, weights=None):
    """(state, batch) -> (state, metrics); default: the config's weights."""
    named = [self.spec.weights.vae, self.spec.weights.disc]
    if weights is not None:
      named = [{k: float(weights.get(k, 0)) for k in of} for of in named]
    return self._step(*named, state, batch)

  def steps(self, n, state=None):
    """Returns state and metrics after n steps, with a new batch each."""
    state, metrics = state or self.state, None
    for t in range(n):
      state, metrics = self.step(state, images(self.config, t))
    return state, metrics


@functools.cache
def _run(text):
  return Run(config.from_json(text))


def run_of(c):
  """Returns the Run of a config, cached."""
  return _run(config.to_json(c))


def assert_same(a, b):
  """Asserts that two trees are bitwise equal."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, x), y in zip(
    jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
  ):
    np.testing.assert_array_equal(x, y, jax.tree_util.keystr(path))


def assert_close(a, b, rtol, atol=0.0):
  """Asserts that two trees are close, relative to each leaf's largest value."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, x), y in zip(
    jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
  ):
    wanted = np.asarray(y, np.float64)
    off = np.max(np.abs(np.asarray(x, np.float64) - wanted), initial=0)
    limit = rtol * np.max(np.abs(wanted), initial=0) + atol
    assert off <= limit, (jax.tree_util.keystr(path), off, limit)


def moved(a, b):
  """Returns {path: whether the leaf differs between a and b}."""
  pairs = zip(
    jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
  )
  return {
    jax.tree_util.keystr(p): bool(np.any(np.asarray(x) != np.asarray(y)))
    for (p, x), y in pairs
  }


# Slow files, slowest first. A slow file started last would run alone at the
# end.
SLOW_FILES = (
  *("resume", "mistakes", "step", "notebooks", "compare", "main", "golden"),
  "alive",
  *("evaluate", "checkpoint", "keras_weights", "configs", "export"),
)


def pytest_collection_modifyitems(items):
  """Moves slow files to the front; --no-loadscope-reorder keeps them there."""
  place = {f"test_{name}.py": i for i, name in enumerate(SLOW_FILES)}
  items.sort(key=lambda item: place.get(item.path.name, len(SLOW_FILES)))


@pytest.fixture(autouse=True)
def _silence_orbax():
  """Silences Orbax's reports of failed saves, which would be errors here."""
  save_errors.silence_orbax()


TABLES = (
  data.SOURCES,
  posterior.POSTERIORS,
  LIKELIHOODS,
  networks.ENCODERS,
  networks.DECODERS,
  networks.DISCRIMINATORS,
  objectives.OBJECTIVES,
  objectives.ADVERSARIAL,
)


@pytest.fixture(autouse=True)
def _same_registries(monkeypatch):
  """Parts that a test registers are gone after it."""
  monkeypatch.setattr(registry, "_modules", [])
  monkeypatch.setattr(registry, "_keys", {})
  before = [dict(table) for table in TABLES]
  yield
  for table, parts in zip(TABLES, before, strict=True):
    table.clear()
    table.update(parts)


@pytest.fixture(scope="module")
def quick():
  """Compiles a module's functions in a third of the time."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      jax, "jit", functools.partial(jax.jit, compiler_options=QUICK)
    )
    yield


@pytest.fixture(scope="session")
def polydigits(tmp_path_factory):
  """The workdir of a trained run of several modalities, three steps."""
  folder = tmp_path_factory.mktemp("polydigits") / "run"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      jax, "jit", functools.partial(jax.jit, compiler_options=QUICK)
    )
    loop.train(complete_config_of("polydigits", "tiny"), str(folder))
  return folder


@pytest.fixture(scope="session")
def program(tmp_path_factory):
  """Runs the commands in subprocesses; see `program.py`."""
  folder = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    folder = folder.parent  # shared by the workers
  program = Program(folder / "compiled")
  yield program
  program.close()


# ------------------------------------------------------------ faults


class Fault:
  """Records what a test did to a run, and the outcome, for docs/faults.md."""

  def __init__(self, what, record):
    """`record` takes a name and a value, as `record_property` does."""
    self.what, self._record = what, record

  def note(self, ended, lost, same, times=1):
    """Records one fault, or several equal ones.

    Args:
      ended: how the program ended, in a few words.
      lost: steps that had to be repeated: a number, or one per time.
      same: how the final state compares to that of an undisturbed run.
      times: how often.
    """
    lost = list(lost) if isinstance(lost, list | tuple) else [lost]
    values = {"ended": ended, "lost": lost, "same": same, "times": times}
    self._record("fault", {"what": self.what, **values})


@pytest.fixture
def fault(request, record_property):
  """Records faults for the table of the session."""
  (what,) = request.node.get_closest_marker("faults").args
  return Fault(what, record_property)


def fault_table(notes):
  """Returns the records as a Markdown table, with equal ones in one row."""
  rows = collections.defaultdict(list)
  for note in notes:
    rows[note["what"]].append(note)
  yield (
    "| fault | times | exit code | steps repeated | "
    "result, compared with an uninterrupted run |"
  )
  yield "|---|---|---|---|---|"
  for what, notes_ in sorted(rows.items()):
    lost = [n for note in notes_ for n in note["lost"]]
    least, most = min(lost), max(lost)
    cells = (
      what,
      str(sum(note["times"] for note in notes_)),
      "; ".join(dict.fromkeys(note["ended"] for note in notes_)),
      f"{least}" if least == most else f"{least} to {most}",
      "; ".join(dict.fromkeys(note["same"] for note in notes_)),
    )
    yield f"| {' | '.join(cells)} |"


def pytest_terminal_summary(terminalreporter):
  """Prints the table of faults, and writes it to the file FAULTS_TABLE."""
  reports = [
    report
    for outcome in ("passed", "failed", "skipped")
    for report in terminalreporter.stats.get(outcome, ())
  ]
  notes = [
    value
    for report in reports
    if getattr(report, "when", "") == "call"
    for name, value in report.user_properties
    if name == "fault"
  ]
  if not notes:
    return
  table = "\n".join(fault_table(notes))
  terminalreporter.section("faults")
  terminalreporter.write_line(table)
  if path := os.environ.get("FAULTS_TABLE"):
    Path(path).write_text(table + "\n")

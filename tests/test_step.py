"""One training step: what it updates, when, and what it survives."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peer_cases
import pytest
from conftest import (
  EVAE,
  FLAT_BATCH,
  alone,
  assert_close,
  assert_same,
  elbo,
  flat,
  images,
  jit,
  moved,
  run_of,
  small,
)
from program import rows
from sklearn.datasets import load_digits

from gamix_jax import build, config, objectives, step
from gamix_jax.checkpoint import Checkpoints
from gamix_jax.errors import UserError
from gamix_jax.modality import to_float
from gamix_jax.networks import PatchDiscriminator
from gamix_jax.training import compiled_steps, loop

BATCH_OF_NAN = {"image": jnp.full((8, 4, 4, 1), jnp.nan)}


# ---------------------------------------------------------- what moves what


def gradients_of(c, **weights):
  """Returns {path: norm} of the two losses' gradients, with only these weights.

  They are Adam's first moment after step 0, divided by 1 - b1 = 1/2.
  """
  run = run_of(c)
  after, _ = run.step(run.state, run.batch, weights)
  return tuple(
    {
      jax.tree_util.keystr(p): float(jnp.linalg.norm(v.ravel()))
      for p, v in jax.tree_util.tree_leaves_with_path(
        net.opt_state[0].mu if net.opt_state else {}
      )
    }
    for net in (after.vae, after.disc)
  )


ELBO_ALONE = elbo(partial(alone, flat))
HEADS = ("['posterior']", "['encoder']")
REACH = {
  # term: the parts of the VAE that it reaches, and those that it does not
  "recon": (("['decoder']", *HEADS), ()),
  "population_kl": (HEADS, ("['decoder']", "['logvar']")),
  "collapse_penalty": (HEADS, ("['decoder']", "['mu']")),
  "adversarial": (("['decoder']", *HEADS), ()),
  "kl": (HEADS, ("['decoder']",)),
  "kernel": (HEADS, ("['decoder']", "['mu']")),
} | {
  # Of the objectives for comparison; from draws or moments of q(z).
  **dict.fromkeys(peer_cases.TERMS, (HEADS, ("['decoder']",))),
  # A shift of all codes does not change it, and latents vary together only in
  # their means.
  "covariance": (("['kernel']",), ("['decoder']", "['logvar']")),
  "decoder_norm": (("['decoder']",), HEADS),
}


@pytest.mark.parametrize("term", REACH)
def test_a_term_of_the_vae_reaches_what_it_should(term):
  """And never the discriminator: `adversarial` does not update it."""
  c = {"kl": ELBO_ALONE, "kernel": flat(**EVAE)}.get(term, flat())
  if term in peer_cases.TERMS:
    c = alone(flat, **peer_cases.changes(peer_cases.TERMS[term]))
  of_vae, of_disc = gradients_of(c, **{term: 1.0})
  assert not any(of_disc.values())
  reached, spared = REACH[term]
  for path, norm in of_vae.items():
    out = [part for part in spared if part in path]
    if out:
      assert norm == 0, (term, path)
    elif any(part in path for part in reached):
      assert norm > 0, (term, path)


@pytest.mark.parametrize("term", ["real", "fake"])
def test_a_term_of_the_discriminator_reaches_it_alone(term):
  of_vae, of_disc = gradients_of(flat(), **{term: 1.0})
  assert not any(of_vae.values())
  assert all(of_disc.values())


def test_every_term_of_every_objective_is_tested():
  """Those of subsets of modalities: in test_subsets; of codes: test_peers."""
  terms = set()
  for name, objective in objectives.OBJECTIVES.items():
    if objective.subsets:
      continue
    terms |= {t for side in objectives.term_names(name, "bce") for t in side}
  assert terms == {*REACH, "real", "fake", "code_real", "code_fake"}


def test_gradients_against_finite_differences():
  """Each loss along a random direction of its own network, in float64."""
  with jax.enable_x64(True):
    run = run_of(
      flat(
        dtype="float64",
        posterior__name="mixture",
        posterior__components=2,
        objective__population="quadratic",
      )
    )
    rng = np.random.default_rng(0)
    params = (run.state.vae.params, run.state.disc.params)
    along = jax.tree.map(
      lambda v: jnp.asarray(rng.normal(size=v.shape)), params
    )
    batch = {"image": run.batch["image"].astype(jnp.float64)}

    @jit
    def losses(t):
      """t [2]: how far each network moves."""
      at = tuple(
        jax.tree.map(lambda p, a, t=t[i]: p + t * a, params[i], along[i])
        for i in range(2)
      )
      return step.losses(run.spec, run.state, batch, at)[0]

    @jit
    def slopes():
      _, grads, _ = step.gradients(run.spec, run.state, batch)
      return [optax.tree.vdot(*v) for v in zip(grads, along, strict=True)]

    for i, got in enumerate(slopes()):
      ahead = np.zeros(2)
      ahead[i] = 1e-6
      wanted = (losses(ahead)[i] - losses(-ahead)[i]) / 2e-6
      np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_both_updates_use_the_old_weights():
  """Neither network's update depends on whether the other one happens."""
  run = run_of(flat())
  after, _ = run.step(run.state, run.batch)
  assert all(moved(run.state.vae.params, after.vae.params).values())
  assert all(moved(run.state.disc.params, after.disc.params).values())
  of_vae, _ = run.step(run.state, run.batch, run.spec.weights.vae)
  of_disc, _ = run.step(run.state, run.batch, run.spec.weights.disc)
  assert_same(run.state.disc.params, of_vae.disc.params)
  assert_same(run.state.vae.params, of_disc.vae.params)
  assert_same((of_vae.vae, of_disc.disc), (after.vae, after.disc))


# ---------------------------------------------------------- K = 1


def test_a_mixture_of_one_is_the_gaussian_to_the_bit():
  """Metrics, gradients, Adam, moments and weights over three steps."""
  c = FLAT_BATCH.copy_and_resolve_references()
  c.posterior.name = "mixture"
  one, two = run_of(FLAT_BATCH), run_of(c)
  a, b = one.state, two.state
  assert b.vae.params["posterior"]["logits"]["kernel"].shape[1] == 1
  assert_same(a.vae.params, without_logits(b.vae.params))
  for t in range(3):
    a, of_a = one.step(a, images(one.config, t))
    b, of_b = two.step(b, images(two.config, t))
    assert_same(of_a, of_b)
  assert_same(a.vae.params, without_logits(b.vae.params))
  assert_same(a.ema, without_logits(b.ema))
  assert_same(a.disc, b.disc)
  adam, adam2 = a.vae.opt_state[0], b.vae.opt_state[0]
  assert_same(adam.mu, without_logits(adam2.mu))
  assert_same(adam.nu, without_logits(adam2.nu))
  assert not np.any(adam2.mu["posterior"]["logits"]["kernel"])


def without_logits(params):
  head = {k: v for k, v in params["posterior"].items() if k != "logits"}
  return params | {"posterior": head}


# ---------------------------------------------------------- when


LATE = flat(
  adversarial__disc_start=2,
  adversarial__gen_delay=3,
  ramp__adversarial=4,
  ema__decay=0.15,
)


def test_start_delay_and_ramp():
  """D from step 2; `adversarial` from 2 + 3, growing over 4 steps."""
  run = run_of(LATE)
  state, weights = run.state, []
  given = {"recon": 1.0, "adversarial": 100.0, "real": 1.0, "fake": 1.0}
  for t in range(12):
    old = state
    state, metrics = run.step(state, run.batch, given)
    changed = moved(
      (old.disc.params, old.disc.opt_state),
      (state.disc.params, state.disc.opt_state),
    )
    assert set(changed.values()) == {t >= 2}, t
    rest = metrics["vae/loss"] - metrics["vae/recon"]
    weights.append(float(rest / metrics["vae/adversarial"]))
  wanted = [0, 0, 0, 0, 0, 25, 50, 75, 100, 100, 100, 100]
  np.testing.assert_allclose(weights, wanted, rtol=1e-3, atol=1e-3)


def test_a_step_before_the_start_computes_no_discriminator():
  """The same step without it, which keeps it, whatever its weights are."""
  run = run_of(LATE)
  assert run.spec.at(2) is run.spec.at(9) is run.spec
  early = jit(partial(step.train_step, run.spec.at(1)))
  broken = jax.tree.map(lambda v: v * jnp.nan, run.state.disc.params)
  state = run.state.replace(disc=run.state.disc.replace(params=broken))
  wanted = run.state
  for t in range(2):
    batch = images(run.config, t)
    state, metrics = early(state, batch)
    wanted, of_all = run.step(wanted, batch)
    shown = {k: v for k, v in of_all.items() if k in metrics}
    assert_close(metrics | {"disc/loss": 0}, shown | {"disc/loss": 0}, 1e-5)
    left_out = of_all.keys() - metrics.keys()
    assert {k.partition("/")[0] for k in left_out} == {"vae", "disc"}
    assert "vae/adversarial" in left_out and "vae/grad_norm" not in left_out
  assert metrics["disc/loss"] == 0
  assert_same(state.disc, run.state.disc.replace(params=broken))
  rest = (v.replace(disc=None) for v in (state, wanted))
  assert_close(*rest, 1e-5)


def test_a_discriminator_of_codes_is_in_every_step():
  """Its objective's terms need it."""
  c = alone(flat, **peer_cases.changes("aae"), **LATE_START)
  spec = build.train_spec(c)
  assert spec.code_disc is not None and spec.at(0) is spec


@pytest.mark.parametrize("stop", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_starts_its_discriminator_late(
  stop, quick, tmp_path, capsys, monkeypatch
):
  """It says so once, and continues from before the start, bit for bit."""
  c = flat(
    **{"steps": 4, "log_every": 1, "eval_every": 4, "eval_images": 4},
    **{"checkpoint__every": 1, "checkpoint__keep_best": 0, "eval_draws": 1},
    **{"adversarial__disc_start": 2, "adversarial__gen_delay": 1},
    data__source="synthetic",
  )
  compiled, original = [], compiled_steps.compile_step

  def compile_(spec, *args):
    compiled.append(spec.started)
    return original(spec, *args)

  monkeypatch.setattr(compiled_steps, "compile_step", compile_)
  straight, halves = tmp_path / "straight", tmp_path / "halves"
  loop.train(c.copy_and_resolve_references(), str(straight))
  assert compiled == [False, True]
  said = capsys.readouterr().out
  lines = [line for line in said.splitlines() if " recon " in line]
  shown = [[f" {k} " in x for k in OF_GAN] for x in lines]
  assert shown == [[False] * 3] * 2 + [[True] * 3] * 2
  text = "2: the discriminator starts to learn, and the VAE to learn from it at"
  assert said.count(f"\n{text} 3.\n") == said.count("starts to learn") == 1
  logged = [row for row in rows(straight) if "vae/recon" in row]
  names = [{k for k in row if "disc/" in k or "advers" in k} for row in logged]
  assert names[:2] == [set(), set()]
  assert {"vae/adversarial", "disc/accuracy"} <= names[2] == names[3]

  first = c.copy_and_resolve_references()
  first.steps = stop
  loop.train(first, str(halves))
  compiled.clear()
  loop.train(c, str(halves))
  assert compiled == ([False, True] if stop < 2 else [True])
  shape = jax.eval_shape(partial(step.init, build.train_spec(c)))
  states = []
  for folder in (straight, halves):
    with Checkpoints(folder / "checkpoints", keep=9) as checkpoints:
      states.append(checkpoints.restore(shape))
  assert_same(*states)


OF_GAN = ("adversarial", "real", "fake")
LATE_START = {"adversarial__disc_start": 3, "adversarial__gen_delay": 2}
RAMPED = {  # for every term that may have one, a config with it
  "population_kl": flat,
  "collapse_penalty": flat,
  "kl": partial(elbo, flat),
  "kernel": partial(flat, **EVAE),
  "adversarial": partial(flat, **LATE_START),
  **{
    term: partial(
      *(alone, flat),
      **peer_cases.changes(name),
      **(LATE_START if term == "code_adversarial" else {}),
    )
    for term, name in peer_cases.TERMS.items()
  },
}


def test_every_key_of_a_ramp_is_tested():
  elsewhere = {"subset_kl"}  # test_config: it changes the step
  assert {*RAMPED, *elsewhere} == {*config.base().ramp}


@pytest.mark.parametrize("term", RAMPED)
def test_a_ramp_grows_from_0_to_the_weight(term):
  """At step 0, n - 1, n and later, as in NumPy; adversarial ones start late."""
  n, weight = 6, 12.0
  c = RAMPED[term](**{f"ramp__{term}": n})
  c.weights[term] = weight
  spec = build.train_spec(c)
  begin = 5 if "adversarial" in term else 0
  for t in (0, 4, 5, n - 1, n, n + begin - 1, n + begin, 3 * n):
    weights = spec.weights.vae_at(jnp.asarray(t, jnp.int32))
    share = np.interp(t + 1, [begin, begin + n], [0, 1])
    np.testing.assert_allclose(weights[term], weight * share, rtol=1e-6)
    others = {k: v for k, v in spec.weights.vae.items() if k != term}
    # `adversarial` has the discriminator's start and delay, which are 0 here.
    assert {k: float(weights[k]) for k in others} == others


CLIMBING = dict(
  ramp__population_kl=3, ramp__collapse_penalty=5, ramp__adversarial=4
)


def test_ramps_are_in_the_loss_and_not_in_the_terms():
  plain, run = run_of(flat()), run_of(flat(**CLIMBING))
  state, metrics = run.step(run.state, run.batch)
  _, wanted = plain.step(plain.state, plain.batch)
  for name in wanted:
    if not name.endswith(("loss", "grad_norm", "grad_ratio")):
      assert_close(metrics[name], wanted[name], 1e-6)
  for t in range(8):
    if t:
      state, metrics = run.step(state, images(run.config, t))
    total = sum(
      weight
      * min((t + 1) / run.spec.weights.ramps.get(k, 1), 1)
      * np.float64(metrics[f"vae/{k}"])
      for k, weight in run.spec.weights.vae.items()
    )
    np.testing.assert_allclose(metrics["vae/loss"], total, rtol=1e-5)


def test_a_ramp_resumes_from_a_checkpoint(tmp_path):
  """Two steps, saved and restored, and two more equal four, bit for bit."""
  run = run_of(flat(**CLIMBING))
  straight, wanted = run.steps(4)
  half, _ = run.steps(2)
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(2, half)
    at, state = checkpoints.restore(jax.eval_shape(lambda: half))
  assert at == 2
  for t in (2, 3):
    state, metrics = run.step(state, images(run.config, t))
  assert_same((state, metrics), (straight, wanted))


@pytest.mark.parametrize(
  ("make", "term", "words"),
  [
    (flat, "kl", ("'gamix'", "population_kl", "--config.ramp.kl=0")),
    (flat, "kernel", ("has no term kernel", "--config.ramp.kernel=0")),
    (
      partial(elbo, flat),
      "collapse_penalty",
      ("'elbo'", "--config.ramp.collapse_penalty=0"),
    ),
    (
      partial(alone, flat),
      "adversarial",
      ("'none'", "--config.ramp.adversarial=0"),
    ),
  ],
  ids=["kl", "kernel", "collapse_penalty", "adversarial"],
)
def test_a_ramp_of_no_term_is_refused(make, term, words):
  with pytest.raises(UserError) as e:
    build.train_spec(make(**{f"ramp__{term}": 600}))
  for word in (f"ramp.{term}=600", *words):
    assert word in str(e.value)


def test_the_bound_of_siwae_has_no_ramp():
  c = elbo(flat, ramp__kl=600)
  build.train_spec(c)
  c.objective.name = "siwae"
  with pytest.raises(UserError, match=r"ramp\.kl=600: .*--config\.ramp\.kl=0"):
    build.train_spec(c)


def test_the_published_schedule_starts_at_once():
  run = run_of(flat())
  _, m = run.step(run.state, run.batch)
  weights = run.spec.weights.vae
  total = sum(weights[k] * m[f"vae/{k}"] for k in weights)
  np.testing.assert_allclose(m["vae/loss"], total, rtol=1e-5)
  total = 100 * (m["disc/real"] + m["disc/fake"])
  np.testing.assert_allclose(m["disc/loss"], total, rtol=1e-5)


def test_average_of_weights_warms_up():
  """ema + (1 - d)(params - ema), d = min(decay, (1 + t) / (10 + t))."""
  run = run_of(LATE)
  state = run.state
  wanted = jax.tree.map(lambda v: np.asarray(v, np.float64), state.ema)
  decays = []
  for t in range(4):
    state, _ = run.step(state, images(run.config, t))
    d = min(0.15, (1 + t) / (10 + t))
    decays.append(d)
    wanted = jax.tree.map(
      lambda e, p, d=d: d * e + (1 - d) * np.asarray(p, np.float64),
      wanted,
      state.vae.params,
    )
    assert_close(state.ema, wanted, 1e-5)
  assert decays[0] == 0.1
  assert decays[1] == decays[3] == 0.15


def test_draws_are_a_function_of_seed_and_step():
  run = run_of(flat())
  (a, of_a), (b, of_b) = (run.step(run.state, run.batch) for _ in range(2))
  assert_same((a, of_a), (b, of_b))
  later = run.state.replace(step=jnp.asarray(1, jnp.int32))
  _, other = run.step(later, run.batch)
  assert float(other["vae/recon"]) != float(of_a["vae/recon"])
  # every image and latent has its own noise
  eps = jax.random.normal(run.spec.key(0), (1, 8, 4))
  assert len(np.unique(eps)) == eps.size


def test_bytes_and_floats_are_the_same_images():
  """0 is -1 and 255 is 1."""
  image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  got = np.asarray(to_float(jnp.asarray(image)))
  np.testing.assert_allclose(got, image / 127.5 - 1, atol=1e-6)
  assert got.min() == -1
  assert got.max() == 1
  np.testing.assert_array_equal(to_float(jnp.asarray(got)), got)


def test_no_discriminator():
  """The same state and step, with nothing in D's place."""
  run = run_of(ELBO_ALONE)
  assert jax.tree.leaves(run.state.disc) == []
  after, metrics = run.steps(2)
  assert jax.tree.leaves(after.disc) == []
  assert all(moved(run.state.vae.params, after.vae.params).values())
  assert not any(k.startswith("disc/") and k != "disc/loss" for k in metrics)
  assert metrics["disc/loss"] == 0


def test_init_is_a_function_of_the_seed():
  specs = [
    build.train_spec(flat(posterior__name=k)) for k in ("gaussian", "mixture")
  ]
  first, of_mixture = (
    jit(lambda seed, r=r: step.init(dataclasses.replace(r, seed=seed)))
    for r in specs
  )
  a, b, other, mixture = first(1), first(1), first(2), of_mixture(1)
  assert_same(a, b)
  for path, differs in moved(a.vae.params, other.vae.params).items():
    assert differs == ("kernel" in path), path
  assert_same(a.ema, a.vae.params)
  # another family does not change the weights that both have
  assert_same(a.vae.params, without_logits(mixture.vae.params))
  assert_same(a.disc, mixture.disc)


# ---------------------------------------------------------- what it survives


def test_a_batch_of_nan_is_skipped_and_counted():
  """Everything but the counters stays as it was; then the run continues."""
  run = run_of(FLAT_BATCH)
  before, _ = run.steps(2)
  state = before
  for n in (1, 2):
    state, metrics = run.step(state, BATCH_OF_NAN)
    assert not np.isfinite(metrics["vae/loss"])
    np.testing.assert_array_equal(state.nonfinite, [n, n])
    assert metrics["nonfinite/total"] == metrics["nonfinite/consecutive"] == n
  assert state.step == before.step + 2
  for part in ("vae", "disc"):
    assert_same(getattr(before, part), getattr(state, part))
  for leaf in jax.tree.leaves(state.ema):
    assert np.all(np.isfinite(leaf))
  state, metrics = run.step(state, run.batch)
  np.testing.assert_array_equal(state.nonfinite, [2, 0])
  assert np.isfinite(metrics["vae/loss"])
  for part in ("vae", "disc"):
    assert all(moved(getattr(before, part), getattr(state, part)).values())


def test_one_network_is_skipped_without_the_other():
  """D's loss is infinite: the VAE is updated as usual."""
  run = run_of(flat())
  weights = run.spec.weights.vae | {"real": np.inf, "fake": 1.0}
  state, _ = run.step(run.state, run.batch, weights)
  assert_same(run.state.disc, state.disc)
  usual, _ = run.step(run.state, run.batch)
  assert_same(usual.vae, state.vae)
  np.testing.assert_array_equal(state.nonfinite, [1, 1])


@pytest.mark.parametrize("level", [100.0, -100.0])
def test_an_extreme_logvar_is_finite(level):
  """In the head, through the complete step, for every population form."""
  for run in (run_of(flat()), run_of(ELBO_ALONE)):
    params = jax.tree.map(jnp.copy, run.state.vae.params)
    bias = params["posterior"]["logvar"]["bias"]
    params["posterior"]["logvar"]["bias"] = jnp.full_like(bias, level)
    state = run.state.replace(vae=run.state.vae.replace(params=params))
    state, metrics = run.step(state, run.batch)
    assert metrics["nonfinite/total"] == 0
    for name, value in metrics.items():
      assert np.all(np.isfinite(value)), name
    for leaf in jax.tree.leaves(state):
      assert np.all(np.isfinite(leaf))


def test_bfloat16_trains_digits():
  """200 steps, no non-finite value, all state in float32."""
  digits = load_digits().images.astype(np.float32)[..., None] / 8 - 1
  c = small(
    dtype="bfloat16",
    data__batch_size=32,
    objective__population="full",
    weights__recon=100.0,
    weights__collapse_penalty=1.0,
    weights__adversarial=1.0,
    weights__real=1.0,
    weights__fake=1.0,
    optim__vae__learning_rate=2e-3,
  )
  run = run_of(c)
  state, recon = run.state, []
  for t in range(200):
    rows = np.arange(32 * t, 32 * t + 32) % len(digits)
    state, metrics = run.step(state, {"image": jnp.asarray(digits[rows])})
    for name, value in metrics.items():
      assert np.all(np.isfinite(value)), (t, name)
      assert value.dtype in (jnp.float32, jnp.int32), name
    recon.append(float(metrics["vae/recon"]))
  assert metrics["nonfinite/total"] == 0
  assert np.mean(recon[-10:]) < 0.6 * recon[0]
  for leaf in jax.tree.leaves(state):
    assert leaf.dtype in (jnp.float32, jnp.int32)
    assert np.all(np.isfinite(leaf))


# ---------------------------------------------------------- two halves


def compiled_gradients(c):
  run = run_of(c)
  function = jit(partial(step.gradients, run.spec))
  compiled = function.lower(run.state, run.batch).compile()
  return compiled(run.state, run.batch), compiled.cost_analysis()["flops"]


@pytest.mark.parametrize("norm", ["group", "none"])
def test_real_and_fake_separately_equal_one_batch(norm, monkeypatch):
  """Equal losses, gradients and logits; the VAE's pullback costs less."""
  c = flat(
    model__norm=norm,
    objective__num_samples=2,
    # Groups of several channels: a bias in a group of one has no gradient.
    model__discriminator_features=(6, 6, 1),
    model__discriminator_strides=(2, 1, 1),
  )
  apart, cheap = compiled_gradients(c)
  monkeypatch.setattr(PatchDiscriminator, "joint", True)
  joint, dear = compiled_gradients(c)
  assert_close(apart, joint, 2e-5)
  assert cheap < dear


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_no_mask_of_dropout_is_used_twice(norm):
  """Equal real and fake images get different logits."""
  run = run_of(
    flat(
      model__norm=norm,
      model__dropout=0.5,
      model__discriminator_features=(8, 1),
    )
  )
  x, net = run.batch["image"], run.state.disc

  @jit
  def logits(key):
    both = jnp.stack([x, x])
    return step._discriminate(run.spec, net.params, net, x, both, key)[:2]

  real, fake = logits(jax.random.key(0))
  halves = [np.asarray(v).ravel() for v in (real, *fake)]
  for a, b in itertools.combinations(halves, 2):
    assert np.mean(a != b) > 0.5


# ---------------------------------------------------------- held out


def test_eval_step():
  """Its bounds against the terms written out; z with the given count."""
  run = run_of(alone(flat))
  variables = (run.state.vae.params, run.state.vae.batch_stats)
  batch = run.batch | {"step": jnp.asarray(3), "valid": jnp.ones(8)}
  evaluate = jit(partial(step.eval_step, run.spec, 5))
  got = evaluate(*variables, batch)
  assert_same(got["valid"], batch["valid"])
  for name in ("mae", "psnr", "elbo", "iwae", "kl"):
    assert got[name].shape == (8,), name
  assert np.all(got["iwae"] >= got["elbo"])
  x = run.batch["image"]

  @jit
  def reference():
    net = run.spec.vae.bind(
      {"params": variables[0], "batch_stats": variables[1]}
    )
    q = net.encode({"image": x})
    key = jax.random.fold_in(run.spec.key(3), 1)
    z = q.mu[None] + jnp.exp(q.logvar / 2)[None] * jax.random.normal(
      key, (5, 8, 4)
    )
    x_hat, shown = (net.decode(v)["image"] for v in (z, q.mu[None]))
    return q, z, x_hat, shown[0]

  q, z, x_hat, shown = (
    jax.tree.map(lambda v: np.asarray(v, np.float64), v) for v in reference()
  )
  x = np.asarray(x, np.float64)
  scale = 16 / 5000
  likelihood = -np.abs(x - x_hat).sum((2, 3, 4)) / scale - 16 * np.log(
    2 * scale
  )
  ratio = (
    likelihood
    - 0.5 * (z**2).sum(-1)
    + 0.5 * ((z - q.mu) ** 2 / np.exp(q.logvar) + q.logvar).sum(-1)
  )
  np.testing.assert_allclose(got["elbo"], ratio.mean(0), rtol=1e-4)
  top = ratio.max(0)
  iwae = top + np.log(np.exp(ratio - top).mean(0))
  np.testing.assert_allclose(got["iwae"], iwae, rtol=1e-4)
  mae = np.abs(x - np.clip(shown, -1, 1)).mean((1, 2, 3))
  np.testing.assert_allclose(got["mae"], mae, rtol=1e-4)
  mse = np.square(x - np.clip(shown, -1, 1)).mean((1, 2, 3))
  np.testing.assert_allclose(got["psnr"], 10 * np.log10(4 / mse), rtol=1e-4)

"""The model of several modalities: what it computes, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import alone, assert_close, assert_same, elbo, flat, jit
from modality_cases import (
  MODALITIES,
  all_masks,
  batch,
  built,
  leaves,
  several,
  variables,
  with_nan,
)

from gamix_jax import build, step
from gamix_jax.errors import UserError
from gamix_jax.modality import MASK
from gamix_jax.multimodal import FUSIONS, MultimodalVAE
from gamix_jax.objectives import OBJECTIVES
from gamix_jax.posterior import GaussianHead

MASKS = all_masks(3)[1:]
FUSED = [name for name in FUSIONS if name != "separate"]


def encoded(c, x):
  spec, state = built(c)
  run = jit(functools.partial(spec.vae.apply, method="encode"))
  return run(variables(state), x)


# -------------------------------------------------------------- encoding


@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_a_missing_modality_contains_changes_nothing(fusion):
  """To the bit, and NaN too: of the posterior and of private latents."""
  c = several(
    multimodal__fusion=fusion,
    multimodal__private=0 if fusion == "separate" else 2,
  )
  spec, _ = built(c)
  rows = batch(spec.modalities, MASKS)
  nan = with_nan(spec, rows)
  assert any(np.isnan(v).any() for v in leaves(nan))
  q = encoded(c, spec.observations(rows))
  assert_same(encoded(c, nan), q)
  assert all(np.isfinite(v).all() for v in leaves(q))


def test_the_order_of_data_modalities_does_not_matter():
  """The same weights by name, and private latents permuted with them."""
  order = [2, 0, 1]
  names = tuple(MODALITIES[i] for i in order)
  for fusion in ("poe", "attention"):
    flags = dict(multimodal__fusion=fusion, multimodal__private=2)
    ours, theirs = several(**flags), several(modalities=names, **flags)
    spec, state = built(ours)
    x = spec.observations(batch(spec.modalities, MASKS))
    q = encoded(ours, x)
    other, _ = built(theirs)
    x[MASK] = x[MASK][:, np.asarray(order)]
    p = other.vae.apply(variables(state), x, method="encode")
    np.testing.assert_allclose(p.shared.mu, q.shared.mu, atol=1e-5)
    np.testing.assert_allclose(p.mu, q.mu[:, np.asarray(order)], atol=1e-5)


def test_decoders_see_the_shared_latents_and_their_own():
  spec, state = built(several(multimodal__private=2))
  m, latent = len(MODALITIES), 4
  z = np.random.default_rng(0).normal(size=(1, 1, latent + 2 * m))

  @jit
  def decode(z):
    return spec.vae.apply(variables(state), z, method="decode")

  before = decode(jnp.asarray(z, jnp.float32))
  assert {k: v.shape for k, v in before.items()} == {
    "a": (1, 1, 3),
    "b": (1, 1, 4, 4, 1),
    "c": (1, 1, 5),
  }
  for i in range(z.shape[-1]):
    changed = z.copy()
    changed[..., i] += 1
    after = decode(jnp.asarray(changed, jnp.float32))
    for k, name in enumerate(before):
      seen = i < latent or (i - latent) // 2 == k
      assert bool(np.any(after[name] != before[name])) == seen, (i, name)


def test_separate_latents_are_decoded_one_by_one():
  spec, state = built(several("mmvm"))
  z = np.random.default_rng(0).normal(size=(2, 3, 12))

  @jit
  def decode(z):
    return spec.vae.apply(variables(state), z, method="decode")

  before = decode(jnp.asarray(z, jnp.float32))
  for k in range(3):
    changed = z.copy()
    changed[..., 4 * k : 4 * k + 4] += 1
    after = decode(jnp.asarray(changed, jnp.float32))
    moved = [bool(np.any(after[n] != before[n])) for n in before]
    assert moved == [i == k for i in range(3)]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_sizes_of_subsets_that_training_has_seen(fusion):
  def sizes(observed, subsets=""):
    vae = MultimodalVAE(
      encoders={},
      fusion=FUSIONS[fusion](("a", "b", "c"), GaussianHead(2)),
      decoders={},
      subsets=subsets,
    )
    return vae.trained_sizes(observed)

  learned = fusion in ("sum_pooling", "attention")
  assert sizes(()) == (1, 2, 3)  # nothing is known about the data
  assert sizes((1, 2, 3)) == (1, 2, 3)
  assert sizes((3,)) == sizes((3,), "all") == ((3,) if learned else (1, 2, 3))
  assert sizes((3, 1)) == ((1, 3) if learned else (1, 2, 3))
  assert sizes((3,), "uniform_size") == (1, 2, 3)
  assert sizes((2,), "bernoulli") == ((1, 2) if learned else (1, 2, 3))


def test_prior_draws_have_the_models_latents():
  """Of separate latents N(0, I) is drawn once for all modalities."""
  for c, d in (
    (several(), 4),
    (several(multimodal__private=2), 10),
    (several("mmvm"), 12),
  ):
    spec, state = built(c)
    assert spec.vae.latent == d
    z = spec.vae.apply(
      variables(state), jax.random.key(0), 2_000, method="prior_draws"
    )
    assert z.shape == (2_000, d)
    np.testing.assert_allclose(np.mean(z, 0), 0, atol=0.1)
    np.testing.assert_allclose(np.var(z, 0), 1, atol=0.15)
    if d == 12:
      np.testing.assert_array_equal(z, np.tile(z[:, :4], 3))
    else:
      off = np.corrcoef(z.T) - np.eye(d)
      assert np.abs(off).max() < 0.1


# ------------------------------------------------------ the standard VAE


ONE = ("image 4x4x1 l1 1.0",)


@pytest.mark.parametrize(
  ("objective", "changes"),
  [
    ("elbo", dict(multimodal__fusion="separate")),
    ("mmvm", dict(objective__mmvm__alpha=1.0)),
    (
      "mmvm",
      dict(objective__mmvm__alpha=1.0, objective__mmvm__estimate="surrogate"),
    ),
    ("elbo", dict(multimodal__fusion="avg")),
    ("elbo", dict(multimodal__fusion="mopoe")),
    ("masked", dict(multimodal__fusion="avg", multimodal__subsets="all")),
    (
      "mixture_bound",
      dict(multimodal__fusion="poe", multimodal__subsets="all"),
    ),
  ],
)
def test_one_modality_is_a_standard_vae(objective, changes):
  """The same weights, images and noise give its terms.

  Objectives that estimate the KL do it from many draws.
  """
  draws = 3_000
  c = several(objective, ONE, objective__num_samples=draws, **changes)
  spec, state = built(c)
  plain, reference = built(
    elbo(
      functools.partial(alone, flat),
      objective__num_samples=draws,
      weights__recon=1.0,
      model__encoder="mlp",
      model__decoder="mlp",
      model__encoder_features=(6,),
      model__decoder_features=(6,),
      model__norm="none",
      model__input_norm="none",
    )
  )
  assert isinstance(spec.vae, MultimodalVAE)
  assert not isinstance(plain.vae, MultimodalVAE)
  of = state.vae.params
  params = {
    "encoder": of["encoders_image"],
    "posterior": of["fusion"]["experts_image"],
    "decoder": of["decoders_image"],
  }
  shapes = jax.tree.map(jnp.shape, reference.vae.params)
  assert jax.tree.map(jnp.shape, params) == shapes
  reference = reference.replace(vae=reference.vae.replace(params=params))
  rows = batch(spec.modalities, np.ones((8, 1)))

  def terms(spec, state):
    run = jit(functools.partial(step.losses, spec))
    _, (metrics, _) = run(state, rows, (state.vae.params, state.disc.params))
    return metrics

  ours, theirs = terms(spec, state), terms(plain, reference)
  exact = objective == "elbo" or changes.get("objective__mmvm__estimate")
  rel = {"vae/recon": 0.01, "vae/kl": 0.02}
  if exact and changes.get("multimodal__fusion") not in ("moe", "mopoe"):
    rel["vae/kl"] = 1e-5  # in closed form
  for k, limit in rel.items():
    assert float(ours[k]) == pytest.approx(float(theirs[k]), rel=limit), k
  if objective == "masked":
    assert float(ours["vae/subset_kl"]) == 0


# ------------------------------------------------------------- the step


@pytest.mark.parametrize(
  ("fusion", "private"),
  [*((name, 0) for name in FUSED), ("poe", 2), ("attention", 2)],
)
def test_a_step_of_each_fusion(fusion, private):
  """Finite, and it moves every parameter; with missing modalities."""
  c = several(
    "masked",
    multimodal__fusion=fusion,
    multimodal__private=private,
    optim__vae__learning_rate=1e-2,
  )
  spec, state = built(c)
  rows = batch(spec.modalities, np.concatenate([MASKS, MASKS]))
  after, metrics = jit(functools.partial(step.train_step, spec))(state, rows)
  assert all(np.isfinite(v).all() for v in leaves(metrics))
  assert float(metrics["nonfinite/total"]) == 0
  before = jax.tree_util.tree_leaves_with_path(state.vae.params)
  for (path, a), b in zip(before, leaves(after.vae.params), strict=True):
    assert np.any(a != b), path
  assert {"vae/recon", "vae/kl", "vae/subset_kl"} <= metrics.keys()


@pytest.mark.parametrize(
  ("objective", "fusion"),
  [
    *(("mmvm", "separate"), ("gamix", "separate")),
    *(("siwae", "separate"), ("siwae", "moe"), ("elbo", "attention")),
  ],
)
def test_held_out_metrics(objective, fusion):
  """Bounds of each observation; NaN exactly where a modality is missing."""
  spec, state = built(several(objective, multimodal__fusion=fusion))
  rows = batch(spec.modalities, MASKS) | {"step": jnp.zeros((), jnp.int32)}
  found = jit(functools.partial(step.eval_step, spec, 64))(
    state.vae.params, {}, rows
  )
  for i, (name, k) in enumerate(
    {"a": "a/mae", "b": "b/mae", "c": "c/accuracy"}.items()
  ):
    assert name in spec.modalities
    np.testing.assert_array_equal(np.isnan(found[k]), MASKS[:, i] == 0)
  for k in ("elbo", "iwae", "kl"):
    assert np.isfinite(found[k]).all()
  assert np.all(found["iwae"] >= found["elbo"] - 1e-4)
  assert found["mean"].shape == found["var"].shape
  assert np.all(np.asarray(found["var"]) > 0)


def test_a_learned_prior_of_fused_latents():
  """Trained by masked and mixture_bound; draws come from it."""
  c = several(
    "mixture_bound",
    multimodal__fusion="sum_pooling",
    prior__name="mixture",
    prior__components=3,
    optim__vae__learning_rate=1e-2,
  )
  spec, state = built(c)
  rows = batch(spec.modalities, MASKS)
  after, metrics = jit(functools.partial(step.train_step, spec))(state, rows)
  assert all(np.isfinite(v).all() for v in leaves(metrics))
  for a, b in zip(
    leaves(state.vae.params["prior"]),
    leaves(after.vae.params["prior"]),
    strict=True,
  ):
    assert np.any(a != b)


def test_weights_of_modalities():
  """Given, by default, and by size; they multiply each one's error."""
  names = ("a 3 l2 2.0", "b 4x4x1 l1", "c 5 categorical size")
  spec, _ = built(several(modalities=names))
  found = {k: m.weight for k, m in spec.modalities.items()}
  # b: 16 / 2; c: 5 classes times 16 / 5.
  assert found == {"a": 2.0, "b": 8.0, "c": pytest.approx(16.0)}
  rows = batch(spec.modalities, MASKS)
  x = spec.observations(rows)
  x_hat = {k: jnp.zeros((2, *v.shape)) for k, v in x.items() if k != MASK}
  errors = spec.objective.errors_of(x, x_hat)
  wanted = (
    2.0 * MASKS[:, 0] * np.mean(np.square(x["a"]), 1)
    + 8.0 * MASKS[:, 1] * np.mean(np.abs(x["b"]), (1, 2, 3))
    + 16.0 * MASKS[:, 2] * np.log(5) / 5
  )
  assert_close(errors, np.stack([wanted, wanted]), 1e-5)


# -------------------------------------------------------------- refused


REFUSED = {
  "batch norm": (
    dict(model__norm="batch"),
    r"model\.norm='batch' .* use --config\.model\.norm=group or none",
  ),
  "private with separate": (
    dict(objective="mmvm", multimodal__private=2),
    r"multimodal\.private=2, .*'separate' .*--config\.multimodal\.private=0",
  ),
  "vamp": (
    dict(prior__name="vamp", prior__components=3),
    r"prior\.name='vamp' .* use --config\.prior\.name=mixture or normal",
  ),
  "learned prior with separate": (
    dict(
      multimodal__fusion="separate", prior__name="mixture", prior__components=3
    ),
    r"prior\.name='mixture' is for latents that all modalities share",
  ),
  "learned prior with private": (
    dict(multimodal__private=2, prior__name="mixture", prior__components=3),
    r"prior\.name='mixture' .*--config\.multimodal\.private=0",
  ),
  "learned prior with tc": (
    dict(objective="tc", prior__name="mixture", prior__components=3),
    r"prior\.name='mixture' is for .* the objectives .*masked.* gaussian/tc",
  ),
  "mmvm on fused latents": (
    dict(objective="mmvm", multimodal__fusion="poe"),
    r"objective\.name='mmvm' is not defined for multimodal\.fusion='poe' with "
    r"posterior\.name='gaussian'; use one of gamix, elbo, .*masked, "
    r"mixture_bound, tc\.",
  ),
  "masked on separate latents": (
    dict(objective="masked", multimodal__fusion="separate"),
    r"objective\.name='masked' is not defined for multimodal\.fusion="
    r"'separate'.*use one of .*mmvm, mmvm_population",
  ),
  "adversarial loss": (
    dict(adversarial__loss="bce"),
    r"adversarial\.loss='bce' is for runs of images; .*adversarial\.loss=none",
  ),
  "heads that do not divide the width": (
    dict(multimodal__fusion="attention", multimodal__heads=3),
    r"multimodal\.width=8 must be a multiple of multimodal\.heads=3",
  ),
  "too many subsets": (
    dict(
      multimodal__fusion="mopoe",
      modalities=tuple(f"m{i} 2 l2" for i in range(9)),
    ),
    r"mopoe.* 8 modalities at most; there are 9",
  ),
  "an unknown fusion": (
    dict(multimodal__fusion="po"),
    r"multimodal\.fusion='po'",
  ),
  "an unknown law of subsets": (
    dict(objective="masked", multimodal__subsets="uniform"),
    r"multimodal\.subsets='uniform'",
  ),
  "an unknown estimate": (
    dict(objective="mmvm", objective__mmvm__estimate="pairwise"),
    r"objective\.mmvm\.estimate='pairwise'",
  ),
  "an alpha above 1": (
    dict(objective="mmvm", objective__mmvm__alpha=1.5),
    r"objective\.mmvm\.alpha=1\.5 must be from 0 to 1",
  ),
  "a negative number of steps": (
    dict(objective="mmvm", objective__mmvm__alpha_steps=-1),
    r"objective\.mmvm\.alpha_steps=-1 must be 0 or more",
  ),
  "an unknown count of the KL": (
    dict(objective="mixture_bound", objective__mixture_bound__kl_count="m"),
    r"objective\.mixture_bound\.kl_count='m'",
  ),
  "products of mixtures": (
    dict(posterior__name="mixture", posterior__components=2),
    r"posterior\.name=gaussian, or the multimodal\.fusion sum_pooling",
  ),
  "a pooled Poisson posterior": (
    dict(multimodal__fusion="sum_pooling", posterior__name="poisson"),
    r"posterior\.name=gaussian or mixture",
  ),
  "the closed form of a linear decoder": (
    dict(objective="exact"),
    r"'exact' is not defined for .*; use one of (?!.*exact)",
  ),
  "a preset": (dict(preset="small"), r"preset='small' is for runs of images"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(changes, message):
  """With what is wrong and what to write, before anything is computed."""
  c = several(**changes)
  with pytest.raises(UserError, match=message):
    jax.eval_shape(functools.partial(step.init, build.train_spec(c)))


@pytest.mark.parametrize(
  "name", [n for n, o in OBJECTIVES.items() if o.subsets]
)
def test_subsets_need_several_modalities(name):
  c = alone(flat)
  terms = dict.fromkeys(OBJECTIVES[name].terms, 1.0)
  c.objective.name = name
  c.weights.update(dict.fromkeys(c.weights) | terms)
  with pytest.raises(UserError, match=rf"'{name}' is for several modalities"):
    build.train_spec(c)


def test_mmvm_needs_several_modalities():
  c = alone(flat)
  c.objective.name = "mmvm"
  c.weights.update(dict.fromkeys(c.weights) | {"recon": 1.0, "kl": 1.0})
  with pytest.raises(UserError, match=r"'mmvm' is not defined for .*gaussian"):
    build.train_spec(c)


def test_keys_of_several_modalities_need_them():
  c = alone(flat, multimodal__fusion="avg")
  with pytest.raises(
    UserError, match=r"multimodal\.fusion: set, but data\.modalities is empty"
  ):
    build.train_spec(c)

"""What makes a step fast, checked without a clock.

Its FLOPs, its convolutions and their types, and that it is compiled once. The
reference is the analytic count in `benchmarks/flops.py`.
"""

import collections
import functools
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from conftest import alone, flat, small
from stablehlo import products

from benchmarks import flops
from gamix_jax import build, config, step
from gamix_jax.errors import UserError
from gamix_jax.training import loop
from gamix_jax.training.profiling import Profile
from gamix_jax.training.progress import Progress

WIDE = dict(
  data__image_size=32,
  data__batch_size=2,
  model__encoder_features=(32, 32),
  model__decoder_features=(32, 1),
  model__discriminator_features=(32, 32, 1),
  model__discriminator_strides=(2, 1, 1),
  objective__population="full",
)


def wide(**changes):
  return small(**WIDE, **changes)


@functools.cache
def lowered(platform=None, **changes):
  """Returns the step of `wide`, lowered for this platform or for another."""
  c = wide(**changes)
  spec = build.train_spec(c)
  state = jax.eval_shape(partial(step.init, spec))
  shape = (c.data.batch_size, *config.image_shape(c))
  batch = {"image": jax.ShapeDtypeStruct(shape, jnp.float32)}
  traced = jax.jit(partial(step.train_step, spec)).trace(state, batch)
  return traced.lower(lowering_platforms=platform and (platform,))


# ---------------------------------------------------------- arithmetic

MIXTURE = dict(posterior__name="mixture", posterior__components=4)


@pytest.mark.parametrize(
  ("platform", "changes"),
  [
    (None, dict(model__norm="affine")),
    ("cuda", dict(model__norm="affine")),
    (None, dict(model__norm="batch")),
    (None, MIXTURE),
  ],
  ids=["affine", "cuda", "batch", "mixture"],
)
def test_flops_of_the_step(platform, changes):
  """XLA's count is within 5 % of the analytic one: no second forward pass."""
  c = wide(**changes)
  got = flops_of(platform, **changes)
  wanted = flops.per_image(c, edges=True)["total"]
  assert abs(got / wanted - 1) < 0.05
  # The limit is tight enough to detect a difference.
  if c.model.norm == "affine" and c.posterior.components == 1:
    full = flops.per_image(c, edges=True, early=False)["total"]
    assert abs(got / full - 1) > 0.05
  assert sum(v.flops(True) for v in flops.encoder(c, True)) > 0.2 * wanted


@pytest.mark.parametrize("input_norm", ["layer", "none"])
@pytest.mark.parametrize(
  ("encoder", "decoder", "patch"),
  [
    (("mlp", (192, 128)), ("mlp", (128, 192)), 1),
    (("conv", (48, 96)), ("conv", (96, 48)), 1),
    (("conv", (48,)), ("resnet", (48, 32)), 2),
    (("resnet", (48, 48, 48)), ("mlp", (128, 192)), 2),
    (("mlp", (192,)), ("resnet", (48, 24, 8)), 1),
  ],
)
def test_flops_of_other_networks(encoder, decoder, patch, input_norm):
  """XLA's count of both gradients; the first layer's to x only if needed."""
  keys = dict(patch=patch, input_norm=input_norm, norm="none", latent=32)
  for part, (name, features) in (("encoder", encoder), ("decoder", decoder)):
    keys |= {part: name, f"{part}_features": features}
  c = alone(
    data__image_size=32,
    data__batch_size=16,
    **{f"model__{k}": v for k, v in keys.items()},
  )
  config.check(c)
  spec = build.train_spec(c)
  state = jax.eval_shape(partial(step.init, spec))
  batch = {"image": jax.ShapeDtypeStruct((16, 32, 32, 1), jnp.float32)}
  gradients = jax.jit(lambda *args: step.gradients(spec, *args)[1])
  got = gradients.lower(state, batch).cost_analysis()["flops"] / 16
  wanted = flops.per_image(c, edges=True)["total"]
  assert abs(got / wanted - 1) < 0.05
  first = flops.encoder(c, True)[0].flops(True)
  if first > 0.1 * wanted:  # large enough to be visible
    wrong = wanted + first * (1 if input_norm == "none" else -1)
    assert abs(got / wrong - 1) > 0.05


def test_a_linear_network_is_not_counted():
  for part in ("encoder", "decoder"):
    c = alone(**{f"model__{part}": "linear"})
    with pytest.raises(UserError, match=f"model.{part}='linear'"):
      flops.per_image(c)


def flops_of(platform=None, **changes):
  """Returns XLA's count per image."""
  found = lowered(platform, **changes).cost_analysis()["flops"]
  return found / wide().data.batch_size


def test_four_components_cost_four_decoder_passes():
  """And no second pass of the encoder, nor more convolutions."""
  alone = dict(model__norm="affine")
  four, one = flops_of(**MIXTURE), flops_of(**alone)
  c = wide(**MIXTURE)
  decoder = 3 * sum(v.flops(True) for v in flops.decoder(c))
  encoder = sum(v.flops(True) for v in flops.encoder(c, True))
  disc = flops.per_image(c, edges=True)["disc"]
  single = flops.per_image(wide(), edges=True)["disc"]
  extra = four - one - (disc - single)  # D looks at all of them
  assert extra < 3 * decoder + 0.3 * encoder
  assert extra > 2.7 * decoder
  count = [
    sum(1 for _ in products(lowered(None, **k).as_text(), "convolution"))
    for k in (MIXTURE, alone)
  ]
  assert count[0] == count[1]


# ---------------------------------------------------------- convolutions


@pytest.mark.parametrize("norm", ["affine", "batch"])
def test_convolutions_of_the_step(norm):
  """Each forward, to its weights and to its inputs; D's first not to x."""
  c = wide(model__norm=norm)
  text = lowered("cuda", model__norm=norm).as_text()
  vae = len(flops.encoder(c, True)[:-1]) + len(flops.decoder(c)[1:])
  d = len(flops.discriminator(c))
  forward, weights, between, to_x_hat = d, d, d - 1, d
  wanted = 3 * vae + forward + weights + between + to_x_hat
  assert sum(1 for _ in products(text, "convolution")) == wanted


def test_bfloat16_has_no_convolution_in_float32():
  """Nor a matmul of the networks; the population's moments are in float32."""
  c = wide(dtype="bfloat16")
  text = lowered("cuda", dtype="bfloat16").as_text()
  kinds = collections.Counter(
    kind for types in products(text, "convolution") for _, kind in types
  )
  assert set(kinds) == {"bf16"}
  d, b = c.model.latent, c.data.batch_size
  for (a, kind), (b_, other), _ in products(text, "dot_general"):
    if "f32" in (kind, other):
      assert max(size(a), size(b_)) <= max(b * d, d * d), (a, b_)
  # In float32 the same parser finds them.
  text = lowered("cuda", model__norm="affine").as_text()
  assert {t for p in products(text, "convolution") for _, t in p} == {"f32"}
  assert any(size(a) > b * d for (a, _), _, _ in products(text, "dot_general"))


def size(shape):
  out = 1
  for n in shape:
    out *= n
  return out


# ---------------------------------------------------------- compiled once


def test_nothing_is_compiled_after_the_first_step(tmp_path, monkeypatch):
  """Through the real loop, with logging, up to the first validation."""
  c = flat(
    steps=6,
    log_every=2,
    eval_every=100,
    eval_images=8,
    eval_draws=1,
    data__source="synthetic",
    checkpoint__every=100,
    checkpoint__keep_best=0,
  )
  seen = []

  def heard(event, seconds, **kwargs):
    if event == "/jax/core/compile/backend_compile_duration":
      seen.append("compiled")

  def after(self, done, state):
    seen.append(done)
    return False

  jax.monitoring.register_event_duration_secs_listener(heard)
  monkeypatch.setattr(Profile, "after", after)
  monkeypatch.setattr(Progress, "show", lambda *args: None)
  try:
    loop.train(c, str(tmp_path / "run"))
  finally:
    jax.monitoring.unregister_event_duration_listener(heard)
  first, last = seen.index(1), seen.index(6)
  assert "compiled" in seen[:first]  # the listener works
  assert seen[first : last + 1] == [1, 2, 3, 4, 5, 6]

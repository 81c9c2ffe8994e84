"""Networks: counts, shapes, arithmetic, and what they save against what ran."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import (
  FLAT_BATCH,
  alone,
  assert_close,
  flat,
  jit,
  moved,
  run_of,
  small,
)
from flax import linen as nn

from benchmarks import flops
from gamix_jax import build, config, ops, step
from gamix_jax.errors import UserError
from gamix_jax.networks import NORMS, PatchDiscriminator
from gamix_jax.networks.parts import Affine
from gamix_jax.networks.resnet import POINTWISE_NORMS, Encoder, ResidualBlock


def count(tree):
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def test_counts_of_the_published_model():
  """At 256x256x3 with 512 latents, to the unit."""
  recipe = build.recipe(config.base())
  state = jax.eval_shape(partial(step.init, recipe))
  params, stats = state.vae.params, state.vae.batch_stats
  both = {
    name: count(params[name]) + count(stats.get(name, {}))
    for name in ("encoder", "posterior", "decoder")
  }
  assert both == {
    "encoder": 5_882_944,
    "posterior": 1_049_600,
    "decoder": 4_049_522,
  }
  assert count(state.disc.params) + count(state.disc.batch_stats) == 412_101
  assert count((params, state.disc.params)) == 11_368_815
  assert count((stats, state.disc.batch_stats)) == 25_352


@pytest.mark.parametrize(
  ("norm", "size", "channels"),
  [
    ("affine", (8, 12), 1),
    ("batch", (4, 4), 3),
    ("group", (16, 8), 3),
    ("none", (4, 8), 1),
  ],
)
def test_any_size_that_divides(norm, size, channels):
  c = small(
    model__norm=norm,
    data__image_size=size,
    data__channels=channels,
    model__encoder_features=(4, 6, 8),
    model__decoder_features=(8, 6, channels),
    posterior__name="mixture",
    posterior__components=2,
    objective__draws=3,
  )
  recipe = build.recipe(c)
  state = jax.eval_shape(partial(step.init, recipe))
  x = jax.ShapeDtypeStruct((5, *size, channels), jnp.float32)
  variables = {
    "params": state.vae.params,
    "batch_stats": state.vae.batch_stats,
  }
  q, z, w, x_hat = jax.eval_shape(
    partial(recipe.vae.apply, draws=3), variables, x, jax.random.key(0)
  )
  assert q.mu.shape == (5, 2, 4)
  assert z.shape == (6, 5, 4)
  assert w.shape == (6, 5)
  assert x_hat.shape == (6, *x.shape)
  logits = jax.eval_shape(
    recipe.disc.apply,
    {"params": state.disc.params, "batch_stats": state.disc.batch_stats},
    x,
  )
  assert logits.shape == (5, size[0] // 2, size[1] // 2, 1)


def test_a_size_that_does_not_divide_names_those_that_do():
  with pytest.raises(UserError, match="sizes that do: 8, 16, 24"):
    config.check(
      small(
        data__image_size=15,
        model__encoder_features=(4,) * 4,
        model__decoder_features=(4, 4, 4, 1),
      )
    )


# ---------------------------------------------------------- the down block


class Published(ResidualBlock):
  """The down block in the order that ran: strides in the 1x1 convolutions."""

  @nn.compact
  def __call__(self, x, train):
    y = nn.relu(self.normed("bn1", x, train))
    y = self.conv(self.features, 3, "conv1")(y)
    y = nn.relu(self.normed("bn2", y, train))
    y = self.conv(self.features, 3, "conv2")(y)
    y = nn.relu(self.normed("bn3", y, train))
    y = self.conv(self.features, 1, "conv3", strides=2)(y)
    x = nn.relu(self.normed("bn4_shortcut", x, train))
    return self.conv(self.features, 1, "conv4_shortcut", strides=2)(x) + y


@pytest.mark.parametrize("norm", POINTWISE_NORMS)
def test_early_stride_is_exact(norm):
  """Forward and every gradient, also to the input, at an odd-looking size."""
  ours = ResidualBlock(features=5, down=True, norm=norm)
  theirs = Published(features=5, down=True, norm=norm)
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 6, 10, 3)), jnp.float32)
  variables = jax.eval_shape(
    partial(ours.init, train=True), jax.random.key(0), x
  )
  assert jax.tree.structure(variables) == jax.tree.structure(
    jax.eval_shape(partial(theirs.init, train=True), jax.random.key(0), x)
  )
  variables = jax.tree.map(
    lambda v: jnp.asarray(rng.uniform(0.5, 1.5, v.shape) - 0.7, v.dtype),
    variables,
  )
  if "batch_stats" in variables:
    variables["batch_stats"] = jax.tree.map(
      lambda v: jnp.abs(v) + 0.1, variables["batch_stats"]
    )
  weight = jnp.asarray(rng.normal(size=(2, 3, 5, 5)), jnp.float32)

  def both(block, params, x):
    def total(params, x):
      out = block.apply(variables | {"params": params}, x, True)
      return jnp.sum(out * weight), out

    return jax.value_and_grad(total, (0, 1), has_aux=True)(params, x)

  got, wanted = (
    jit(partial(both, block))(variables["params"], x)
    for block in (ours, theirs)
  )
  assert_close(got, wanted, 1e-5)


def strides_of_3x3(norm):
  block = ResidualBlock(features=4, down=True, norm=norm)
  x = jnp.zeros((1, 8, 8, 4))
  text = str(
    jax.make_jaxpr(partial(block.init_with_output, train=True))(
      jax.random.key(0), x
    )
  )
  return re.findall(r"window_strides=\((\d), \d\)", text)


def test_the_full_form_where_pixels_are_coupled(monkeypatch):
  """Batch and group statistics are over all pixels: nothing may be cut."""
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # for ops.py
  for norm in POINTWISE_NORMS:
    assert strides_of_3x3(norm) == ["1", "2", "1", "1"]
  for norm in ("batch", "group"):
    assert strides_of_3x3(norm) == ["1", "1", "2", "2"]


# ---------------------------------------------------------- norms


def test_affine_does_not_look_at_the_batch():
  """x / sqrt(1 + 1e-3) * scale + bias, and its statistics stay."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(3, 2, size=(4, 2, 2, 3)), jnp.float32)
  layer = Affine(jnp.float32, jnp.float32)
  params = {"scale": jnp.asarray([1.0, 2, 3]), "bias": jnp.asarray([0.0, 1, 2])}
  stats = {"mean": jnp.zeros(3), "var": jnp.ones(3)}
  out, new = layer.apply(
    {"params": params, "batch_stats": stats}, x, mutable=["batch_stats"]
  )
  wanted = np.asarray(x) / np.sqrt(1.001) * [1, 2, 3] + [0, 1, 2]
  np.testing.assert_allclose(out, wanted, rtol=1e-6)
  assert jax.tree.map(np.asarray, new["batch_stats"]).keys() == stats.keys()
  np.testing.assert_array_equal(new["batch_stats"]["mean"], stats["mean"])


def test_moving_statistics_move_with_batch_only():
  for c, moves in ((flat(), False), (FLAT_BATCH, True)):
    run = run_of(c)
    after, _ = run.steps(1)
    changed = moved(run.state.disc.batch_stats, after.disc.batch_stats)
    assert changed
    assert set(changed.values()) == {moves}


def test_batch_norm_is_over_the_whole_batch():
  """The first normalisation's moving mean against NumPy's of its input."""
  run = run_of(small(model__norm="batch"))
  net, x = run.state.vae, np.asarray(run.batch["image"], np.float64)

  @jit
  def statistics(params, stats, x):
    variables = {"params": params, "batch_stats": stats}
    return run.recipe.vae.encoder.apply(
      variables, x, True, mutable=["batch_stats"]
    )[1]["batch_stats"]

  new = statistics(
    net.params["encoder"], net.batch_stats["encoder"], run.batch["image"]
  )
  p = jax.tree.map(lambda v: np.asarray(v, np.float64), net.params["encoder"])
  mean, var = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
  scale, bias = (p["layernorm"][k][None, ..., None] for k in ("scale", "bias"))
  y = (x - mean) / np.sqrt(var + 1e-3) * scale + bias
  padded = np.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0)))
  h, w = x.shape[1:3]
  stem = p["stem"]["bias"] + sum(
    padded[:, i : i + h, j : j + w] @ p["stem"]["kernel"][i, j]
    for i in range(3)
    for j in range(3)
  )
  old = net.batch_stats["encoder"]
  for key in ("stage0", "block0", "bn1", "norm"):
    old, new = old[key], new[key]
  np.testing.assert_allclose(
    new["mean"],
    0.99 * old["mean"] + 0.01 * stem.mean((0, 1, 2)),
    rtol=1e-4,
    atol=1e-6,
  )
  np.testing.assert_allclose(
    new["var"], 0.99 * old["var"] + 0.01 * stem.var((0, 1, 2)), rtol=1e-4
  )


def test_no_bias_before_batch_statistics():
  """They would take it out again; its gradient would be rounding."""
  params = run_of(alone(model__norm="batch")).state.vae.params
  block = params["encoder"]["stage0"]["block0"]
  assert "bias" not in block["conv1"]
  assert "bias" not in block["conv2"]
  assert "bias" in block["conv3"]


def test_logits_keep_their_level_without_batch_statistics():
  for norm, there in zip(NORMS, (True, True, False, False), strict=True):
    d = PatchDiscriminator(features=(4, 1), strides=(2, 1), norm=norm)
    shapes = jax.eval_shape(d.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    assert ("bn" in shapes["params"]["layer1"]) == there


def test_dropout_needs_its_rate():
  """In training only, and not at rate 0."""
  x = jnp.ones((2, 8, 8, 1))
  variables = run_of(small()).state.disc
  variables = {
    "params": variables.params,
    "batch_stats": variables.batch_stats,
  }
  for rate in (0.0, 0.5):
    d = PatchDiscriminator(features=(4, 1), strides=(2, 1), dropout=rate)

    def apply(train, d=d):
      rngs = {"dropout": jax.random.key(1)}
      return d.apply(variables, x, train=train, rngs=rngs)

    still, moving = jit(lambda apply=apply: (apply(False), apply(True)))()
    assert bool(jnp.all(still == moving)) == (rate == 0)


def test_bfloat16_computes_in_it_and_keeps_float32(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # for ops.py
  encoder = Encoder(features=(4, 4), head_features=2, dtype=jnp.bfloat16)
  x = jnp.zeros((1, 8, 8, 1))
  shapes = jax.eval_shape(
    partial(encoder.init_with_output, train=True), jax.random.key(0), x
  )
  assert shapes[0].dtype == jnp.bfloat16
  assert {v.dtype for v in jax.tree.leaves(shapes[1])} == {jnp.dtype("float32")}
  text = str(
    jax.make_jaxpr(lambda v: encoder.apply(v, x, True))(
      jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[1])
    )
  )
  convs = re.findall(r"(\w+)\[[^\]]*\] = conv_general_dilated", text)
  assert len(convs) == 3 * 2 + 4 + 2
  assert set(convs) == {"bf16"}


# ---------------------------------------------------------- operations


def assert_same_operation(forms, x, kernel, dtype):
  """Forward and both gradients equal, to rounding."""
  weight = np.random.default_rng(1).normal(
    size=jax.eval_shape(forms[0], x, kernel).shape
  )

  def both(function, x, kernel):
    def total(x, kernel):
      out = function(x, kernel)
      return jnp.sum((out * weight).astype(jnp.float32)), out

    (_, out), grads = jax.value_and_grad(total, (0, 1), has_aux=True)(x, kernel)
    return out, grads

  got, wanted = (jit(partial(both, f))(x, kernel) for f in forms)
  assert got[0].shape == weight.shape
  assert_close(got, wanted, 2e-2 if dtype == "bfloat16" else 1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stride", [1, 2])
def test_conv_of_one_pixel(dtype, stride):
  """Against XLA's own operation."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 4, 6, 5)), dtype)
  kernel = jnp.asarray(rng.normal(size=(1, 1, 5, 3)), dtype)

  def plain(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, (stride, stride), "SAME", dimension_numbers=ops.DIMENSIONS
    )

  def ours(x, kernel):
    return ops.conv_of_one_pixel(x, kernel, (stride, stride))

  assert_same_operation((ours, plain), x, kernel, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("wide", [0, ops.WIDE])
def test_conv_halving(dtype, before, wide):
  """Against XLA's own operation."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 4, 6, wide + 5)), dtype)
  kernel = jnp.asarray(rng.normal(size=(3, 3, wide + 5, wide + 3)), dtype)
  padding = ((before, 1), (before, 1))

  def plain(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, (2, 2), padding, dimension_numbers=ops.DIMENSIONS
    )

  def ours(x, kernel):
    return ops.conv_halving(x, kernel, before)

  assert_same_operation((ours, plain), x, kernel, dtype)


@pytest.mark.parametrize(
  "dtype, tolerance", [("float32", 5e-6), ("float64", 1e-14)]
)
def test_convolution_with_few_products(dtype, tolerance):
  """Forward and both gradients against XLA's own operation, in float64."""
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    x = jnp.asarray(rng.normal(size=(3, 8, 12, 70)), dtype)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 70, 65)), dtype)
    g = jnp.asarray(rng.normal(size=(3, 8, 12, 65)), dtype)

    def all_of(function, *args):
      out, pullback = jax.vjp(function, *args[:2])
      return out, *pullback(args[2])

    def plain(x, kernel):
      return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=ops.DIMENSIONS
      )

    got = jit(partial(all_of, ops.conv_with_few_products))(x, kernel, g)
    exact = [a.astype("float64") for a in (x, kernel, g)]
    wanted = jit(partial(all_of, plain))(*exact)
    for a, b in zip(got, wanted, strict=True):
      assert a.dtype == dtype
      assert np.abs(a - b).max() < tolerance * np.abs(b).max()


def test_which_convolution_takes_which_form(monkeypatch):
  """As its layers ask for it: on a CPU, and where its sizes fit."""

  def forms(size, stride, padding, side, width=2, dtype="float32"):
    x = jnp.zeros((1, side, side, width), dtype)
    kernel = jnp.zeros((size, size, width, width + 1), dtype)
    text = str(
      jax.make_jaxpr(
        lambda x, k: ops.conv(
          x, k, (stride,) * 2, padding, dimension_numbers=ops.DIMENSIONS
        )
      )(x, kernel)
    )
    names = (
      "conv_with_few_products",
      "custom_vjp_call",
      "dot_general",
      "conv_general_dilated",
    )
    return next(name for name in names if name in text)

  assert forms(1, 1, "SAME", 4) == forms(1, 2, "SAME", 4) == "dot_general"
  assert forms(3, 1, ((1, 1), (1, 1)), 4) == "conv_general_dilated"
  assert forms(3, 2, "SAME", 4) == "custom_vjp_call"
  assert forms(3, 2, ((1, 1), (1, 1)), 4) == "custom_vjp_call"
  assert forms(3, 2, "SAME", 5) == "conv_general_dilated"
  assert forms(3, 2, "VALID", 4) == "conv_general_dilated"

  plain, few = "conv_general_dilated", "conv_with_few_products"
  monkeypatch.setattr(jax, "device_count", lambda: 2)
  assert forms(3, 1, "SAME", 8, 64) == plain
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  assert forms(3, 1, "SAME", 8, 64) == few
  assert forms(3, 1, ((1, 1), (1, 1)), 8, 64) == few
  assert forms(3, 1, "VALID", 8, 64) == plain
  assert forms(3, 1, "SAME", 8, 63) == forms(3, 1, "SAME", 4, 64) == plain
  assert forms(3, 1, "SAME", 10, 64) == plain
  assert forms(3, 1, "SAME", 8, 64, "bfloat16") == plain

  def halving_has_a_product(width):
    x, kernel = jnp.zeros((1, 4, 4, width)), jnp.zeros((3, 3, width, width))
    gradient = jax.grad(
      lambda k: jnp.sum(
        ops.conv(x, k, (2, 2), "SAME", dimension_numbers=ops.DIMENSIONS)
      )
    )
    return "dot_general" in str(jax.make_jaxpr(gradient)(kernel))

  assert halving_has_a_product(64) and not halving_has_a_product(63)

  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert forms(3, 1, "SAME", 8, 64) == plain
  assert not halving_has_a_product(64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
  "shape", [(2, 3, 5, 4, 6), (1, 1, 1, 3, 2), (2, 3, 5, ops.WIDE, ops.WIDE + 2)]
)
def test_conv_transpose_by_phases(dtype, shape):
  """Against XLA's own operation."""
  b, h, w, c_in, c_out = shape
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(b, h, w, c_in)), dtype)
  kernel = jnp.asarray(rng.normal(size=(3, 3, c_out, c_in)), dtype)
  forms = (ops.conv_transpose_by_phases, ops.conv_transpose_plain)
  assert_same_operation(forms, x, kernel, dtype)


def test_conv_transpose_by_its_definition():
  """out[2j + k] += x[j] kernel[k], cropped; loops."""
  rng = np.random.default_rng(0)
  x, kernel = rng.normal(size=(1, 3, 2, 2)), rng.normal(size=(3, 3, 4, 2))
  out = np.zeros((1, 7, 5, 4))
  for i in range(3):
    for j in range(2):
      for k in range(3):
        for m in range(3):
          out[0, 2 * i + k, 2 * j + m] += kernel[k, m] @ x[0, i, j]
  got = jit(ops.conv_transpose)(
    jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
  )
  np.testing.assert_allclose(got, out[:, :6, :4], rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------- arithmetic


def test_count_by_hand_of_the_published_step():
  """GFLOP an image as published; the saving is 12 % of the encoder's."""
  c = config.base()
  giga = {k: v / 1e9 for k, v in flops.per_image(c, early=False).items()}
  assert abs(giga["total"] - 550.7) < 0.05
  assert abs(giga["vae"] - 537.96) < 0.05
  encoder = [
    sum(v.flops(False) for v in flops.encoder(c, early)) / 1e9
    for early in (False, True)
  ]
  assert abs(encoder[0] - 162.19) < 0.01
  assert abs(encoder[1] / encoder[0] - 0.88) < 0.005
  decoder = sum(v.flops(False) for v in flops.decoder(c)) / 1e9
  assert abs(decoder - 17.13) < 0.01

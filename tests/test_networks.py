"""Networks: parameter counts, shapes, arithmetic, and exact rewrites."""

import functools
import itertools
import os
import re
import subprocess
import sys
from functools import partial

import eight_networks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stablehlo
from conftest import (
  FLAT_BATCH,
  alone,
  assert_close,
  flat,
  images,
  jit,
  moved,
  run_of,
  small,
  state_of,
)
from flax import linen as nn
from program import ROOT

from benchmarks import flops
from gamix_jax import build, config, step
from gamix_jax.cpu import convolutions
from gamix_jax.errors import UserError
from gamix_jax.layers import ConvTranspose
from gamix_jax.networks import (
  NORMS,
  ConvEncoder,
  MLPEncoder,
  PatchDiscriminator,
)
from gamix_jax.networks.norms import Affine, GroupNorm, Norm, groups
from gamix_jax.networks.parts import depth_to_space, space_to_depth
from gamix_jax.networks.resnet import (
  POINTWISE_NORMS,
  ResidualBlock,
  ResNetEncoder,
)
from gamix_jax.posterior import MixtureHead


def count(tree):
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def test_counts_of_the_published_model():
  """At 256x256x3 with 512 latents, exactly."""
  spec = build.train_spec(config.base())
  state = jax.eval_shape(partial(step.init, spec))
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
def test_outputs_of_any_size_that_divides(norm, size, channels):
  c = small(
    model__norm=norm,
    data__image_size=size,
    data__channels=channels,
    model__encoder_features=(4, 6, 8),
    model__decoder_features=(8, 6, channels),
    posterior__name="mixture",
    posterior__components=2,
    objective__num_samples=3,
  )
  spec = build.train_spec(c)
  state, x = state_of(spec), images(c)["image"][:5]
  variables, discriminator = (
    {"params": net.params, "batch_stats": net.batch_stats}
    for net in (state.vae, state.disc)
  )
  rng = np.random.default_rng(0)

  @jit
  def encode(x):
    q, pullback = jax.vjp(
      lambda x: spec.vae.apply(variables, {"image": x}, method="encode"), x
    )
    weights = jax.tree.map(lambda v: rng.normal(size=v.shape).astype("f4"), q)
    return q, pullback(weights)[0]

  @jit
  def forward(x):
    out = spec.vae.apply(
      variables, {"image": x}, jax.random.key(0), num_samples=3
    )
    return out.z, out.w, out.x_hat["image"]

  @jit
  def decode(z):
    def apply(z):
      return spec.vae.apply(variables, z, method="decode")["image"]

    x_hat, pullback = jax.vjp(apply, z)
    return x_hat, pullback(rng.normal(size=x_hat.shape).astype("f4"))[0]

  # Every pixel reaches the posterior, which is the image's own.
  q, to_pixels = encode(x)
  assert q.mu.shape == (5, 2, 4)
  assert to_pixels.shape == x.shape and np.all(np.asarray(to_pixels) != 0)
  assert_close(encode(x[::-1])[0], jax.tree.map(lambda v: v[::-1], q), 1e-4)
  # The samples are decoded one by one; every latent reaches the image.
  z, w, x_hat = forward(x)
  assert z.shape == (6, 5, 4) and x_hat.shape == (6, *x.shape)
  np.testing.assert_allclose(np.sum(w, axis=0), 1, rtol=1e-5)
  one_by_one, to_latents = decode(z)
  assert_close(x_hat, one_by_one, 1e-4)
  assert np.all(np.asarray(to_latents) != 0)
  # A logit sees its own patch: not a pixel of the opposite corner.
  apply = jit(partial(spec.disc.apply, discriminator))
  logits, changed = apply(x), apply(x.at[:, -1, -1].add(0.5))
  assert logits.shape == (5, size[0] // 2, size[1] // 2, 1)
  assert np.all(logits[:, -1, -1] != changed[:, -1, -1])
  if norm in ("affine", "none"):  # no statistics over pixels
    np.testing.assert_array_equal(logits[:, 0, 0], changed[:, 0, 0])


def test_a_size_that_does_not_divide_is_refused():
  with pytest.raises(UserError, match="sizes that do: 8, 16, 24"):
    build.train_spec(
      small(
        data__image_size=15,
        model__encoder_features=(4,) * 4,
        model__decoder_features=(4, 4, 4, 1),
      )
    )


def test_the_last_width_is_free():
  """The output convolution sets the channels; 1x1 in the published preset."""
  for last in (1, 3, 5):
    c = small(
      data__image_size=(8, 4),
      data__channels=3,
      model__decoder_features=(4, last),
    )
    state = jax.eval_shape(partial(step.init, build.train_spec(c)))
    decoder = state.vae.params["decoder"]
    assert decoder["stage0"]["up"]["conv1"]["kernel"].shape == (1, 1, 4, last)
    assert decoder["out"]["kernel"].shape == (1, 1, last, 3)


# ---------------------------------------------------------- other networks

KINDS = ("resnet", "conv", "mlp")
WIDTHS = {  # of the encoder; reversed for a decoder
  "resnet": (4, 6, 8),
  "conv": (6, 12),
  "mlp": (12, 9),
}


def mixed(encoder, decoder, **changes):
  """A VAE config with two kinds of networks, without a discriminator."""
  own = dict(
    data__image_size=(8, 12),
    model__encoder=encoder,
    model__decoder=decoder,
    model__encoder_features=WIDTHS[encoder],
    model__decoder_features=WIDTHS[decoder][::-1],
  )
  return alone(**(own | changes))


def expected_count(kind, part, c):
  """Returns the parameter count of a plain network, without block norms."""
  h, w, channels = config.image_shape(c)
  p, widths = c.model.patch, WIDTHS[kind]
  norm = 0 if part == "decoder" else 2 * h * w  # the layer normalisation
  if c.model.input_norm == "none":
    norm = 0
  if kind == "mlp":
    ends = [h * w * channels, *widths]
    if part == "decoder":
      ends = [c.model.latent, *widths[::-1], ends[0]]
    return norm + sum((a + 1) * b for a, b in itertools.pairwise(ends))
  factor = p * 2 ** len(widths)
  if part == "encoder":
    ends = [channels * p * p, *widths]
    return norm + sum((9 * a + 1) * b for a, b in itertools.pairwise(ends))
  widths = widths[::-1]
  start = (h // factor) * (w // factor) * widths[0]
  ends = [widths[0], *widths]
  return (
    (c.model.latent + 1) * start
    + sum((9 * a + 1) * b for a, b in itertools.pairwise(ends))
    + ((9 if p > 1 else 1) * widths[-1] + 1) * channels * p * p
  )


@pytest.mark.parametrize("kind", ["conv", "mlp"])
@pytest.mark.parametrize(
  "changes",
  [
    {},
    dict(data__channels=3, model__input_norm="none"),
    dict(data__image_size=(16, 8), model__patch=2),
    dict(data__image_size=8),
  ],
)
def test_counts_of_the_plain_networks(kind, changes):
  if kind == "mlp":  # it has no patches
    changes = {k: v for k, v in changes.items() if k != "model__patch"}
  c = mixed(kind, kind, model__norm="none", **changes)
  config.check(c)
  params = jax.eval_shape(partial(step.init, build.train_spec(c))).vae.params
  for part in ("encoder", "decoder"):
    assert count(params[part]) == expected_count(kind, part, c), part


# Each encoder and each decoder, each norm, grey and colour. No ResNets with
# norms that remove a channel's mean: as published, they have biases before
# them, whose gradients are rounding errors.
PAIRS = [
  ("mlp", "resnet", "affine", 1, {}),
  ("mlp", "mlp", "batch", 3, {}),
  ("mlp", "mlp", "group", 1, {}),
  ("conv", "mlp", "none", 3, dict(model__input_norm="none")),
  ("conv", "conv", "batch", 1, dict(model__upsample_gain=2.0)),
  ("conv", "conv", "group", 3, {}),
  (
    *("mlp", "conv", "affine", 1),
    dict(model__patch=2, data__image_size=(8, 16)),
  ),
  ("resnet", "conv", "affine", 3, {}),
  (
    *("resnet", "resnet", "none", 3),
    dict(model__patch=2, data__image_size=(16, 8)),
  ),
]


@pytest.mark.parametrize(
  ("encoder", "decoder", "norm", "channels", "changes"), PAIRS
)
def test_every_parameter_has_a_gradient(
  encoder, decoder, norm, channels, changes
):
  """Through a complete VAE whose output has the images' shape."""
  c = mixed(
    encoder,
    decoder,
    model__norm=norm,
    data__channels=channels,
    data__batch_size=32,
    **changes,
  )
  config.check(c)
  run = run_of(c)
  spec, x = run.spec, run.batch["image"]
  variables = {
    "params": run.state.vae.params,
    "batch_stats": run.state.vae.batch_stats,
  }
  out = jax.eval_shape(
    partial(spec.vae.apply, num_samples=2),
    variables,
    {"image": x},
    jax.random.key(0),
  )
  q, z, w, x_hat = out.q, out.z, out.w, out.x_hat["image"]
  assert x_hat.shape == (2, *x.shape) and x_hat.dtype == jnp.float32
  assert q.mu.dtype == z.dtype == w.dtype == jnp.float32
  grads, _ = jit(partial(step.gradients, spec))(run.state, run.batch)[1]
  sizes = {
    jax.tree_util.keystr(path): float(jnp.max(jnp.abs(g)))
    for path, g in jax.tree_util.tree_leaves_with_path(grads)
  }
  # Rounding errors would be a ten-millionth of the others.
  least = 1e-5 * max(sizes.values())
  assert not {k: v for k, v in sizes.items() if not v > least}


@pytest.mark.parametrize(
  ("encoder", "decoder"), [("mlp", "conv")] + [(kind, kind) for kind in KINDS]
)
def test_bfloat16_gives_float32(encoder, decoder):
  """Layers compute in bfloat16; outputs are float32."""
  c = mixed(encoder, decoder, dtype="bfloat16")
  spec = build.train_spec(c)
  shapes = jax.eval_shape(partial(step.init, spec)).vae
  variables = {"params": shapes.params, "batch_stats": shapes.batch_stats}
  x = jax.ShapeDtypeStruct((4, 8, 12, 1), jnp.float32)
  assert {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

  def outputs(variables, x):
    out = spec.vae.apply(variables, {"image": x}, jax.random.key(0))
    return out.q.mu, out.q.logvar, out.x_hat["image"]

  found = jax.eval_shape(outputs, variables, x)
  assert {v.dtype for v in found} == {jnp.dtype("float32")}
  text = str(jax.make_jaxpr(outputs)(variables, x))
  kinds = re.findall(
    r":(\w+)\[[^\]]*\] = (?:dot_general|conv_general_dilated)", text
  )
  assert len(kinds) >= 6
  assert set(kinds) == {"bf16"}


def test_eight_devices_compute_what_one_does():
  """A convolutional encoder, an MLP decoder, batch norm over all devices."""
  ran = subprocess.run(
    [sys.executable, eight_networks.__file__],
    env=os.environ
    | {
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
      "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    },
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert ran.returncode == 0, ran.stderr
  assert re.search(r"8 devices: [1-9]\d* arrays agree", ran.stdout)


# ---------------------------------------------------------- the input


@pytest.mark.parametrize("kind", KINDS)
def test_input_norm_decides_whether_brightness_is_encoded(kind):
  """x and a x + c, with a and c per channel."""
  rng = np.random.default_rng(0)
  # Large, so that the epsilon under the root is negligible.
  x = jnp.asarray(100 * rng.normal(size=(3, 8, 12, 3)), jnp.float32)
  other = x * jnp.asarray([[[[2.0, 0.5, 3]]]]) + jnp.asarray(
    [[[[50.0, 0, -9]]]]
  )
  for input_norm in ("layer", "none"):
    c = mixed(kind, kind, data__channels=3, model__input_norm=input_norm)
    run = run_of(c)
    params = run.state.vae.params["encoder"]
    variables = {
      "params": params,
      "batch_stats": run.state.vae.batch_stats["encoder"],
    }
    assert ("layernorm" in params) == (input_norm == "layer")
    one, two = (
      jit(partial(run.spec.vae.encoder.apply, train=False))(variables, v)
      for v in (x, other)
    )
    off = float(jnp.max(jnp.abs(one - two)) / jnp.max(jnp.abs(one)))
    if input_norm == "layer":
      assert off < 1e-4
    else:
      assert off > 0.1
  assert config.base().model.input_norm == "layer"


@pytest.mark.parametrize(("h", "w", "c", "patch"), [(6, 4, 3, 2), (6, 9, 1, 3)])
def test_patches_are_channels(h, w, c, patch):
  """Each pixel by its position, and exactly invertible."""
  x = np.random.default_rng(0).normal(size=(2, h, w, c)).astype("f4")
  got = np.asarray(space_to_depth(jnp.asarray(x), patch))
  assert got.shape == (2, h // patch, w // patch, c * patch**2)
  for row in range(h // patch):
    for column in range(w // patch):
      square = x[
        :,
        row * patch : (row + 1) * patch,
        column * patch : (column + 1) * patch,
      ]
      np.testing.assert_array_equal(got[:, row, column], square.reshape(2, -1))
  np.testing.assert_array_equal(depth_to_space(jnp.asarray(got), patch), x)


@pytest.mark.parametrize("kind", ["resnet", "conv"])
@pytest.mark.parametrize(
  ("size", "patch"), [((12, 24), 3), ((16, 8), 2), ((28, 28), 7), ((8, 8), 1)]
)
def test_shapes_with_patches(kind, size, patch):
  n = 2 if size != (28, 28) else 1
  widths = (4,) * (n + (kind == "resnet"))
  c = mixed(
    kind,
    kind,
    model__encoder_features=widths,
    model__decoder_features=widths,
    data__image_size=size,
    data__channels=3,
    model__patch=patch,
    model__bottleneck_channels=5 if kind == "resnet" else 0,
  )
  config.check(c)
  spec = build.train_spec(c)
  state = jax.eval_shape(partial(step.init, spec))
  params = state.vae.params
  first = params["encoder"]["stem" if kind == "resnet" else "conv0"]["kernel"]
  assert first.shape == (3, 3, 3 * patch**2, 4)
  size_of_out = 1 if patch == 1 else 3
  assert params["decoder"]["out"]["kernel"].shape == (
    *(size_of_out, size_of_out),
    *(4, 3 * patch**2),
  )
  x = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
  variables = {"params": params, "batch_stats": state.vae.batch_stats}
  features = jax.eval_shape(
    partial(spec.vae.encoder.apply, train=False),
    {k: v["encoder"] for k, v in variables.items()},
    x,
  )
  small_sides = tuple(s // (patch * 2**n) for s in size)
  assert features.shape == (2, *small_sides, 5 if kind == "resnet" else 4)
  z = jax.ShapeDtypeStruct((1, 2, 4), jnp.float32)
  x_hat = jax.eval_shape(partial(spec.vae.apply, method="decode"), variables, z)
  assert x_hat["image"].shape == (1, 2, *size, 3)


def test_patches_have_to_fit():
  c = mixed("resnet", "conv", model__patch=3, data__image_size=(24, 28))
  with pytest.raises(UserError) as e:
    build.train_spec(c)
  assert "patches of model.patch=3 2 times, which 28" in str(e.value)
  assert "sizes that do: 24, 36, 48 (multiples of 12)" in str(e.value)
  for side in (24, 36, 48):
    build.train_spec(
      mixed("resnet", "conv", model__patch=3, data__image_size=side)
    )
  # An MLP takes any image, also as an encoder only.
  build.train_spec(mixed("mlp", "mlp", data__image_size=(7, 5)))
  with pytest.raises(UserError, match="decoder_features halves an image 2"):
    build.train_spec(mixed("mlp", "conv", data__image_size=(7, 5)))


def test_depths_may_differ():
  c = small(model__encoder_features=(4, 4, 4), model__decoder_features=(4, 3))
  config.check(c)
  spec = build.train_spec(c)
  params = jax.eval_shape(partial(step.init, spec)).vae.params
  assert params["posterior"]["mu"]["kernel"].shape == (2 * 2 * 1, 4)
  assert params["decoder"]["dense"]["kernel"].shape == (4, 4 * 4 * 1)


# ---------------------------------------------------------- the down block


class Published(ResidualBlock):
  """The down block as published: strides in the 1x1 convolutions."""

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
  """Forward and all gradients, also to the input, at sizes with odd halves."""
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


def for_cuda(function, *args):
  """Returns a function's program for a GPU, as text."""
  traced = jax.jit(function).trace(*args)
  return stablehlo.resolved(traced.lower(lowering_platforms=("cuda",)))


def strides(norm):
  """Returns the strides of the convolutions of a block."""
  block = ResidualBlock(features=4, down=True, norm=norm)
  x = jnp.zeros((1, 8, 8, 4))
  text = for_cuda(
    partial(block.init_with_output, train=True), jax.random.key(0), x
  )
  return [
    "2" if "stride = [2, 2]" in line else "1"
    for line in stablehlo.convolutions(text)
  ]


def test_no_early_stride_where_pixels_are_coupled():
  """Batch and group statistics cover all pixels, so none may be skipped."""
  for norm in POINTWISE_NORMS:
    assert strides(norm) == ["1", "2", "1", "1"]
  for norm in ("batch", "group"):
    assert strides(norm) == ["1", "1", "2", "2"]


# ---------------------------------------------------------- norms


def test_affine_does_not_look_at_the_batch():
  """x / sqrt(1 + 1e-3) * scale + bias; the statistics stay."""
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


@pytest.mark.parametrize(
  ("shape", "wanted"),
  [
    ((2, 16, 16, 128), 32),
    ((2, 4, 4, 4), 4),
    ((2, 1, 1, 32), 8),
    ((2, 2, 2, 32), 32),
    ((2, 1, 2, 32), 16),
    ((2, 8, 8, 6), 2),
    ((2, 512), 32),
    ((2, 64), 16),
    ((2, 12), 2),
    ((2, 4), 1),
  ],
)
def test_groups_have_enough_elements(shape, wanted):
  """Checked with NumPy; the normalised image keeps its differences."""
  assert groups(shape) == wanted
  x = np.random.default_rng(0).normal(2, 3, size=shape)
  layer = Norm("group", jnp.float32, jnp.float32)
  ones = {"scale": jnp.ones(shape[-1]), "bias": jnp.zeros(shape[-1])}
  got = layer.apply(
    {"params": {"norm": ones}}, jnp.asarray(x, jnp.float32), False
  )
  parts = x.reshape(2, -1, wanted, shape[-1] // wanted)
  mean = parts.mean((1, 3), keepdims=True)
  var = parts.var((1, 3), keepdims=True)
  expected = ((parts - mean) / np.sqrt(var + 1e-3)).reshape(shape)
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
  assert np.std(np.asarray(got)[0]) > 0.9


@pytest.mark.parametrize(
  "module",
  [
    GroupNorm(jnp.float32, jnp.float32),
    MixtureHead(latent=2, components=3),
  ],
)
def test_nothing_is_summed_over_no_axes(module):
  """Features without positions; ONNX takes no axes for all axes."""
  x = jnp.ones((3, 96))
  program = jax.make_jaxpr(lambda x: module.init(jax.random.key(0), x))(x)
  assert "axes=()" not in str(program)


@pytest.mark.parametrize("shape", [(3, 5, 4, 64), (3, 4, 4, 6), (3, 96)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_group_norm_is_that_of_flax(shape, dtype):
  """Parameters, values, and gradients to the input and the parameters."""
  rng = np.random.default_rng(1)
  x = jnp.asarray(rng.normal(1, 2, size=shape), dtype)
  g = jnp.asarray(rng.normal(size=shape), dtype)
  ours = GroupNorm(dtype, jnp.float32)
  flax = nn.GroupNorm(groups(shape), epsilon=1e-3, dtype=dtype)
  params = flax.init(jax.random.key(0), x)["params"]
  jax.tree.map(
    np.testing.assert_array_equal,
    ours.init(jax.random.key(0), x)["params"],
    params,
  )
  params = {k: v + rng.normal(size=v.shape) for k, v in params.items()}

  def with_gradients(module):
    y, pullback = jax.vjp(
      lambda p, x: module.apply({"params": p}, x), params, x
    )
    return y, pullback(g)

  got, wanted = with_gradients(ours), with_gradients(flax)
  tol = 1e-5 if dtype == jnp.float32 else 2e-2

  def close(a, b):
    assert a.dtype == b.dtype
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    np.testing.assert_allclose(a, b, rtol=tol, atol=tol * np.abs(b).max())

  jax.tree.map(close, got, wanted)


@pytest.mark.parametrize(
  "encoder",
  [
    MLPEncoder(features=(32, 32), norm="group"),
    ConvEncoder(features=(32, 32, 32), norm="group"),
  ],
)
def test_group_norm_keeps_codes_apart(encoder):
  """With one element per group, every image would give 0."""
  x = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
  out, _ = jit(partial(encoder.init_with_output, train=True))(
    jax.random.key(1), x
  )
  assert float(jnp.min(jnp.max(jnp.std(out, axis=0)))) > 0.1


def test_moving_statistics_move_with_batch_only():
  for c, moves in ((flat(), False), (FLAT_BATCH, True)):
    run = run_of(c)
    after, _ = run.steps(1)
    changed = moved(run.state.disc.batch_stats, after.disc.batch_stats)
    assert changed
    assert set(changed.values()) == {moves}


def test_batch_norm_is_over_the_whole_batch():
  """The first norm's moving mean against NumPy's mean of its input."""
  run = run_of(small(model__norm="batch"))
  net, x = run.state.vae, np.asarray(run.batch["image"], np.float64)

  @jit
  def statistics(params, stats, x):
    variables = {"params": params, "batch_stats": stats}
    return run.spec.vae.encoder.apply(
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
  """It would be cancelled; its gradient would be a rounding error."""
  params = run_of(alone(model__norm="batch")).state.vae.params
  block = params["encoder"]["stage0"]["block0"]
  assert "bias" not in block["conv1"]
  assert "bias" not in block["conv2"]
  assert "bias" in block["conv3"]


def test_logits_are_normalised_only_by_batch_or_affine():
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


def test_bfloat16_computes_in_it_and_keeps_float32():
  encoder = ResNetEncoder(
    features=(4, 4), bottleneck_channels=2, dtype=jnp.bfloat16
  )
  x = jnp.zeros((1, 8, 8, 1))
  shapes = jax.eval_shape(
    partial(encoder.init_with_output, train=True), jax.random.key(0), x
  )
  assert shapes[0].dtype == jnp.bfloat16
  assert {v.dtype for v in jax.tree.leaves(shapes[1])} == {jnp.dtype("float32")}
  text = for_cuda(lambda v: encoder.apply(v, x, True), shapes[1])
  convs = list(stablehlo.products(text, "convolution"))
  assert len(convs) == 3 * 2 + 4 + 2
  assert {kind for types in convs for _, kind in types} == {"bf16"}


# ---------------------------------------------------------- initial weights


@pytest.mark.parametrize(("gain", "wanted"), [(1.0, 0.5), (2.0, 1.0)])
def test_upsample_gain_keeps_a_signal(gain, wanted):
  """Measured: a transposed convolution of unit noise, with equal widths."""
  layer = ConvTranspose(64, gain, True, jnp.float32, jnp.float32)
  x = jax.random.normal(jax.random.key(0), (4, 16, 16, 64))
  out, _ = jit(layer.init_with_output)(jax.random.key(1), x)
  assert out.shape == (4, 32, 32, 64)
  assert float(jnp.std(out)) == pytest.approx(wanted, rel=0.05)


def test_upsample_gain_scales_only_transposed_convolutions():
  """Their initial weights are twice as large, all others are equal."""
  for kind in ("resnet", "conv"):
    one, two = (
      jit(partial(step.init, build.train_spec(c)))().vae.params["decoder"]
      for c in (
        mixed(kind, kind, model__upsample_gain=gain) for gain in (1.0, 2.0)
      )
    )
    scaled = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(one):
      name = jax.tree_util.keystr(path)
      other = functools.reduce(lambda tree, key: tree[key.key], path, two)
      twice = "transpose" in name and "kernel" in name
      np.testing.assert_allclose(other, 2 * leaf if twice else leaf, rtol=1e-6)
      scaled += twice
    assert scaled == (4 if kind == "resnet" else 2)


# ---------------------------------------------------------- operations


def both_of(function, x, kernel):
  """Returns the output, and the gradients of a weighted sum of it."""
  shape = jax.eval_shape(function, x, kernel).shape
  weight = np.random.default_rng(1).normal(size=shape)

  def total(x, kernel):
    out = function(x, kernel)
    return jnp.sum((out * weight).astype(jnp.float32)), out

  (_, out), grads = jax.value_and_grad(total, (0, 1), has_aux=True)(x, kernel)
  return out, grads


def assert_same_operation(forms, x, kernel, dtype):
  """Asserts equal outputs and gradients, up to rounding."""
  got, wanted = (jit(partial(both_of, f))(x, kernel) for f in forms)
  assert got[0].shape == jax.eval_shape(forms[0], x, kernel).shape
  assert_close(got, wanted, 2e-2 if dtype == "bfloat16" else 1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stride", [1, 2])
def test_conv1x1(dtype, stride):
  """Against XLA's convolution."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 4, 6, 5)), dtype)
  kernel = jnp.asarray(rng.normal(size=(1, 1, 5, 3)), dtype)

  def plain(x, kernel):
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (stride, stride),
      "SAME",
      dimension_numbers=convolutions.DIMENSIONS,
    )

  def ours(x, kernel):
    return convolutions.conv1x1(x, kernel, (stride, stride))

  assert_same_operation((ours, plain), x, kernel, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("wide", [0, convolutions.MIN_CHANNELS])
def test_conv3x3_stride2(dtype, before, wide):
  """Against XLA's convolution."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 4, 6, wide + 5)), dtype)
  kernel = jnp.asarray(rng.normal(size=(3, 3, wide + 5, wide + 3)), dtype)
  padding = ((before, 1), (before, 1))

  def plain(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, (2, 2), padding, dimension_numbers=convolutions.DIMENSIONS
    )

  def ours(x, kernel):
    return our_conv(x, kernel, 2, padding)

  assert_same_operation((ours, plain), x, kernel, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("padding", ["SAME", ((1, 1), (1, 1))])
def test_conv3x3_with_few_outputs(dtype, padding):
  """Against XLA's convolution; the kernel's gradient is another."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 4, 7, 20)), dtype)
  kernel = jnp.asarray(rng.normal(size=(3, 3, 20, 3)), dtype)
  forms = [
    lambda x, k, conv=conv: conv(x, k, 1, padding)
    for conv in (our_conv, plain_conv)
  ]
  assert_same_operation(forms, x, kernel, dtype)
  ours, plain = (
    jit(partial(both_of, form)).lower(x, kernel).as_text() for form in forms
  )
  assert plain.count("stablehlo.convolution") == 3
  assert ours.count("stablehlo.convolution") == 2


@pytest.mark.parametrize(
  "dtype, tolerance", [("float32", 5e-6), ("float64", 1e-14)]
)
def test_conv3x3_winograd(dtype, tolerance):
  """Forward and both gradients against XLA's convolution in float64."""
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
        x, kernel, (1, 1), "SAME", dimension_numbers=convolutions.DIMENSIONS
      )

    def ours(x, kernel):
      return our_conv(x, kernel, 1, "SAME")

    got = jit(partial(all_of, ours))(x, kernel, g)
    exact = [a.astype("float64") for a in (x, kernel, g)]
    wanted = jit(partial(all_of, plain))(*exact)
    for a, b in zip(got, wanted, strict=True):
      assert a.dtype == dtype
      assert np.abs(a - b).max() < tolerance * np.abs(b).max()


def plain_conv(x, kernel, stride, padding):
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride,) * 2,
    padding,
    dimension_numbers=convolutions.DIMENSIONS,
  )


def our_conv(x, kernel, stride, padding):
  return convolutions.conv(
    x,
    kernel,
    (stride,) * 2,
    padding,
    dimension_numbers=convolutions.DIMENSIONS,
  )


BOTH_SIDES = ((1, 1), (1, 1))


@pytest.mark.parametrize(
  ("size", "stride", "padding", "side", "width", "dtype"),
  [
    (1, 1, "SAME", 4, 2, "float32"),
    (1, 2, "SAME", 4, 2, "float32"),
    (3, 1, BOTH_SIDES, 4, 2, "float32"),
    (3, 2, "SAME", 4, 2, "float32"),
    (3, 2, BOTH_SIDES, 4, 64, "float32"),
    (3, 2, "SAME", 5, 2, "float32"),
    (3, 2, "VALID", 4, 2, "float32"),
    (3, 1, "SAME", 8, 64, "float32"),
    (3, 1, BOTH_SIDES, 8, 64, "float32"),
    (3, 1, "VALID", 8, 64, "float32"),
    (3, 1, "SAME", 10, 64, "float32"),
    (3, 1, "SAME", 8, 64, "bfloat16"),
  ],
)
def test_conv_equals_xlas_on_every_platform(
  size, stride, padding, side, width, dtype
):
  """Values and gradients, around the limits of the CPU's rewrites."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, side, side, width)), dtype)
  kernel = jnp.asarray(rng.normal(size=(size, size, width, width + 1)), dtype)

  forms = [
    lambda x, k, conv=conv: conv(x, k, stride, padding)
    for conv in (our_conv, plain_conv)
  ]
  assert_same_operation(forms, x, kernel, dtype)
  ours, plain = (
    stablehlo.convolutions(for_cuda(partial(both_of, form), x, kernel))
    for form in forms
  )
  assert len(ours) == 3
  assert sorted(ours) == sorted(plain)


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 2), (3, 1)])
def test_gradients_under_vmap_and_checkpoint(size, stride):
  """Of two batches and kernels at a time, and computed anew."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 3, 8, 8, 64)).astype("float32")
  kernels = rng.normal(size=(2, size, size, 64, 64)).astype("float32")

  def loss(conv, x, kernel):
    return jnp.sum(jnp.sin(conv(x, kernel, stride, "SAME")))

  def gradients(conv):
    again = jax.checkpoint(partial(loss, conv))
    return jit(jax.vmap(jax.grad(again, (0, 1))))(x, kernels)

  assert_close(gradients(our_conv), gradients(plain_conv), 1e-4)


def flops_of_gradients(conv, side, width, stride=1):
  """XLA's count of a 3x3 convolution and both of its gradients."""
  x = jnp.zeros((1, side, side, width))
  kernel = jnp.zeros((3, 3, width, width))

  def total(x, kernel):
    return jnp.sum(jnp.square(conv(x, kernel, stride, "SAME")))

  lowered = jax.jit(jax.grad(total, (0, 1))).lower(x, kernel)
  return lowered.cost_analysis()["flops"]


def test_wide_convolutions_need_fewer_flops_on_a_cpu():
  wide, side = convolutions.MIN_CHANNELS, 32
  plain = flops_of_gradients(plain_conv, side, wide)
  assert flops_of_gradients(our_conv, side, wide) < 0.6 * plain


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
  "shape",
  [
    (2, 3, 5, 4, 6),
    (1, 1, 1, 3, 2),
    (2, 3, 5, convolutions.MIN_CHANNELS, convolutions.MIN_CHANNELS + 2),
  ],
)
def test_conv_transpose_on_every_platform(dtype, shape):
  """Against XLA's transposed convolution and its gradients."""
  b, h, w, c_in, c_out = shape
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(b, h, w, c_in)), dtype)
  kernel = jnp.asarray(rng.normal(size=(3, 3, c_out, c_in)), dtype)
  plain = convolutions.PLAIN_TRANSPOSE
  on_accelerators = partial(convolutions.by_platform, plain, plain)
  for form in (convolutions.conv_transpose, on_accelerators):
    assert_same_operation((form, plain.forward), x, kernel, dtype)


def test_conv_transpose_by_its_definition():
  """out[2j + k] += x[j] kernel[k], cropped; with loops."""
  rng = np.random.default_rng(0)
  x, kernel = rng.normal(size=(1, 3, 2, 2)), rng.normal(size=(3, 3, 4, 2))
  out = np.zeros((1, 7, 5, 4))
  for i in range(3):
    for j in range(2):
      for k in range(3):
        for m in range(3):
          out[0, 2 * i + k, 2 * j + m] += kernel[k, m] @ x[0, i, j]
  got = jit(convolutions.conv_transpose)(
    jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
  )
  np.testing.assert_allclose(got, out[:, :6, :4], rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------- arithmetic


def test_flops_of_the_published_step():
  """GFLOP per image as published; the rewrite saves 12 % of the encoder's."""
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

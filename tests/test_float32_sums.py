"""Gradients of bfloat16 layers in float32, against numpy in float64.

What a TPU's program sends is tested in test_compile.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import jit

from gamix_jax import layers
from gamix_jax.cpu import convolutions
from gamix_jax.multimodal import FUSIONS
from gamix_jax.networks import CodeDiscriminator
from gamix_jax.parallel import float32_sums
from gamix_jax.posterior import GaussianHead

RNG = np.random.default_rng(0)


def bfloat16(*shape):
  """Normal numbers that bfloat16 holds exactly, as jax and as float64."""
  x = jnp.asarray(RNG.normal(size=shape), jnp.bfloat16)
  return x, np.asarray(x, np.float64)


def windows(x, size, stride, pads):
  """[b, h', w', kh, kw, c]: what each output of a convolution sees."""
  x = np.pad(x, ((0, 0), *pads, (0, 0)))
  seen = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
  return np.moveaxis(seen[:, ::stride, ::stride], 3, -1)


@pytest.mark.parametrize(
  ("size", "stride", "padding", "pads"),
  [
    (3, 1, "SAME", ((1, 1), (1, 1))),
    (3, 2, "SAME", ((0, 1), (0, 1))),  # both sides are even
    (3, 2, ((1, 1), (1, 1)), ((1, 1), (1, 1))),
    (1, 1, "SAME", ((0, 0), (0, 0))),
    (1, 2, "SAME", ((0, 0), (0, 0))),
    (3, 1, "VALID", ((0, 0), (0, 0))),
  ],
)
def test_gradient_to_a_kernel(size, stride, padding, pads):
  """It has float32's error; rounded to bfloat16 it would be 1e-3 off."""
  x, x64 = bfloat16(4, 8, 6, 5)
  seen = windows(x64, size, stride, pads)
  g, g64 = bfloat16(*seen.shape[:3], 7)
  got = jit(
    partial(
      float32_sums.kernel_gradient,
      dtype=jnp.float32,
      size=(size, size),
      strides=(stride, stride),
      padding=padding,
    )
  )(x, g)
  want = np.einsum("bhwijc,bhwo->ijco", seen, g64)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, want, atol=1e-5 * np.max(np.abs(want)))


def layer_cases():
  kind = dict(dtype=jnp.bfloat16, param_dtype=jnp.float32)
  image = (2, 4, 4, 3)
  return {
    "dense": (layers.Dense(5, **kind), (6, 3)),
    "dense of a grid": (layers.Dense(5, **kind), image),
    "conv": (layers.Conv(5, 3, **kind), image),
    "strided": (layers.Conv(5, 3, 2, ((1, 1), (1, 1)), **kind), image),
    "no bias": (layers.Conv(5, 1, use_bias=False, **kind), image),
    "transpose": (
      layers.ConvTranspose(5, 1.0, True, **kind),
      image,
    ),
  }


@pytest.mark.parametrize("name", layer_cases())
def test_a_layer_and_its_gradients(name):
  """In a program for a TPU and for others; against the layer in float32."""
  layer, shape = layer_cases()[name]
  x, _ = bfloat16(*shape)
  params = layer.init(jax.random.key(0), x)
  exact = layer.clone(dtype=jnp.float32)
  g, _ = bfloat16(*layer.apply(params, x).shape)

  def gradients(layer, x):
    y, pullback = jax.vjp(layer.apply, params, x)
    return y, pullback(g.astype(y.dtype))

  y, (to_params, to_x) = jit(partial(gradients, layer))(x)
  assert y.dtype == to_x.dtype == jnp.bfloat16
  want = jit(partial(gradients, exact))(x.astype(jnp.float32))
  got = (y, (to_params, to_x))
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    limit = 2e-2 * np.max(np.abs(b))  # bfloat16 has 8 bits
    np.testing.assert_allclose(np.asarray(a, np.float32), b, atol=limit)
  assert all(v.dtype == jnp.float32 for v in jax.tree.leaves(to_params))
  assert_summed_in_float32(partial(gradients, layer), params, x)


def assert_summed_in_float32(gradients, params, *args):
  """In a TPU's program, the gradient to every kernel of the parameters is."""
  traced = jax.jit(gradients).trace(*args)
  text = traced.lower(lowering_platforms=("tpu",)).as_text()
  kernels = [
    v
    for path, v in jax.tree.leaves_with_path(params)
    if path[-1].key == "kernel"
  ]
  assert kernels
  for kernel in kernels:
    shape = "x".join(map(str, kernel.shape))
    # Products of bfloat16, with a float32 result.
    assert f"xbf16>) -> tensor<{shape}xf32>" in text
    assert f"tensor<{shape}xbf16>) -> tensor<{shape}xf32>" not in text


def of_features(name, kind):
  """(module, arguments) of a fusion of two modalities, the second missing."""
  head = GaussianHead(3, **kind)
  one = FUSIONS[name](("a", "b"), head, width=16, layers=1, heads=2)
  features = {"a": bfloat16(6, 5)[0], "b": bfloat16(6, 7)[0]}
  return one, (features, jnp.asarray([[1, 1], [1, 0]] * 3, jnp.bfloat16))


def of_codes(kind):
  """(module, arguments) of the discriminator of codes."""
  return CodeDiscriminator(9, 2, **kind), (bfloat16(2, 6, 5)[0],)


@pytest.mark.parametrize(
  "case",
  [
    partial(of_features, "sum_pooling"),
    partial(of_features, "attention"),
    of_codes,
  ],
  ids=["sum_pooling", "attention", "codes"],
)
def test_modules_of_several_layers(case):
  kind = dict(dtype=jnp.bfloat16, param_dtype=jnp.float32)
  module, args = case(kind)
  params = jit(module.init)(jax.random.key(0), *args)

  def total(of):
    def loss(params):
      leaves = jax.tree.leaves(of.apply(params, *args))
      return sum(jnp.sum(jnp.square(v)) for v in leaves)

    return jax.value_and_grad(loss)

  value, got = jit(total(module))(params)
  assert_summed_in_float32(total(module), params, params)
  exact, _ = case(dict(dtype=jnp.float32, param_dtype=jnp.float32))
  want_value, want = jit(total(exact))(params)
  np.testing.assert_allclose(value, want_value, rtol=2e-2)
  # The gradient to the bias of attention's keys is 0 but for rounding.
  limit = 5e-2 * max(np.max(np.abs(b)) for b in jax.tree.leaves(want))
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert a.dtype == jnp.float32
    np.testing.assert_allclose(a, b, atol=limit)


def test_a_product_over_two_axes():
  x, x64 = bfloat16(2, 6, 3, 4)
  g, g64 = bfloat16(2, 6, 5)
  kernel, k64 = bfloat16(3, 4, 5)
  product = partial(float32_sums.product, axes=2)
  y, pullback = jax.vjp(product, x, kernel.astype(jnp.float32))
  assert y.dtype == jnp.bfloat16
  want = np.einsum("bmhd,hdn->bmn", x64, k64)
  np.testing.assert_allclose(np.asarray(y, np.float64), want, rtol=1e-2)
  to_x, to_kernel = pullback(g)
  want = np.einsum("bmn,hdn->bmhd", g64, k64)
  limit = 1e-2 * np.max(np.abs(want))
  np.testing.assert_allclose(np.asarray(to_x, np.float64), want, atol=limit)
  want = np.einsum("bmhd,bmn->hdn", x64, g64)
  limit = 1e-2 * np.max(np.abs(want))
  np.testing.assert_allclose(to_kernel, want, atol=limit)


def test_a_sum_over_many_images():
  """bfloat16 cannot count: 1 added to 256 is 256."""
  x = jnp.ones((64, 8, 8, 2), jnp.bfloat16)
  one = jnp.ones((2,), jnp.float32)

  def total(x, gain, shift):
    y = float32_sums.affine(x, gain, shift)
    assert y.dtype == jnp.bfloat16
    return jnp.sum(y, dtype=jnp.float32)

  to_x, *got = jit(jax.grad(total, (0, 1, 2)))(x, 3 * one, one)
  for each in got:
    assert each.dtype == jnp.float32
    np.testing.assert_array_equal(each, [4096, 4096])
  assert to_x.dtype == jnp.bfloat16
  np.testing.assert_array_equal(to_x.astype(jnp.float32), 3)


def test_layers_in_float32_are_as_before():
  """The traced program has neither a cast nor a gradient of our own."""
  x = jnp.ones((2, 4, 4, 3))
  kernel = jnp.ones((3, 3, 3, 5))
  op = partial(
    convolutions.conv,
    strides=(1, 1),
    padding="SAME",
    dimension_numbers=convolutions.DIMENSIONS,
  )
  ours = partial(float32_sums.convolution, op, strides=(1, 1), padding="SAME")
  assert str(jax.make_jaxpr(ours)(x, kernel)) == str(
    jax.make_jaxpr(op)(x, kernel)
  )
  text = str(jax.make_jaxpr(float32_sums.affine)(x, jnp.ones(3), jnp.ones(3)))
  assert "custom_vjp" not in text

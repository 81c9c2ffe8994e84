"""Layers in bfloat16 whose gradients are summed over devices in float32.

A layer casts its float32 parameters to bfloat16. The gradient of a cast is a
cast: the gradient to the parameters is computed in bfloat16, summed over the
devices and then cast to float32, so a sum over 256 chips would be rounded to
8 bits at every addition. In these functions the gradient to a parameter is
float32 from the product on. They change nothing if the layer computes in the
type of its parameters.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

Bilinear = Callable[[jax.Array, jax.Array], jax.Array]


def product(x: jax.Array, kernel: jax.Array, axes: int = 1) -> jax.Array:
  """`jnp.tensordot(x, kernel, axes)`, in the type of x.

  Args:
    x: [..., *n].
    kernel: [*n, *m].
    axes: how many `n` there are.

  Returns:
    [..., *m].
  """

  def to_kernel(x, g, dtype):
    rows = tuple(range(x.ndim - axes))
    return lax.dot_general(
      x, g, ((rows, rows), ((), ())), preferred_element_type=dtype
    )

  return _linear(partial(_product, axes), to_kernel, x, kernel)


def _product(axes, x, kernel):
  summed = (tuple(range(x.ndim - axes, x.ndim)), tuple(range(axes)))
  return lax.dot_general(x, kernel, (summed, ((), ())))


def convolution(
  op: Bilinear,
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
) -> jax.Array:
  """A convolution in the type of x.

  Args:
    op: (x, kernel) -> y, that convolution of arrays of one type.
    x: [b, h, w, c_in].
    kernel: [kh, kw, c_in, c_out].
    strides: along height and width.
    padding: "SAME", "VALID", or (before, after) along height and width.

  Returns:
    [b, h', w', c_out].
  """
  to_kernel = partial(
    kernel_gradient, size=kernel.shape[:2], strides=strides, padding=padding
  )
  return _linear(op, to_kernel, x, kernel)


def transposed_convolution(
  op: Bilinear, x: jax.Array, kernel: jax.Array, strides: Sequence[int]
) -> jax.Array:
  """The transpose of a SAME convolution S with strides, in the type of x.

  Args:
    op: (x, kernel) -> y, of arrays of one type.
    x: [b, h', w', c_in].
    kernel: [kh, kw, c_out, c_in], the kernel of S.
    strides: of S.

  Returns:
    [b, h, w, c_out].
  """

  def to_kernel(x, g, dtype):
    # <g, T(x)> = <S(g), x>: the kernel's gradient is that of S at input g.
    return kernel_gradient(
      g, x, dtype, size=kernel.shape[:2], strides=strides, padding="SAME"
    )

  return _linear(op, to_kernel, x, kernel)


def kernel_gradient(
  x: jax.Array,
  g: jax.Array,
  dtype: jnp.dtype,
  *,
  size: Sequence[int],
  strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
) -> jax.Array:
  """The gradient to a convolution's kernel, summed and returned in `dtype`.

  It is a convolution of the images with the gradient as kernel, which has holes
  where the strides skip pixels; batch and channels change places.

  Args:
    x: [b, h, w, c_in], the input.
    g: [b, h', w', c_out], the gradient to the output.
    dtype: of the result.
    size: (kh, kw).
    strides: along height and width.
    padding: of the convolution.

  Returns:
    [kh, kw, c_in, c_out].
  """
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(x.shape[1:3], size, strides, padding)
  pads = [
    (before, k + (out - 1) * stride - n - before)
    for (before, _), k, out, stride, n in zip(
      padding, size, g.shape[1:3], strides, x.shape[1:3], strict=True
    )
  ]
  return lax.conv_general_dilated(
    x,
    g,
    (1, 1),
    pads,
    rhs_dilation=strides,
    dimension_numbers=("CHWN", "IHWO", "HWNC"),
    preferred_element_type=dtype,
  )


def _linear(op: Bilinear, to_kernel: Callable, x, kernel) -> jax.Array:
  if x.dtype == kernel.dtype:
    return op(x, kernel)
  return _summed(op, to_kernel, x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _summed(op, to_kernel, x, kernel):
  return op(x, kernel.astype(x.dtype))


def _forward(op, to_kernel, x, kernel):
  return _summed(op, to_kernel, x, kernel), (x, kernel)


def _backward(op, to_kernel, residuals, g):
  x, kernel = residuals
  low = kernel.astype(x.dtype)
  _, to_x = jax.vjp(lambda x: op(x, low), x)

  def cast_after(x, g):
    _, pullback = jax.vjp(partial(op, x), low)
    return pullback(g)[0].astype(kernel.dtype)

  # GPUs' libraries have no such convolutions; and CPUs compute in float32.
  to_kernel = lax.platform_dependent(
    x, g, tpu=partial(to_kernel, dtype=kernel.dtype), default=cast_after
  )
  return to_x(g)[0], to_kernel


_summed.defvjp(_forward, _backward)


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
  """x [..., c] plus a bias [c], in the type of x."""
  if x.dtype == bias.dtype:  # JAX sums in this type, too
    return x + _expand(bias, x)
  return _biased(x, bias)


def affine(x: jax.Array, gain: jax.Array, shift: jax.Array) -> jax.Array:
  """x [..., c] times a gain [c] plus a shift [c], in the type of x."""
  if x.dtype == gain.dtype:
    return x * _expand(gain, x) + _expand(shift, x)
  return add_bias(_scaled(x, gain), shift)


def _expand(param, x):
  """A parameter [c] in the type of x [..., c], with as many axes."""
  return jnp.expand_dims(param.astype(x.dtype), tuple(range(x.ndim - 1)))


def _sum(x, param):
  """Sums all axes but the last, in the type of a parameter."""
  return jnp.sum(x, tuple(range(x.ndim - 1)), dtype=param.dtype)


@jax.custom_vjp
def _biased(x, bias):
  return x + _expand(bias, x)


def _biased_forward(x, bias):
  return _biased(x, bias), bias


def _biased_backward(bias, g):
  return g, _sum(g, bias)


_biased.defvjp(_biased_forward, _biased_backward)


@jax.custom_vjp
def _scaled(x, gain):
  return x * _expand(gain, x)


def _scaled_forward(x, gain):
  return _scaled(x, gain), (x, gain)


def _scaled_backward(residuals, g):
  x, gain = residuals
  return g * _expand(gain, g), _sum(g * x, gain)


_scaled.defvjp(_scaled_forward, _scaled_backward)

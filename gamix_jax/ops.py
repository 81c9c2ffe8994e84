"""One function for each operation that platforms want written differently.

XLA's CPU backend is as fast as others going forward through a convolution and
slow in some of its gradients: those that are written otherwise here. All forms
of an operation are equal to rounding. What was tried, and how far it got, is in
benchmarks/LOG.md.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def _on_cpu() -> bool:
  return jax.default_backend() == "cpu"


# ---------------------------------------------------------- convolution


def conv(
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  **kwargs,
) -> jax.Array:
  """Convolution; takes the place of `lax.conv_general_dilated` in a layer.

  Args:
    x: [b, h, w, c_in].
    kernel: [kh, kw, c_in, c_out].
    strides: of height and width.
    padding: "SAME", "VALID", or (before, after) of height and width.
    **kwargs: of `lax.conv_general_dilated`.

  Returns:
    [b, h', w', c_out].
  """
  # A kernel of one pixel on a CPU is a matrix product: so is its gradient
  # then, three times as fast as a convolution with a window of a whole image.
  if _on_cpu() and kernel.shape[:2] == (1, 1):
    return conv_of_one_pixel(x, kernel, strides)
  return lax.conv_general_dilated(x, kernel, strides, padding, **kwargs)


def conv_of_one_pixel(
  x: jax.Array, kernel: jax.Array, strides: Sequence[int] = (1, 1)
) -> jax.Array:
  """`conv` with a 1x1 kernel as a product of matrices."""
  x = x[:, :: strides[0], :: strides[1]]
  return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))


# ---------------------------------------------------------- its transpose


def conv_transpose(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Transposed 3x3 convolution of stride 2, SAME: doubles height and width.

  out[2j + k] += x[j] kernel[k], cropped to twice the size (Keras'
  Conv2DTranspose).

  Args:
    x: [b, h, w, c_in].
    kernel: [3, 3, c_out, c_in], Keras' layout.

  Returns:
    [b, 2h, 2w, c_out].
  """
  # XLA's CPU backward pass of the strided form is an order of magnitude
  # slower than that of the same sums written otherwise.
  form = conv_transpose_by_phases if _on_cpu() else conv_transpose_plain
  return form(x, kernel)


def conv_transpose_plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`conv_transpose` as XLA's own operation."""
  return lax.conv_transpose(
    x,
    kernel,
    strides=(2, 2),
    padding="SAME",
    dimension_numbers=DIMENSIONS,
    transpose_kernel=True,
  )


@jax.custom_vjp
def conv_transpose_by_phases(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`conv_transpose` as four stride-1 convolutions, interleaved.

  Along one axis the even outputs are x[j] k[0] + x[j-1] k[2] and the odd ones
  x[j] k[1]; the same nine products in all, and no dilation. Its gradients are
  those of the strided convolution that it is the transpose of.
  """
  b, h, w, _ = x.shape
  taps = {0: (2, 0), 1: (1,)}  # of x[j-1], x[j] for even, of x[j] for odd
  kernel = jnp.swapaxes(kernel, 2, 3)
  rows = []
  for i in (0, 1):
    row = [
      lax.conv_general_dilated(
        x,
        kernel[jnp.array(taps[i])][:, jnp.array(taps[j])],
        (1, 1),
        ((1 - i, 0), (1 - j, 0)),
        dimension_numbers=DIMENSIONS,
      )
      for j in (0, 1)
    ]
    rows.append(jnp.stack(row, axis=3))  # [b, h, w, 2, c]
  out = jnp.stack(rows, axis=2)  # [b, h, 2, w, 2, c]
  return out.reshape(b, 2 * h, 2 * w, -1)


def _strided(y: jax.Array, kernel: jax.Array) -> jax.Array:
  """What `conv_transpose` is the transpose of: [b, 2h, 2w, c] to x's shape."""
  return lax.conv_general_dilated(
    y, kernel, (2, 2), ((0, 1), (0, 1)), dimension_numbers=DIMENSIONS
  )


def _forward(x, kernel):
  return conv_transpose_by_phases(x, kernel), (x, kernel)


def _backward(saved, g):
  # <g, T(x)> = <S(g), x>, so S(g) is x's gradient, and the kernel's is the
  # one that S has at g with x behind it.
  x, kernel = saved
  _, to_kernel = jax.vjp(partial(_strided, g), kernel)
  return _strided(g, kernel), *to_kernel(x)


conv_transpose_by_phases.defvjp(_forward, _backward)

"""One function for each operation that platforms want written differently."""

import jax
import jax.numpy as jnp
from jax import lax

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


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
  if jax.default_backend() == "cpu":
    # XLA's CPU backward pass of the strided form is an order of magnitude
    # slower than that of the same sums written as stride-1 convolutions.
    return conv_transpose_by_phases(x, kernel)
  return conv_transpose_plain(x, kernel)


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


def conv_transpose_by_phases(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`conv_transpose` as four stride-1 convolutions, interleaved.

  Along one axis the even outputs are x[j] k[0] + x[j-1] k[2] and the odd ones
  x[j] k[1]; the same nine products in all, and no dilation.
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

"""Convolutions that use a faster implementation on a CPU.

XLA's CPU backend is fast in the forward pass of a convolution but slow in some
of its gradients; those have other implementations here. All implementations of
an operation agree up to rounding. benchmarks/LOG.md lists what was tried, with
timings.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from gamix_jax.cpu import winograd

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# Number of channels from which the faster matrix products outweigh the cost of
# rearranging the arrays for them.
MIN_CHANNELS = 64


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
  """Convolution; replaces `lax.conv_general_dilated` in a layer.

  Args:
    x: [b, h, w, c_in].
    kernel: [kh, kw, c_in, c_out].
    strides: along height and width.
    padding: "SAME", "VALID", or (before, after) along height and width.
    **kwargs: passed on to `lax.conv_general_dilated`.

  Returns:
    [b, h', w', c_out].
  """
  if _on_cpu():
    # The gradient of a matrix product is a matrix product. That is three times
    # as fast as the convolution's, whose window is the entire image.
    if kernel.shape[:2] == (1, 1):
      return conv1x1(x, kernel, strides)
    if kernel.shape[:2] == (3, 3) and tuple(strides) == (2, 2):
      before = _stride2_padding(x.shape, padding)
      if before is not None:
        return conv3x3_stride2(x, kernel, before)
    if tuple(strides) == (1, 1) and _use_winograd(x, kernel, padding):
      return conv3x3_winograd(x, kernel)
  return lax.conv_general_dilated(x, kernel, strides, padding, **kwargs)


def _use_winograd(x, kernel, padding) -> bool:
  """Whether `conv3x3_winograd` is applicable, accurate and faster."""
  _, h, w, _ = x.shape
  return (
    kernel.shape[:2] == (3, 3)
    and (padding == "SAME" or tuple(padding) == ((1, 1), (1, 1)))
    and h % 4 == w % 4 == 0
    # In narrower layers and smaller images the transforms cost what they save.
    and min(kernel.shape[2:]) >= MIN_CHANNELS
    and min(h, w) >= 8
    # bfloat16 would round between the transforms.
    and x.dtype in (jnp.float32, jnp.float64)
    # The kernel's gradient is a sum over images. With several devices it would
    # be reduced before the last transform, with four times as much to send.
    and jax.device_count() == 1
  )


@jax.custom_vjp
def conv3x3_winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """3x3 convolution, stride 1, SAME, by `winograd`; its gradients, too.

  Args:
    x: [b, h, w, c_in], h and w multiples of four.
    kernel: [3, 3, c_in, c_out].

  Returns:
    [b, h, w, c_out].
  """
  return winograd.conv(x, kernel)


def _winograd_forward(x, kernel):
  return winograd.conv(x, kernel), (x, kernel)


def _winograd_backward(residuals, g):
  x, kernel = residuals
  return winograd.to_input(g, kernel), winograd.to_kernel(x, g)


def _stride2_padding(shape, padding) -> int | None:
  """Returns `before` of `conv3x3_stride2`; None if it does not apply."""
  if shape[1] % 2 or shape[2] % 2:
    return None
  before = {"SAME": 0, ((0, 1), (0, 1)): 0, ((1, 1), (1, 1)): 1}
  return before.get(padding if isinstance(padding, str) else tuple(padding))


def conv1x1(
  x: jax.Array, kernel: jax.Array, strides: Sequence[int] = (1, 1)
) -> jax.Array:
  """1x1 convolution, computed as a matrix product."""
  x = x[:, :: strides[0], :: strides[1]]
  return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv3x3_stride2(x: jax.Array, kernel: jax.Array, before: int) -> jax.Array:
  """3x3 convolution with stride 2; its input gradient is computed by phases.

  Args:
    x: [b, 2h, 2w, c_in].
    kernel: [3, 3, c_in, c_out].
    before: rows and columns of padding in front: 0 (SAME) or 1.

  Returns:
    [b, h, w, c_out].
  """
  return _strided(x, kernel, before)


def _strided(x, kernel, before):
  return lax.conv_general_dilated(
    x, kernel, (2, 2), ((before, 1),) * 2, dimension_numbers=DIMENSIONS
  )


def _strided_to_kernel(x, kernel, before, g):
  """The gradient of `_strided` with respect to its kernel."""
  if min(kernel.shape[2:]) >= MIN_CHANNELS:
    return strided_to_kernel_by_columns(x, before, g)
  _, pullback = jax.vjp(lambda k: _strided(x, k, before), kernel)
  return pullback(g)[0]


def strided_to_kernel_by_columns(
  x: jax.Array, before: int, g: jax.Array
) -> jax.Array:
  """The kernel gradient of `conv3x3_stride2`, as one matrix product (im2col).

  Args:
    x: [b, 2h, 2w, c_in].
    before: rows and columns of padding in front: 0 or 1.
    g: [b, h, w, c_out], the gradient with respect to the output.

  Returns:
    [3, 3, c_in, c_out].
  """
  _, h, w, c = x.shape
  x = jnp.pad(x, ((0, 0), (before, 1), (before, 1), (0, 0)))
  x = jnp.stack([x[:, :, j : j + w - 1 : 2] for j in range(3)], axis=3)
  x = jnp.stack([x[:, i : i + h - 1 : 2] for i in range(3)], axis=3)
  # The sum is over pixels. It is faster with them as the left operand's last
  # axis.
  pixels_last = g.reshape(-1, g.shape[-1]).T
  kernel = pixels_last @ x.reshape(-1, 9 * c)
  return jnp.moveaxis(kernel.reshape(-1, 3, 3, c), 0, 3)


def _stride2_forward(x, kernel, before):
  return conv3x3_stride2(x, kernel, before), (x, kernel)


def _stride2_backward(before, residuals, g):
  x, kernel = residuals
  to_x = conv_transpose_phases(g, kernel, before)
  return to_x, _strided_to_kernel(x, kernel, before, g)


# ---------------------------------------------------------- transposed


def conv_transpose(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Transposed 3x3 convolution, stride 2, SAME: doubles height and width.

  out[2j + k] += x[j] kernel[k], cropped to twice the size, as in Keras'
  Conv2DTranspose.

  Args:
    x: [b, h, w, c_in].
    kernel: [3, 3, c_out, c_in], Keras' layout.

  Returns:
    [b, 2h, 2w, c_out].
  """
  # On a CPU, XLA's backward pass of the strided operation is an order of
  # magnitude slower than that of the equivalent four convolutions.
  fn = conv_transpose_by_phases if _on_cpu() else conv_transpose_plain
  return fn(x, kernel)


def conv_transpose_plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`conv_transpose` by `lax.conv_transpose`."""
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
  """`conv_transpose` as four interleaved stride-1 convolutions.

  Its gradients are computed with the strided convolution S of which it is the
  transpose T.
  """
  return conv_transpose_phases(x, kernel, 0)


def _transpose_forward(x, kernel):
  return conv_transpose_by_phases(x, kernel), (x, kernel)


def _transpose_backward(residuals, g):
  # <g, T(x)> = <S(g), x>. So the gradient to x is S(g), and the gradient to the
  # kernel is that of S with input g and output gradient x.
  x, kernel = residuals
  return _strided(g, kernel, 0), _strided_to_kernel(g, kernel, 0, x)


def conv_transpose_phases(
  x: jax.Array, kernel: jax.Array, before: int
) -> jax.Array:
  """out[2j + k - before] += x[j] kernel[k], as four stride-1 convolutions.

  The even and odd outputs are computed separately. Along one axis they are

                even                       odd
    before = 0  x[j] k[0] + x[j-1] k[2]    x[j] k[1]
    before = 1  x[j] k[1]                  x[j] k[2] + x[j+1] k[0]

  That takes the same nine products as the transposed convolution, without
  dilation.

  Args:
    x: [b, h, w, c_in].
    kernel: [3, 3, c_out, c_in].
    before: rows and columns of padding in front, of the strided convolution: 0
      or 1.

  Returns:
    [b, 2h, 2w, c_out].
  """
  b, h, w, _ = x.shape
  # (taps in the order of x, padding) of each phase.
  two, one = ((2, 0), (0, 1) if before else (1, 0)), ((1,), (0, 0))
  phases = (one, two) if before else (two, one)
  kernel = jnp.swapaxes(kernel, 2, 3)
  rows = []
  for taps_h, pad_h in phases:
    row = [
      lax.conv_general_dilated(
        x,
        kernel[jnp.array(taps_h)][:, jnp.array(taps_w)],
        (1, 1),
        (pad_h, pad_w),
        dimension_numbers=DIMENSIONS,
      )
      for taps_w, pad_w in phases
    ]
    rows.append(jnp.stack(row, axis=3))  # [b, h, w, 2, c]
  out = jnp.stack(rows, axis=2)  # [b, h, 2, w, 2, c]
  return out.reshape(b, 2 * h, 2 * w, -1)


conv3x3_winograd.defvjp(_winograd_forward, _winograd_backward)
conv3x3_stride2.defvjp(_stride2_forward, _stride2_backward)
conv_transpose_by_phases.defvjp(_transpose_forward, _transpose_backward)

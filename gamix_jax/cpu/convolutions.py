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

from gamix_jax.cpu import winograd

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# Channels from which on fewer products, or better ones, pay for what it costs
# to bring the numbers there.
WIDE = 64


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
  if _on_cpu():
    # A product of matrices has another one for its gradient, three times as
    # fast as a convolution whose window is a whole image.
    if kernel.shape[:2] == (1, 1):
      return conv1x1(x, kernel, strides)
    if kernel.shape[:2] == (3, 3) and tuple(strides) == (2, 2):
      before = _halving(x.shape, padding)
      if before is not None:
        return conv3x3_stride2(x, kernel, before)
    if tuple(strides) == (1, 1) and _few_products_pay(x, kernel, padding):
      return conv3x3_winograd(x, kernel)
  return lax.conv_general_dilated(x, kernel, strides, padding, **kwargs)


def _few_products_pay(x, kernel, padding) -> bool:
  """Whether `conv3x3_winograd` fits, is exact enough and is faster."""
  _, h, w, _ = x.shape
  return (
    kernel.shape[:2] == (3, 3)
    and (padding == "SAME" or tuple(padding) == ((1, 1), (1, 1)))
    and h % 4 == w % 4 == 0
    # Of narrower layers and of smaller images the maps cost what they save.
    and min(kernel.shape[2:]) >= WIDE
    and min(h, w) >= 8
    # bfloat16 would round between the maps.
    and x.dtype in (jnp.float32, jnp.float64)
    # The kernel's gradient is a sum over images. Over several devices' it would
    # be added up before the last map: four times as much to exchange.
    and jax.device_count() == 1
  )


@jax.custom_vjp
def conv3x3_winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`conv` with a 3x3 kernel, stride 1 and SAME, and its gradients: winograd.

  Args:
    x: [b, h, w, c_in], h and w multiples of four.
    kernel: [3, 3, c_in, c_out].

  Returns:
    [b, h, w, c_out].
  """
  return winograd.conv(x, kernel)


def _few_forward(x, kernel):
  return winograd.conv(x, kernel), (x, kernel)


def _few_backward(saved, g):
  x, kernel = saved
  return winograd.to_input(g, kernel), winograd.to_kernel(x, g)


def _halving(shape, padding) -> int | None:
  """The padding before, of a 3x3 that halves an even height and width."""
  if shape[1] % 2 or shape[2] % 2:
    return None
  of = {"SAME": 0, ((0, 1), (0, 1)): 0, ((1, 1), (1, 1)): 1}
  return of.get(padding if isinstance(padding, str) else tuple(padding))


def conv1x1(
  x: jax.Array, kernel: jax.Array, strides: Sequence[int] = (1, 1)
) -> jax.Array:
  """`conv` with a 1x1 kernel as a product of matrices."""
  x = x[:, :: strides[0], :: strides[1]]
  return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv3x3_stride2(x: jax.Array, kernel: jax.Array, before: int) -> jax.Array:
  """`conv` with a 3x3 kernel and stride 2; the gradient to x by phases.

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
  """The gradient of `_strided` to its kernel."""
  if min(kernel.shape[2:]) >= WIDE:
    return strided_to_kernel_by_columns(x, before, g)
  _, pullback = jax.vjp(lambda k: _strided(x, k, before), kernel)
  return pullback(g)[0]


def strided_to_kernel_by_columns(
  x: jax.Array, before: int, g: jax.Array
) -> jax.Array:
  """The kernel's gradient of `conv3x3_stride2`, as one product of matrices.

  Args:
    x: [b, 2h, 2w, c_in].
    before: rows and columns of padding in front: 0 or 1.
    g: [b, h, w, c_out], the gradient to the output.

  Returns:
    [3, 3, c_in, c_out].
  """
  _, h, w, c = x.shape
  x = jnp.pad(x, ((0, 0), (before, 1), (before, 1), (0, 0)))
  x = jnp.stack([x[:, :, j : j + w - 1 : 2] for j in range(3)], axis=3)
  x = jnp.stack([x[:, i : i + h - 1 : 2] for i in range(3)], axis=3)
  # The sum is over pixels; with them innermost on the left it is quicker.
  pixels_last = g.reshape(-1, g.shape[-1]).T
  kernel = pixels_last @ x.reshape(-1, 9 * c)
  return jnp.moveaxis(kernel.reshape(-1, 3, 3, c), 0, 3)


def _halving_forward(x, kernel, before):
  return conv3x3_stride2(x, kernel, before), (x, kernel)


def _halving_backward(before, saved, g):
  x, kernel = saved
  to_x = conv_transpose_phases(g, kernel, before)
  return to_x, _strided_to_kernel(x, kernel, before, g)


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

  Its gradients are those of the strided convolution that it is the transpose
  of.
  """
  return conv_transpose_phases(x, kernel, 0)


def _doubling_forward(x, kernel):
  return conv_transpose_by_phases(x, kernel), (x, kernel)


def _doubling_backward(saved, g):
  # <g, T(x)> = <S(g), x>, so S(g) is x's gradient, and the kernel's is the
  # one that S has at g with x behind it.
  x, kernel = saved
  return _strided(g, kernel, 0), _strided_to_kernel(g, kernel, 0, x)


def conv_transpose_phases(
  x: jax.Array, kernel: jax.Array, before: int
) -> jax.Array:
  """out[2j + k - before] += x[j] kernel[k], as four stride-1 convolutions.

  Along one axis and with nothing before, the even outputs are
  x[j] k[0] + x[j-1] k[2] and the odd ones x[j] k[1]; else the even ones
  x[j] k[1] and the odd ones x[j] k[2] + x[j+1] k[0]. The same nine products in
  all as of the transposed convolution, and no dilation.

  Args:
    x: [b, h, w, c_in].
    kernel: [3, 3, c_out, c_in].
    before: 0 or 1.

  Returns:
    [b, 2h, 2w, c_out].
  """
  b, h, w, _ = x.shape
  # Of each phase: its taps, in the order of x, and the padding.
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


conv3x3_winograd.defvjp(_few_forward, _few_backward)
conv3x3_stride2.defvjp(_halving_forward, _halving_backward)
conv_transpose_by_phases.defvjp(_doubling_forward, _doubling_backward)

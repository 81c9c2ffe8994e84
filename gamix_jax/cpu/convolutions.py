"""Convolutions that use a faster implementation on a CPU.

XLA's CPU backend is fast in the forward pass of a convolution but slow in some
of its gradients; those have other implementations here. All implementations of
an operation agree up to rounding. benchmarks/LOG.md lists what was tried, with
timings.

A program gets those of the platform that it is compiled for, which need not be
the platform of the process that traces it.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gamix_jax.cpu import winograd

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# Number of channels from which the faster matrix products outweigh the cost of
# rearranging the arrays for them.
MIN_CHANNELS = 64
# Number of output channels up to which nine copies of them are small.
MAX_NARROW = 16

# ---------------------------------------------------------- platforms

_only_cpu = contextvars.ContextVar("only_cpu", default=False)


@contextlib.contextmanager
def only_cpu() -> Iterator[None]:
  """Traces for a CPU alone, for converters that cannot read the choice."""
  token = _only_cpu.set(True)
  try:
    yield
  finally:
    _only_cpu.reset(token)


class Form(NamedTuple):
  """An implementation of an operation, linear in x and in the kernel.

  Attributes:
    forward: (x, kernel) -> y.
    to_x: (x, kernel, gradient to y) -> gradient to x.
    to_kernel: (x, kernel, gradient to y) -> gradient to the kernel.
  """

  forward: Callable
  to_x: Callable
  to_kernel: Callable


def transposed(forward: Callable) -> Form:
  """Returns the form whose gradients are JAX's transposes of `forward`."""

  def to_x(x, kernel, g):
    (out,) = jax.linear_transpose(lambda x: forward(x, kernel), x)(g)
    return out

  def to_kernel(x, kernel, g):
    (out,) = jax.linear_transpose(lambda kernel: forward(x, kernel), kernel)(g)
    return out

  return Form(forward, to_x, to_kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def by_platform(
  cpu: Form, others: Form, x: jax.Array, kernel: jax.Array
) -> jax.Array:
  """Computes the form `cpu` in a program for a CPU, `others` in any other.

  Each gradient chooses again: JAX's gradient of one choice would keep the
  intermediate arrays of both forms.
  """
  return _choose(cpu.forward, others.forward, x, kernel)


def _choose(cpu: Callable, others: Callable, *args: jax.Array) -> jax.Array:
  if cpu is others or _only_cpu.get():
    return cpu(*args)
  return lax.platform_dependent(*args, cpu=cpu, default=others)


def _forward(cpu, others, x, kernel):
  return by_platform(cpu, others, x, kernel), (x, kernel)


def _backward(cpu, others, residuals, g):
  # Apart, so that a gradient that nothing needs is not computed.
  return (
    _choose(cpu.to_x, others.to_x, *residuals, g),
    _choose(cpu.to_kernel, others.to_kernel, *residuals, g),
  )


by_platform.defvjp(_forward, _backward)


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

  def forward(x, kernel):
    return lax.conv_general_dilated(x, kernel, strides, padding, **kwargs)

  others = transposed(forward)
  cpu = _cpu_form(others, x, kernel, tuple(strides), padding)
  return by_platform(cpu, others, x, kernel) if cpu else forward(x, kernel)


def _cpu_form(others, x, kernel, strides, padding) -> Form | None:
  """Returns the CPU's form of a convolution; None if XLA's is as fast."""
  size = kernel.shape[:2]
  if size == (1, 1):
    # The gradient of a matrix product is a matrix product. That is three times
    # as fast as the convolution's, whose window is the entire image.
    return transposed(partial(conv1x1, strides=strides))
  if size == (3, 3) and strides == (2, 2):
    before = _stride2_padding(x.shape, padding)
    if before is not None:
      return _stride2_form(others, kernel, before)
  keeps_size = padding == "SAME" or tuple(padding) == ((1, 1), (1, 1))
  if size == (3, 3) and strides == (1, 1) and keeps_size:
    if _use_winograd(x, kernel):
      return _winograd_form(others, x, kernel)
    if kernel.shape[3] <= MAX_NARROW < kernel.shape[2]:
      return Form(others.forward, others.to_x, narrow_to_kernel_by_columns)
  return None


def _use_winograd(x, kernel) -> bool:
  """Whether `winograd` is accurate and faster."""
  _, h, w, _ = x.shape
  return (
    h % 4 == w % 4 == 0
    # In narrower layers and smaller images the transforms cost what they save.
    and min(kernel.shape[2:]) >= MIN_CHANNELS
    and min(h, w) >= 8
    # bfloat16 would round between the transforms.
    and x.dtype in (jnp.float32, jnp.float64)
  )


def _winograd_form(others: Form, x: jax.Array, kernel: jax.Array) -> Form:
  def to_x(x, kernel, g):
    del x
    return winograd.to_input(g, kernel)

  def to_kernel(x, kernel, g):
    del kernel
    return winograd.to_kernel(x, g)

  # The kernel's gradient is a sum over images. On several devices it would be
  # reduced before the last transform, with four times as much to send. An array
  # that no mesh holds has a mesh of size 0.
  devices = max(jax.typeof(v).sharding.mesh.size for v in (x, kernel))
  return Form(
    winograd.conv, to_x, others.to_kernel if devices > 1 else to_kernel
  )


def narrow_to_kernel_by_columns(
  x: jax.Array, kernel: jax.Array, g: jax.Array
) -> jax.Array:
  """The kernel gradient of a 3x3 convolution, as one product (im2col).

  The columns are of g, which has fewer channels, as the output convolution of a
  decoder has.

  Args:
    x: [b, h, w, c_in].
    kernel: not read.
    g: [b, h, w, c_out], the gradient with respect to the output.

  Returns:
    [3, 3, c_in, c_out].
  """
  del kernel
  _, h, w, c = x.shape
  # Output p sees input p + (i, j) - 1, so input p is seen by p + 1 - (i, j).
  # The sum is over pixels. It is faster with them as the left operand's last
  # axis.
  g = jnp.pad(jnp.moveaxis(g, 3, 0), ((0, 0), (0, 0), (1, 1), (1, 1)))
  columns = jnp.stack(
    [
      g[:, :, 2 - i : 2 - i + h, 2 - j : 2 - j + w]
      for i in range(3)
      for j in range(3)
    ]
  )
  found = columns.reshape(9 * len(g), -1) @ x.reshape(-1, c)
  return jnp.swapaxes(found.reshape(3, 3, len(g), c), 2, 3)


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


def _stride2_form(others: Form, kernel: jax.Array, before: int) -> Form:
  """Of a 3x3 convolution with stride 2: its input gradient is by phases.

  Args:
    others: the form on other platforms.
    kernel: [3, 3, c_in, c_out].
    before: rows and columns of padding in front: 0 (SAME) or 1; there is 1
      behind.
  """

  def to_x(x, kernel, g):
    del x
    return conv_transpose_phases(g, kernel, before)

  def to_kernel(x, kernel, g):
    del kernel
    return strided_to_kernel_by_columns(x, before, g)

  wide = min(kernel.shape[2:]) >= MIN_CHANNELS
  return Form(others.forward, to_x, to_kernel if wide else others.to_kernel)


def strided_to_kernel_by_columns(
  x: jax.Array, before: int, g: jax.Array
) -> jax.Array:
  """The kernel gradient of a strided convolution, as one product (im2col).

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
  wide = min(kernel.shape[2:]) >= MIN_CHANNELS
  cpu = Form(
    partial(conv_transpose_phases, before=0),
    _transpose_to_x,
    _transpose_to_kernel_by_columns if wide else _transpose_to_kernel,
  )
  return by_platform(cpu, PLAIN_TRANSPOSE, x, kernel)


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


def conv_transpose_phases(
  x: jax.Array, kernel: jax.Array, before: int
) -> jax.Array:
  """out[2j + k - before] += x[j] kernel[k], as four stride-1 convolutions.

  On a CPU, XLA's dilated convolution is an order of magnitude slower.

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


# <g, T(x)> = <S(g), x> for the transposed convolution T and the convolution S
# with stride 2. So T's gradient to x is S(g), and its gradient to the kernel is
# that of S with input g and output gradient x. Neither reverses the kernel, as
# JAX's transposes of T do.


def _strided(x, kernel):
  return lax.conv_general_dilated(
    x, kernel, (2, 2), ((0, 1), (0, 1)), dimension_numbers=DIMENSIONS
  )


def _transpose_to_x(x, kernel, g):
  del x
  return _strided(g, kernel)


def _transpose_to_kernel(x, kernel, g):
  return transposed(_strided).to_kernel(g, kernel, x)


def _transpose_to_kernel_by_columns(x, kernel, g):
  del kernel
  return strided_to_kernel_by_columns(g, 0, x)


PLAIN_TRANSPOSE = Form(
  conv_transpose_plain, _transpose_to_x, _transpose_to_kernel
)

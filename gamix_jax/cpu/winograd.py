"""3x3 convolutions and their gradients with a quarter of the products.

Winograd's minimal filtering (Lavin and Gray, arXiv:1509.09308): on tiles of six
by six pixels that overlap by two, image and kernel are each mapped linearly,
multiplied point by point, and mapped back. Along one axis, with X [6, 6] and,
for polynomials of n coefficients, V_n [6, n]:

  y[j] = sum_k x[j + k] w[k]  is  V_4^T (X x * V_3 w)   forward, j < 4
  w[k] = sum_j x[j + k] g[j]  is  V_3^T (X x * V_4 g)   backward, k < 3

so 36 products a tile instead of 144. The maps are products of matrices here,
of both axes at once, and "point by point" is 36 products of channels.

The points are 0, 2/3, -2/3, 3/2, -3/2 and infinity: their error is seven times
that of a plain sum (8e-7 of the result in float32), where the customary 0, 1,
-1, 2, -2, infinity have eighteen times.

Arrays are [batch, height, width, channels]; height and width are multiples of
four, the stride is 1 and the padding one pixel.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

POINTS = (0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)


def _values(n: int) -> np.ndarray:
  """V_n: values at the points and at infinity, of n coefficients."""
  rows = [[p**i for i in range(n)] for p in POINTS]
  return np.array([*rows, [0] * (n - 1) + [1]], np.float64)


# Multiplying polynomials is "evaluate both, multiply, interpolate"; the two
# sums above are its transposes, and X that of the interpolation.
OF_SIX = np.linalg.inv(_values(6)).T
OF_THREE = _values(3)
OF_FOUR = _values(4)


def _map(matrix: np.ndarray, x: jax.Array) -> jax.Array:
  """Both axes of a tile: [m, n] to [n * n, ...] gives [m * m, ...]."""
  both = jnp.asarray(np.kron(matrix, matrix), x.dtype)
  return (both @ x.reshape(len(both.T), -1)).reshape(-1, *x.shape[1:])


def _overlapping(x: jax.Array) -> jax.Array:
  """[b, h, w, c] -> [36, b * h * w / 16, c]."""
  _, h, w, c = x.shape
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  x = jnp.stack([x[:, :, j : j + w - 3 : 4] for j in range(6)])
  x = jnp.stack([x[:, :, i : i + h - 3 : 4] for i in range(6)])
  return x.reshape(36, -1, c)


def _products(a: jax.Array, b: jax.Array, axis: int) -> jax.Array:
  """Sums over the last axis of a and `axis` of b, for each point."""
  return lax.dot_general(a, b, (((2,), (axis,)), ((0,), (0,))))


def _joined(y: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """[16, b * h * w / 16, c] -> [b, h, w, c]."""
  b, h, w, _ = shape
  y = y.reshape(4, 4, b, h // 4, w // 4, -1)
  return jnp.transpose(y, (2, 3, 0, 4, 1, 5)).reshape(b, h, w, -1)


def _correlated(x: jax.Array, kernel: jax.Array, axis: int) -> jax.Array:
  """x with each tap; its channels are the kernel's 1: first or 2: second."""
  at = _map(OF_SIX, _overlapping(x))
  kernel = _map(OF_THREE, kernel.reshape(9, *kernel.shape[2:]))
  return _joined(_map(OF_FOUR.T, _products(at, kernel, axis)), x.shape)


def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """The convolution.

  Args:
    x: [b, h, w, c_in].
    kernel: [3, 3, c_in, c_out].

  Returns:
    [b, h, w, c_out].
  """
  return _correlated(x, kernel, 1)


def to_input(g: jax.Array, kernel: jax.Array) -> jax.Array:
  """Its gradient to x, from g [b, h, w, c_out], that to the output."""
  return _correlated(g, kernel[::-1, ::-1], 2)


def to_kernel(x: jax.Array, g: jax.Array) -> jax.Array:
  """Its gradient to the kernel, from x and g: [3, 3, c_in, c_out]."""
  b, h, w, c = g.shape
  x = _map(OF_SIX, _overlapping(x))
  # The sum is over tiles. With them innermost on the left the product is twice
  # as fast on a CPU, and g has fewer numbers to transpose for it than x.
  g = jnp.transpose(g.reshape(b, h // 4, 4, w // 4, 4, c), (2, 4, 5, 0, 1, 3))
  g = _map(OF_FOUR, g.reshape(16, c, -1))
  kernel = _map(OF_THREE.T, _products(g, x, 1))  # [9, c_out, c_in]
  return jnp.swapaxes(kernel.reshape(3, 3, *kernel.shape[1:]), 2, 3)

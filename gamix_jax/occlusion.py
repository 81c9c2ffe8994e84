"""Occlusion: a rectangle of an image that the encoder does not see.

With `data.occlude` the encoder gets an incomplete image, and the target of the
reconstruction is the whole one. q(z | x) is then q(z | the pixels that can be
seen), which may have several modes, one for each way to complete the image.

    half   one of the four halves: top, bottom, left or right, chosen at random
    box    a rectangle of half the height and half the width, at a random place

A batch of such a run has the entry "hidden" [b, 4]: the first row, the first
column, the height and the width of each rectangle, in pixels. In training they
depend on (seed, step), elsewhere on the image's place in its batch or array
alone, so that all models are judged with the same ones.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

HIDDEN = "hidden"  # entry of batches
NONE = "none"
# The grey between black and white. MNIST's images do not have areas of it, so
# that what is hidden can be told from what is black.
FILL = 0.0


def draw(
  kind: str, key: jax.Array, shape: tuple[int, int, int]
) -> Int[Array, "4"]:
  """Draws the rectangle of one image: first row, first column, height, width.

  Args:
    kind: "half" or "box".
    key: a typed PRNG key.
    shape: (h, w, c) of the image; h and w are 2 or more.
  """
  h, w, _ = shape
  if kind == "half":
    halves = [
      (0, 0, h // 2, w),
      (h // 2, 0, h - h // 2, w),
      (0, 0, h, w // 2),
      (0, w // 2, h, w - w // 2),
    ]
    return jnp.asarray(halves, jnp.int32)[jax.random.randint(key, (), 0, 4)]
  size = jnp.asarray((h // 2, w // 2), jnp.int32)
  # Every place at which the rectangle is inside the image.
  places = jnp.asarray((h, w), jnp.int32) - size + 1
  first = jax.random.randint(key, (2,), 0, places)
  return jnp.concatenate([first, size])


@functools.partial(jax.jit, static_argnames=("kind", "shape"))
def draw_rows(
  kind: str, key: jax.Array, rows: Int[Array, " b"], shape: tuple[int, int, int]
) -> Int[Array, "b 4"]:
  """Draws a rectangle for each row, a function of the key and its number."""
  keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
  return jax.vmap(lambda key: draw(kind, key, shape))(keys)


def mask(
  hidden: Int[Array, "b 4"], shape: tuple[int, int, int]
) -> Float[Array, "b h w 1"]:
  """1 where pixels are hidden, else 0."""
  top, left, height, width = (hidden[:, i, None] for i in range(4))
  rows, columns = jnp.arange(shape[0])[None], jnp.arange(shape[1])[None]
  in_rows = (rows >= top) & (rows < top + height)
  in_columns = (columns >= left) & (columns < left + width)
  inside = in_rows[:, :, None] & in_columns[:, None]
  return inside[..., None].astype(jnp.float32)


def hide(
  x: Float[Array, "b h w c"], hidden: Int[Array, "b 4"]
) -> Float[Array, "b h w c"]:
  """Images in [-1, 1] whose hidden pixels are grey, 0."""
  inside = mask(hidden, x.shape[1:]) > 0
  return jnp.where(inside, jnp.asarray(FILL, x.dtype), x)


def seen(x: Mapping[str, jax.Array], image: str) -> Float[Array, "b h w c"]:
  """The images of observations as the encoder sees them.

  Args:
    x: images in [-1, 1], and "hidden" if a part of them is.
    image: the entry of the images.
  """
  return hide(x[image], x[HIDDEN]) if HIDDEN in x else x[image]

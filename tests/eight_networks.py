"""Runs a step of other networks on eight emulated devices; see test_networks.

Compares all values to the same step on one device, and prints the number of
arrays compared.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from conftest import QUICK, alone, assert_close, images, jit, state_of

from benchmarks import collectives, communication
from gamix_jax import build, step
from gamix_jax.cpu import convolutions
from gamix_jax.parallel import mesh


def config():
  """A patched convolutional encoder, an MLP decoder, batch statistics."""
  return alone(
    data__batch_size=16,
    data__image_size=(8, 12),
    model__norm="batch",
    model__patch=2,
    model__input_norm="none",
    model__encoder="conv",
    model__encoder_features=(8,),
    model__decoder="mlp",
    model__decoder_features=(8,),
    # Adam's first step on a rounding error would be its sign.
    optim__vae__eps=1e-2,
    optim__vae__learning_rate=1e-2,
  )


def check_wide_convolutions():
  """A step sends the kernels' gradients, 9 numbers a pair, and nothing else."""
  grid = mesh.create_mesh(jax.device_count())
  rows = mesh.batch_sharding(grid)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(grid.size, 8, 8, 64)).astype("float32")
  kernel = rng.normal(size=(3, 3, 64, 64)).astype("float32") / 24

  def loss(x, kernel):
    named = dict(dimension_numbers=convolutions.DIMENSIONS)
    y = convolutions.conv(x, kernel, (1, 1), "SAME", **named)
    y = convolutions.conv(y, kernel, (2, 2), "SAME", **named)
    return jnp.sum(convolutions.conv_transpose(y, kernel) ** 2)

  gradients = jax.grad(loss, (0, 1))
  one = jit(gradients)(x, kernel)
  shardings = (rows, mesh.replicated(grid))
  spread = jax.device_put((x, kernel), shardings)
  compiled = jit(gradients, out_shardings=shardings).lower(*spread).compile()
  assert_close(compiled(*spread), one, 1e-5)
  sent = collectives.read(compiled.as_text(), grid.size)
  assert {o.kind for o in sent} == {"all-reduce"}
  assert communication.total(sent, "all-reduce") <= 3 * kernel.nbytes


def main():
  """Compares; an AssertionError names the differing arrays."""
  check_wide_convolutions()
  c = config()
  spec = build.train_spec(c)
  first, batch = jax.device_get((state_of(spec), images(c)))
  one = jit(functools.partial(step.train_step, spec))(first, batch)
  grid = mesh.create_mesh(c.data.batch_size, 1)
  layout = mesh.ShardingPlan(grid, c.mesh.fsdp_min_size)
  state = jax.device_put(first, layout.shardings(first))
  spread = mesh.global_batch(grid, batch)
  assert len(spread["image"].sharding.device_set) == jax.device_count()
  eight = step.jit_train_step(spec, layout, compiler_options=QUICK)(
    state, spread
  )
  leaves = jax.tree_util.tree_leaves_with_path(one)
  for (path, leaf), other in zip(leaves, jax.tree.leaves(eight), strict=True):
    a, b = np.asarray(leaf), np.asarray(other)
    off = np.max(np.abs(a - b), initial=0)
    limit = 1e-4 * np.max(np.abs(a), initial=0) + 1e-6
    assert off <= limit, (jax.tree_util.keystr(path), off, limit)
  print(f"{jax.device_count()} devices: {len(leaves)} arrays agree")


if __name__ == "__main__":
  warnings.simplefilter("error")
  main()

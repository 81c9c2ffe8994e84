"""Subprocesses that test_checkpoint.py starts.

python checkpoint_child.py WHAT DIRECTORY [ARGUMENT ...]
"""

import hashlib
import os
import resource
import shutil
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gamix_jax import save_errors
from gamix_jax.checkpoint import Checkpoints, Preemption, integrity
from gamix_jax.errors import UserError


def say(*words):
  print(*words, flush=True)


def digest(state):
  total = hashlib.sha256()
  for leaf in jax.tree.leaves(state):
    total.update(np.asarray(leaf).tobytes())
  return total.hexdigest()


def train(directory):
  """Saves a 24 MB state at every step, forever; the parent kills it."""

  def init():
    w = jax.random.normal(jax.random.key(0), (3, 1 << 20))
    return {"step": jnp.int32(0), "w": w, "m": jnp.zeros_like(w)}

  def update(state):
    m = 0.9 * state["m"] + jnp.sin(state["w"])
    return {"step": state["step"] + 1, "w": state["w"] - m, "m": m}

  update = jax.jit(update, donate_argnums=0)
  store = Checkpoints(directory, keep=2)
  found = store.restore(jax.eval_shape(init))
  step, state = (0, jax.jit(init)()) if found is None else found
  say("restored", step, digest(state))
  while True:
    state = update(state)
    step += 1
    say("begin", step, digest(state))
    store.save(step, state)  # returns when the previous save is complete
    say("complete", step - 1)


def die(directory, where):
  """Kills itself at a chosen point of the second save."""

  def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

  def half(path, *_, **__):
    for name in ("SHA256SUMS", "state/_METADATA"):
      os.remove(os.path.join(path, name))
    kill()

  store = Checkpoints(directory, keep=1)
  store.save(1, sharded(mesh(1)))
  store.wait()
  if where == "delete":
    shutil.rmtree = half
  else:
    setattr(integrity, where, kill)
  store.save(2, sharded(mesh(1)))
  store.wait()
  say("alive")


def mesh(n):
  """Returns a mesh of all n devices."""
  return jax.make_mesh(
    (n,),
    ("data",),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:n],
  )


def sharded(mesh):
  """Returns a state on all devices: partly sharded, partly replicated."""
  split, every = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())

  def init():
    # Random bits, which do not depend on how the program is compiled.
    w = jax.random.bits(jax.random.key(1), (16, 5), "uint16").astype("float32")
    return {"w": w, "b": w[0].astype(jnp.bfloat16), "key": jax.random.key(2)}

  layout = {"w": split, "b": every, "key": every}
  return jax.jit(init, out_shardings=layout)()


def eight(directory, one):
  """Saves from eight devices; restores what one device has saved."""
  state = sharded(mesh(8))
  with Checkpoints(directory, keep=1) as store:
    store.save(1, state)
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )
  with Checkpoints(one, keep=1) as store:
    _, back = store.restore(abstract)
  assert back["w"].sharding == state["w"].sharding
  assert len(back["w"].addressable_shards) == jax.device_count() == 8
  assert np.array_equal(back["w"], state["w"])
  say("done")


def host(directory, port, number):
  """Runs one of two processes with four devices each."""
  jax.distributed.initialize(f"localhost:{port}", 2, int(number))
  state = sharded(mesh(8))
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )
  with Checkpoints(directory, keep=2) as store:
    assert store.restore(abstract) is None
    for step in (1, 2, 3):
      store.save(step, state)
    store.save(3, sharded(mesh(8)))  # the same again, restored and compared
    step, back = store.restore(abstract)
    assert step == 3
    assert store.steps() == [2, 3]
    for a, b in zip(
      state["w"].addressable_shards, back["w"].addressable_shards, strict=True
    ):
      assert np.array_equal(a.data, b.data)
  if number == "0":
    with open(os.path.join(directory, "3", "about", "metadata"), "a") as file:
      file.write(" ")
  jax.experimental.multihost_utils.sync_global_devices("damaged")
  with Checkpoints(directory, keep=2) as store:
    assert store.restore(abstract)[0] == 2
    store.save(3, state)
  with Preemption() as preemption:  # one signal stops both at one step
    step = 0
    while not preemption.reached(step):
      step += 1
      if (number, step) == ("1", 5):
        os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(0.02)
      assert step < 1000
  assert step >= 5
  say("stopped", step)


def fill(directory, limit):
  """Saves until the disk is full, or a file exceeds the size limit."""
  if int(limit):
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), hard))
  store = Checkpoints(directory, keep=3)
  for step in range(1, 50):
    # Steps grow, so that the first ones fit.
    shape = (step, 1 << 18)
    try:
      store.save(step, {"w": jax.random.normal(jax.random.key(step), shape)})
      store.wait()
    except UserError as error:
      say("failed", step, error)
      store.close()
      say("steps", *store.steps())
      return
  raise AssertionError("the disk was never full")


def readonly(directory):
  """Saves, loses the write permission, saves again."""
  state = {"w": jnp.arange(10.0)}
  with Checkpoints(directory, keep=2) as store:
    store.save(1, state)
    store.wait()
    os.chmod(directory, 0o555)
    if os.geteuid() == 0:  # root ignores permissions
      os.chmod(os.path.dirname(directory), 0o755)
      os.setuid(65534)
    try:
      store.save(2, state)
      store.wait()
    except UserError as error:
      say("failed", 2, error)
    say("restored", store.restore(jax.eval_shape(lambda: state))[0])


if __name__ == "__main__":
  save_errors.silence_orbax()  # as the commands do
  {
    "train": train,
    "die": die,
    "eight": eight,
    "host": host,
    "fill": fill,
    "readonly": readonly,
  }[sys.argv[1]](*sys.argv[2:])

"""Our training step as `train` runs it, on a batch that stays on the device."""

import functools
import time
from collections.abc import Mapping

import jax
import numpy as np
import optax

from benchmarks import images
from gamix_jax import build, step
from gamix_jax.config import ConfigDict
from gamix_jax.parallel import mesh


class JaxStep:
  """A run's step, its state and one batch.

  Attributes:
    compiled: the compiled step, after `compile`.
    seconds: {"trace": ..., "compile": ...}.
    from_cache: whether `compile` found it in the compilation cache.
  """

  def __init__(self, config: ConfigDict):
    """Builds the networks; computes nothing."""
    self.config, self.spec = config, build.train_spec(config)
    self.devices = mesh.create_mesh(config.data.batch_size, config.mesh.fsdp)
    self.layout = mesh.ShardingPlan(self.devices, config.mesh.fsdp_min_size)
    self.function = step.jit_train_step(self.spec, self.layout)
    self.seconds: dict[str, float] = {}
    self.compiled = self.state = self.batch = None
    self.from_cache = False

  def begin(self, batch: Mapping[str, np.ndarray] | None = None) -> None:
    """Creates the initial state and the batch, as `train` does.

    Args:
      batch: by default smooth images.
    """
    abstract = jax.eval_shape(functools.partial(step.init, self.spec))
    self.state = step.init_sharded(self.spec, self.layout.shardings(abstract))
    if batch is None:
      batch = {"image": images.smooth(self.config, 0)}
    self.batch = mesh.global_batch(self.devices, batch)
    jax.block_until_ready((self.state, self.batch))

  def compile(self) -> None:
    """Compiles the step without running it."""
    start = time.perf_counter()
    lowered = self.function.lower(self.state, self.batch)
    self.seconds["trace"] = time.perf_counter() - start
    events = []

    def on_event(event, **_):
      events.append(event)

    jax.monitoring.register_event_listener(on_event)
    start = time.perf_counter()
    self.compiled = lowered.compile()
    self.seconds["compile"] = time.perf_counter() - start
    jax.monitoring.unregister_event_listener(on_event)
    self.from_cache = "/jax/compilation_cache/cache_hits" in events

  def run(self, n: int) -> None:
    """Dispatches n steps and waits for the last one."""
    function = self.compiled or self.function
    for _ in range(n):
      self.state, metrics = function(self.state, self.batch)
    jax.block_until_ready((self.state, metrics))

  def device_peak(self) -> int:
    """Returns the device's peak bytes in use so far, 0 if it is not known."""
    stats = self.devices.devices.flat[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", 0)


class Eager:
  """The step with two separate gradients, operation by operation."""

  def __init__(self, ours: JaxStep):
    """Copies the state of `ours`, and shares its batch."""
    self.spec = ours.spec
    self.state = jax.tree.map(np.asarray, ours.state)
    self.state = jax.device_put(self.state)
    self.batch = ours.batch

  def _one(self) -> None:
    state, spec = self.state, self.spec
    params = [state.vae.params, state.disc.params]

    def loss(which, own):
      pair = list(params)
      pair[which] = own
      found, _ = step.losses(spec, state, self.batch, tuple(pair))
      return found[which]

    nets = [state.vae, state.disc]
    optimizers = [spec.vae_optimizer, spec.disc_optimizer]
    for i in range(2 if spec.disc is not None else 1):
      grads = jax.grad(functools.partial(loss, i))(params[i])
      updates, slots = optimizers[i].update(
        grads, nets[i].opt_state, nets[i].params
      )
      new = optax.apply_updates(nets[i].params, updates)
      nets[i] = nets[i].replace(params=new, opt_state=slots)
    ema = optax.incremental_update(nets[0].params, state.ema, 0.001)
    self.state = state.replace(
      vae=nets[0], disc=nets[1], ema=ema, step=state.step + 1
    )

  def run(self, n: int) -> None:
    """Runs n steps."""
    with jax.disable_jit():
      for _ in range(n):
        self._one()
    jax.block_until_ready(self.state)

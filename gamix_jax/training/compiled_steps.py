"""The compiled training steps of a run.

Compilation takes longest of all that happens before the first step, so it runs
in a thread, in parallel with the other setup. A discriminator that starts later
needs a second program. That one is compiled while the first one trains. A lack
of memory is then reported at the start, not after half of the training.
"""

import concurrent.futures
from collections.abc import Callable

import jax

from gamix_jax import step
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.parallel import mesh


class CompiledSteps:
  """Compiles the steps of a run in a thread; a context manager."""

  def __init__(
    self,
    spec: step.TrainSpec,
    config: ConfigDict,
    abstract: step.TrainState,
    layout: mesh.ShardingPlan,
  ):
    """Compiles nothing yet.

    Args:
      spec: of the run.
      config: of the run.
      abstract: shapes, types and shardings of the state.
      layout: how arrays are sharded.
    """
    self._spec, self._config = spec, config
    self._abstract, self._layout = abstract, layout
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "compile")
    # The only difference is whether the discriminator has started.
    self._programs: dict[bool, concurrent.futures.Future] = {}

  def __enter__(self):
    """Returns itself."""
    return self

  def __exit__(self, *error):
    """Waits for the program that is being compiled, and drops others."""
    self._thread.shutdown(cancel_futures=True)

  def start(self, done: int) -> None:
    """Starts to compile what a run needs that continues after `done` steps."""
    # Grain replaces Python's import function, for every thread, while it is
    # imported itself. JAX's imports in the compiling thread would then fail.
    import grain  # noqa: F401, PLC0415

    steps = self._config.steps
    for at in (done, self._spec.disc_start):
      spec = self._spec.at(at)
      if done <= at < steps and spec.started not in self._programs:
        self._programs[spec.started] = self._thread.submit(
          compile_step, spec, self._config, self._abstract, self._layout
        )

  def at(self, done: int) -> Callable:
    """Returns the step after `done` steps, once it is compiled.

    Raises:
      UserError: the device has not enough memory for it.
    """
    return self._programs[self._spec.at(done).started].result()

  def check(self) -> None:
    """Raises what went wrong in the thread until now.

    Raises:
      UserError: the device has not enough memory for a program.
    """
    for program in self._programs.values():
      if program.done():
        program.result()


def compile_step(
  spec: step.TrainSpec,
  config: ConfigDict,
  abstract: step.TrainState,
  layout: mesh.ShardingPlan,
) -> jax.stages.Compiled:
  """Compiles the training step for the shapes of a run.

  Raises:
    UserError: the device has not enough memory for it.
  """
  sharding = mesh.batch_sharding(layout.mesh)
  batch = {
    k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=sharding)
    for k, v in spec.batch_shapes(config.data.batch_size).items()
  }
  train_step = step.jit_train_step(spec, layout)
  compiled = train_step.lower(abstract, batch).compile()
  _check_memory(spec, compiled, layout.mesh.local_devices[0])
  return compiled


def program_memory(compiled: jax.stages.Compiled) -> dict[str, int]:
  """Returns the bytes that a compiled program needs on a device, by kind.

  Returns:
    `program`, the sum of `arguments`, `temporary` and those of `outputs` that
    do not reuse the memory of arguments (`reused`).
  """
  stats = compiled.memory_analysis()
  found = {
    "arguments": stats.argument_size_in_bytes,
    "outputs": stats.output_size_in_bytes,
    "reused": stats.alias_size_in_bytes,
    "temporary": stats.temp_size_in_bytes,
  }
  found["program"] = (
    found["arguments"] + found["outputs"] - found["reused"] + found["temporary"]
  )
  return found


def _check_memory(
  spec: step.TrainSpec, compiled: jax.stages.Compiled, device: jax.Device
) -> None:
  """Refuses a program that a device has not enough memory for.

  Raises:
    UserError: it needs more than JAX may use of the device.
  """
  limit = (device.memory_stats() or {}).get("bytes_limit")
  if not limit:  # as on a CPU
    return
  needed = program_memory(compiled)["program"]
  if needed <= limit:
    return
  late = spec.has_discriminator and spec.started and spec.disc_start
  since = (
    f"From step {spec.disc_start} on, the discriminator's" if late else "A"
  )
  raise UserError(
    f"{since} step needs {needed / 2**30:.2f} GiB, and JAX may use "
    f"{limit / 2**30:.2f} GiB of {device.device_kind}.\nUse smaller batches, "
    "images or networks (--config.data.batch_size, data.image_size, model.*), "
    "more devices, or accumulate gradients (optim.accumulate)."
  )

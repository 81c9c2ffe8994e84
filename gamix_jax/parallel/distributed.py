"""Setup of a multi-process run, and operations across its processes.

Call `initialize` first, before anything asks JAX for its devices. The functions
that communicate must be called by all processes, in the same order; in a
single-process run they are free.
"""

import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gamix_jax import hardware
from gamix_jax.errors import UserError

_MESSAGE_BYTES = 1 << 16
# Seconds of waiting for the other processes until a message is printed, and
# until the process exits. The latter is JAX's own limit, at which it would
# abort with a stack trace.
EXPLAIN, GIVE_UP = 60, 300
# Seconds without a heartbeat after which a process counts as dead. The others
# then exit: at once if they wait for it in a step, else within this time.
HEARTBEAT = 30
LOST = 75  # exit code EX_TEMPFAIL of sysexits.h: temporary failure, try again


def initialize(
  multihost: bool = False,
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Connects the processes of a multi-process run.

  A multi-process run is requested by the arguments or detected: in a TPU pod,
  in a Slurm step (`srun`), or in an indexed Kubernetes job that sets
  JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES, as the files of `launch/gke`
  do. In a single-process run this does nothing.

  Args:
    multihost: fail if no multi-process run is detected.
    coordinator: HOST:PORT of process 0; None: detected, as the next two.
    num_processes: number of processes in the run.
    process_id: index of this process, from 0.

  Raises:
    UserError: an argument is missing or invalid, or the other processes cannot
      be detected.
  """
  given = (coordinator, num_processes, process_id)
  if any(v is not None for v in given):
    if None in given:
      raise UserError(
        "--coordinator=HOST:PORT, --num_processes=N and --process_id=I must be "
        "used together: give all three on every host, or none in a TPU pod, "
        "under srun or in a JobSet, where they are detected."
      )
  else:
    given = _from_job()
  if None not in given:
    _check(*given)
  elif not (multihost or _in_slurm_step() or hardware.has_tpu()):
    return
  done = threading.Event()
  threading.Thread(target=_watch, args=(done, given[0]), daemon=True).start()
  try:
    jax.distributed.initialize(
      *given,
      initialization_timeout=2 * GIVE_UP,  # `_watch` ends the process earlier
      heartbeat_timeout_seconds=HEARTBEAT,
    )
  except (ValueError, RuntimeError) as e:
    raise UserError(
      f"--multihost: {str(e).splitlines()[0]}\nThe processes of the run cannot "
      "be detected here (as in a TPU pod, under srun or in a JobSet of "
      "launch/gke); use --coordinator=HOST:PORT --num_processes=N "
      "--process_id=I."
    ) from e
  finally:
    done.set()


def _check(coordinator: str, num_processes: int, process_id: int) -> None:
  host, colon, port = coordinator.rpartition(":")
  if not (host and colon and port.isdigit()):
    raise UserError(f"--coordinator={coordinator} must be HOST:PORT.")
  if not 0 <= process_id < num_processes:
    raise UserError(
      f"--process_id={process_id} must be from 0 to {num_processes - 1}, with "
      f"--num_processes={num_processes}."
    )


def _from_job() -> tuple[str | None, int | None, int | None]:
  """Reads (coordinator, num_processes, process_id) from the environment.

  An indexed Kubernetes job sets these variables; otherwise all three are None.

  Raises:
    UserError: a variable is not an integer.
  """
  names = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JOB_COMPLETION_INDEX",
  )
  values = [os.environ.get(name) for name in names]
  if None in values:
    return None, None, None
  try:
    return values[0], int(values[1]), int(values[2])
  except ValueError as e:
    raise UserError(f"{names[1]}, {names[2]}: {e}.") from e


def _in_slurm_step() -> bool:
  env = os.environ
  return "SLURM_STEP_NODELIST" in env and int(env.get("SLURM_NTASKS", 1)) > 1


def _watch(done: threading.Event, coordinator: str | None) -> None:
  """Explains a long wait for the other processes, then exits.

  Runs in a thread, since JAX waits outside Python and aborts at its own limit.
  """
  where = f" at {coordinator}" if coordinator else ""
  if done.wait(EXPLAIN):
    return
  print(
    f"gamix_jax: still waiting for the run's other processes{where} after "
    f"{EXPLAIN} s. Start the command on every host of a pod (gcloud ... ssh "
    "--worker=all), and make sure that process 0 can be reached.",
    file=sys.stderr,
    flush=True,
  )
  if done.wait(GIVE_UP - EXPLAIN):
    return
  print(
    f"gamix_jax: not all processes connected within {GIVE_UP} s; exiting.",
    file=sys.stderr,
    flush=True,
  )
  os._exit(LOST)


def is_multiprocess() -> bool:
  """Whether this run has several processes; does not initialise devices."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def is_main_process() -> bool:
  """Whether this is process 0, which writes files and prints for all."""
  return jax.process_index() == 0


def peer_failure(error: BaseException) -> str | None:
  """Returns a message if another process's exit caused the error, else None."""
  # Gloo, which communicates between CPUs, raises a ValueError in some places.
  from_peer = isinstance(error, jax.errors.JaxRuntimeError) or (
    isinstance(error, ValueError) and "Gloo" in str(error)
  )
  if not is_multiprocess() or not from_peer:
    return None
  return (
    f"process {jax.process_index()} lost the others: "
    f"{str(error).splitlines()[0][:200]}\nThe last complete checkpoint is "
    "kept; the same command on every host continues the run."
  )


def run_on_main(work: Callable[[], Any]) -> Any:
  """Calls `work` on process 0 and returns its result on every process.

  The result must be serialisable as JSON.

  Raises:
    UserError: `work` raised it; it is then raised on every process.
  """
  result: Any = None
  if is_main_process():
    try:
      result = [True, work()]
    except UserError as e:
      if jax.process_count() == 1:
        raise
      result = [False, str(e)]
  succeeded, value = broadcast(result)
  if not succeeded:
    raise UserError(value)
  return value


def barrier(name: str) -> None:
  """Returns when every process has called it."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"gamix_jax: {name}")


def any_process(here: bool) -> bool:
  """Whether `here` is true on any process."""
  if jax.process_count() == 1:
    return here
  return bool(np.any(multihost_utils.process_allgather(np.asarray(here))))


def broadcast(value: Any) -> Any:
  """Returns process 0's `value`, serialisable as JSON, on every process."""
  if jax.process_count() == 1:
    return value
  text = json.dumps(value).encode()
  sent = np.zeros(_MESSAGE_BYTES, np.uint8)
  sent[: len(text)] = np.frombuffer(text, np.uint8)
  received = multihost_utils.broadcast_one_to_all(sent)
  return json.loads(np.asarray(received).tobytes().rstrip(b"\0"))

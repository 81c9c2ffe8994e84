"""The processes of one run: how they meet, and what they agree on.

Call `initialize` first, before anything asks JAX for its devices. The others
cost nothing on one process; on several all must call them, in the same order.
"""

import glob
import importlib.util
import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gamix_jax.errors import UserError

_MESSAGE_BYTES = 1 << 16
# Seconds after which the wait for the other processes is explained, and given
# up. The second is JAX's own limit, at which it would abort with a stack trace.
EXPLAIN, GIVE_UP = 60, 300
# Without a sign of life for as long, a process counts as dead, and the others
# end: at once where they are in a step that needs it, else within this time.
HEARTBEAT = 30
LOST = 75  # exit code, as of sysexits.h: a failure that will pass; try again


def initialize(
  multihost: bool = False,
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Makes this process one of several, where there are several.

  Asked for, or found: inside a TPU pod, a Slurm step (`srun`) or an indexed
  Kubernetes job with JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES (the files
  of `launch/gke` set them). Alone it returns at once.

  Args:
    multihost: whether it was asked for.
    coordinator: address and port of process 0; None: found, as are the others.
    num_processes: of the run.
    process_id: this one's, from 0.

  Raises:
    UserError: what is needed is not known, or contradicts itself.
  """
  given = (coordinator, num_processes, process_id)
  if any(v is not None for v in given):
    if None in given:
      raise UserError(
        "--coordinator=HOST:PORT, --num_processes=N and --process_id=I belong "
        "together: give all three on every host, or none where a TPU pod, "
        "Slurm or JobSet tells them."
      )
  else:
    given = _from_job()
  if None not in given:
    _check(*given)
  elif not (multihost or _in_slurm_step() or _on_tpu()):
    return
  done = threading.Event()
  threading.Thread(target=_watch, args=(done, given[0]), daemon=True).start()
  try:
    jax.distributed.initialize(
      *given,
      initialization_timeout=2 * GIVE_UP,  # `_watch` speaks before
      heartbeat_timeout_seconds=HEARTBEAT,
    )
  except (ValueError, RuntimeError) as e:
    raise UserError(
      f"--multihost: {str(e).splitlines()[0]}\nNothing here tells which "
      "processes belong together (a TPU pod, srun, a JobSet of launch/gke); "
      "give --coordinator=HOST:PORT --num_processes=N --process_id=I."
    ) from e
  finally:
    done.set()


def _check(coordinator: str, num_processes: int, process_id: int) -> None:
  host, colon, port = coordinator.rpartition(":")
  if not (host and colon and port.isdigit()):
    raise UserError(f"--coordinator={coordinator} is not HOST:PORT.")
  if not 0 <= process_id < num_processes:
    raise UserError(
      f"--process_id={process_id} must be from 0 to {num_processes - 1}, with "
      f"--num_processes={num_processes}."
    )


def _from_job() -> tuple[str | None, int | None, int | None]:
  """What an indexed Kubernetes job knows of itself.

  Raises:
    UserError: a number is none.
  """
  names = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JOB_COMPLETION_INDEX",
  )
  found = [os.environ.get(name) for name in names]
  if None in found:
    return None, None, None
  try:
    return found[0], int(found[1]), int(found[2])
  except ValueError as e:
    raise UserError(f"{names[1]}, {names[2]}: {e}.") from e


def _in_slurm_step() -> bool:
  env = os.environ
  return "SLURM_STEP_NODELIST" in env and int(env.get("SLURM_NTASKS", 1)) > 1


def _on_tpu() -> bool:
  """Whether this machine has TPU chips, and the library for them."""
  chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
  return bool(chips) and importlib.util.find_spec("libtpu") is not None


def _watch(done: threading.Event, coordinator: str | None) -> None:
  """Says what the process waits for; ends it when it has waited long enough.

  In a thread, since JAX waits outside Python and aborts at its own limit.
  """
  where = f" at {coordinator}" if coordinator else ""
  if done.wait(EXPLAIN):
    return
  print(
    f"gamix_jax: waiting for the run's other processes{where} since "
    f"{EXPLAIN} s. The command is to be started on every host of a pod (gcloud "
    "... ssh --worker=all), and process 0 must be reachable.",
    file=sys.stderr,
    flush=True,
  )
  if done.wait(GIVE_UP - EXPLAIN):
    return
  print(
    f"gamix_jax: not all processes came in {GIVE_UP} s; this one ends.",
    file=sys.stderr,
    flush=True,
  )
  os._exit(LOST)


def is_multiprocess() -> bool:
  """Whether this run has several processes; asks no device."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def is_main_process() -> bool:
  """Whether this is process 0, which writes and speaks for all."""
  return jax.process_index() == 0


def peer_failure(error: BaseException) -> str | None:
  """What to say of an error that another process's end brings; None: not."""
  # What carries the words between CPUs raises a ValueError in some places.
  theirs = isinstance(error, jax.errors.JaxRuntimeError) or (
    isinstance(error, ValueError) and "Gloo" in str(error)
  )
  if not is_multiprocess() or not theirs:
    return None
  return (
    f"process {jax.process_index()} lost the others: "
    f"{str(error).splitlines()[0][:200]}\nThe last complete checkpoint is "
    "kept; the same command on every host continues the run."
  )


def run_on_main(work: Callable[[], Any]) -> Any:
  """What process 0's `work` returns, on every process; JSON can hold it.

  Raises:
    UserError: on every process, if it was raised there.
  """
  told: Any = None
  if is_main_process():
    try:
      told = [True, work()]
    except UserError as e:
      if jax.process_count() == 1:
        raise
      told = [False, str(e)]
  fine, value = broadcast(told)
  if not fine:
    raise UserError(value)
  return value


def barrier(name: str) -> None:
  """Returns when every process has called it."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"gamix_jax: {name}")


def any_process(here: bool) -> bool:
  """Whether it is so on any process."""
  if jax.process_count() == 1:
    return here
  return bool(np.any(multihost_utils.process_allgather(np.asarray(here))))


def broadcast(value: Any) -> Any:
  """What process 0 found out, on every process: anything JSON can hold."""
  if jax.process_count() == 1:
    return value
  text = json.dumps(value).encode()
  sent = np.zeros(_MESSAGE_BYTES, np.uint8)
  sent[: len(text)] = np.frombuffer(text, np.uint8)
  got = multihost_utils.broadcast_one_to_all(sent)
  return json.loads(np.asarray(got).tobytes().rstrip(b"\0"))

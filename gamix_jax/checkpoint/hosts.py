"""What several processes of one run have to agree on.

On one process each of these is free. On several all must call it, in the same
order.
"""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_MESSAGE_BYTES = 1 << 16


def meet(name: str) -> None:
  """Returns when every process has called it."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"gamix_jax checkpoint: {name}")


def any_host(here: bool) -> bool:
  """Whether it is so on any process."""
  if jax.process_count() == 1:
    return here
  return bool(np.any(multihost_utils.process_allgather(np.asarray(here))))


def from_first(value: Any) -> Any:
  """What process 0 found out, on every process: anything JSON can hold."""
  if jax.process_count() == 1:
    return value
  text = json.dumps(value).encode()
  sent = np.zeros(_MESSAGE_BYTES, np.uint8)
  sent[: len(text)] = np.frombuffer(text, np.uint8)
  got = multihost_utils.broadcast_one_to_all(sent)
  return json.loads(np.asarray(got).tobytes().rstrip(b"\0"))

"""Batches of rows that `order` names, made ahead in the background.

Grain moves the work to threads or to processes. An element of its stream is
a whole batch, made from (seed, step), so neither the number of workers nor
the step it starts at can change what is in it.
"""

import concurrent.futures
import contextlib
import gc
import logging
import multiprocessing
import os
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from gamix_jax.data.dataset import Dataset
from gamix_jax.data.index_sampler import IndexSampler, local_rows
from gamix_jax.errors import UserError

log = logging.getLogger(__name__)

_ENDLESS = 1 << 40  # steps
_MOST_THREADS = 8  # of one process; more would wait for the interpreter
_PREFETCH = 2  # batches ready ahead, and as many a worker


class _Steps:
  """A random-access sequence whose element t is the batch of step t."""

  def __init__(
    self,
    dataset: Dataset,
    order: IndexSampler,
    rows: slice,
    pool: concurrent.futures.Executor | None,
  ):
    self._dataset, self._order, self._rows = dataset, order, rows
    self._pool = pool

  def __len__(self) -> int:
    return _ENDLESS

  def __getitem__(self, t: int) -> dict[str, Any]:
    index = self._order.rows(t)[self._rows]
    flips = self._order.flips(t)[self._rows]
    try:
      return gather(self._dataset, index, flips, self._pool)
    except UserError as e:
      # Raised again where it can be read: an exception of a worker process
      # arrives wrapped in that process's traceback.
      return {"error": str(e)}


def gather(
  dataset: Dataset,
  index: np.ndarray,
  flips: np.ndarray | None = None,
  pool: concurrent.futures.Executor | None = None,
) -> dict[str, Any]:
  """Images, labels and the broken files met, of the given rows."""
  images, labels, broken = dataset.take(index, pool)
  if flips is not None and flips.any():
    images[flips] = _mirrored(images[flips])
  return {"image": images, "label": labels, "broken": broken}


def _mirrored(images: np.ndarray) -> np.ndarray:
  """uint8 [b, h, w, c] left-right."""
  import cv2  # noqa: PLC0415

  # One image under the other: OpenCV turns that about in a twentieth of the
  # time that NumPy needs for pixels of three bytes.
  b, h, w, c = images.shape
  tall = images.reshape(b * h, w, c)
  return cv2.flip(tall, 1).reshape(images.shape)


class Batches(Iterator[dict[str, np.ndarray]]):
  """An endless iterator; `close()` ends its thread or processes."""

  def __init__(
    self,
    dataset: Dataset,
    stream: Any,
    pool: concurrent.futures.Executor | None = None,
  ):
    """`stream` yields what `_Steps` makes, with the threads of `pool`."""
    self._dataset, self._streams = dataset, [stream]
    # Also at the interpreter's end, where grain's own clean-up comes too late.
    self._close = weakref.finalize(self, _close_and_forget, self._streams, pool)

  def __next__(self) -> dict[str, np.ndarray]:
    """This host's rows of the next step.

    Returns:
      {"image": uint8 [b_local, h, w, c], "label": int32 [b_local]}. Never
      write into them: a device may share their memory.

    Raises:
      UserError: a file is gone, too many are broken, or a worker died.
    """
    if not self._streams:
      raise ValueError("These batches were closed.")
    try:
      batch = next(self._streams[0])
    except RuntimeError as e:
      if "Worker process" not in str(e):
        raise
      raise UserError(
        "A process that decodes images ended: killed for want of memory, or"
        " started from a script without `if __name__ == '__main__':`. Fewer"
        " --config.data.workers (0: none) need less."
      ) from e
    if "error" in batch:
      raise UserError(batch["error"])
    self._dataset.note(batch.pop("broken"))
    # A worker's arrays lie in shared memory, of which a container has little.
    return {k: v if v.flags.owndata else v.copy() for k, v in batch.items()}

  def close(self) -> None:
    """Stops what works in the background; a second call does nothing."""
    self._close()


def _close_and_forget(
  streams: list[Any], pool: concurrent.futures.Executor | None
) -> None:
  streams.pop().close()
  if pool is not None:
    pool.shutdown(wait=False, cancel_futures=True)
  gc.collect()  # grain's iterators refer to each other


def batches(  # noqa: PLR0913
  dataset: Dataset,
  *,
  batch_size: int,
  seed: int,
  start: int = 0,
  train: bool = True,
  flip: bool = False,
  workers: int = 0,
  process_index: int = 0,
  process_count: int = 1,
) -> Batches:
  """This host's rows of the batches of steps start, start + 1, ...

  Args:
    dataset: from `open`.
    batch_size: of the global batch.
    seed: of order and mirroring.
    start: the first step handed out.
    train: shuffled and mirrored; otherwise in order and never mirrored.
    flip: mirror half of the rows left-right.
    workers: processes that decode; 0: threads of this one. None are started
      for a cached data set.
    process_index: this host.
    process_count: hosts; each gets a contiguous share of the rows.

  Raises:
    UserError: the batch does not divide by the hosts.
  """
  rows = local_rows(batch_size, process_index, process_count)
  if batch_size > len(dataset):
    log.warning(
      "A batch of %d from %d images: each comes several times in every batch.",
      *(batch_size, len(dataset)),
    )
  order = IndexSampler(
    len(dataset), batch_size, seed, shuffle=train, flip=train and flip
  )
  import grain  # noqa: PLC0415  (takes 2 s)

  pool = None if workers else _threads(dataset)
  steps = grain.MapDataset.source(_Steps(dataset, order, rows, pool))[start:]
  stream = steps.to_iter_dataset(
    grain.ReadOptions(num_threads=1, prefetch_buffer_size=_PREFETCH)
  )
  if workers and not dataset.in_memory:
    _parse_flags()
    options = grain.MultiprocessingOptions(
      num_workers=workers, per_worker_buffer_size=_PREFETCH
    )
    stream = stream.mp_prefetch(options, worker_init_fn=_start_worker)
  return Batches(dataset, iter(stream), pool)


def _threads(dataset: Dataset) -> concurrent.futures.Executor | None:
  """To decode in; None where nothing is decoded.

  Pillow and OpenCV let go of the interpreter while they work.
  """
  count = min(os.cpu_count() or 1, _MOST_THREADS)
  if dataset.in_memory or count == 1:
    return None
  return concurrent.futures.ThreadPoolExecutor(count, "decode")


def eval_batches(
  dataset: Dataset,
  *,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
  """Every image once, in order, in batches of one size.

  The last batch is filled with its last image; these rows have mask 0.

  Args:
    dataset: from `open`.
    batch_size: of the global batch.
    process_index: this host.
    process_count: hosts; each gets a contiguous share of every batch's rows,
      and all get the same number of batches.

  Yields:
    {"image": uint8 [b_local, h, w, c], "label": int32 [b_local],
    "mask": float32 [b_local]}.

  Raises:
    UserError: the batch does not divide by the hosts, or a file is gone.
  """
  rows = local_rows(batch_size, process_index, process_count)
  with _threads(dataset) or contextlib.nullcontext() as pool:
    for first in range(0, len(dataset), batch_size):
      index = np.arange(first, first + batch_size)[rows]
      batch = gather(dataset, index.clip(max=len(dataset) - 1), None, pool)
      dataset.note(batch.pop("broken"))
      yield batch | {"mask": (index < len(dataset)).astype(np.float32)}


def _parse_flags() -> None:
  """Grain hands flags to its workers, so they must count as parsed."""
  from absl import flags  # noqa: PLC0415

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


def _start_worker(index: int, count: int) -> None:
  """Runs first in a worker process: one thread, and an end with its parent.

  A parent that is killed cannot stop its workers, so each asks who its
  parent is. (Linux could send a signal instead, but at the end of the thread
  that started the worker, not of the process.)
  """
  del index, count
  import cv2  # noqa: PLC0415

  cv2.setNumThreads(1)
  parent = multiprocessing.parent_process().pid

  def watch() -> None:
    while os.getppid() == parent:
      time.sleep(0.5)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()

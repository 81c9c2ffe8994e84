"""Batches of the rows that `IndexSampler` chooses, prepared in the background.

Grain moves the work to a thread or to processes. An element of its stream is a
whole batch, a function of (seed, step), so neither the number of workers nor
the first step changes what is in it.
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
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gamix_jax.data.binary import BinaryDataset, binarize
from gamix_jax.data.dataset import Broken, SplitDataset
from gamix_jax.data.index_sampler import IndexSampler, local_rows
from gamix_jax.errors import UserError

log = logging.getLogger(__name__)

_MAX_STEPS = 1 << 40
_MAX_THREADS = 8  # of one process; more would wait for the interpreter
_PREFETCH = 2  # batches ready ahead, and as many for each worker


class _Steps:
  """A sequence whose element t is this host's rows of the batch of step t."""

  def __init__(
    self,
    dataset: SplitDataset,
    sampler: IndexSampler,
    rows: slice,
    pool: concurrent.futures.Executor | None,
    *,
    redraw: bool,
  ):
    """With `redraw`, the images of `dataset` become binary, anew each step."""
    self._dataset, self._sampler, self._rows = dataset, sampler, rows
    self._pool, self._redraw = pool, redraw

  def __len__(self) -> int:
    return _MAX_STEPS

  def __getitem__(self, t: int) -> dict[str, Any]:
    return self._load(t)

  def _load(
    self, t: int, report: Callable[[Broken], None] | None = None
  ) -> dict[str, np.ndarray]:
    index = self._sampler.rows(t)[self._rows]
    flips = self._sampler.flips(t)[self._rows]
    batch = self._dataset.load_batch(index, self._pool, report)
    if self._redraw:
      levels = self._sampler.levels(t, batch["image"].shape[1:])[self._rows]
      batch["image"] = binarize(batch["image"], levels)
    if flips.any():
      batch["image"][flips] = flip_horizontally(batch["image"][flips])
    return batch


class _WorkerSteps(_Steps):
  """The same in a worker process.

  Errors and broken files are elements of the batch: an exception would arrive
  wrapped in the worker's traceback, and the worker's data set is a copy.
  """

  def __getitem__(self, t: int) -> dict[str, Any]:
    broken: dict[str, str] = {}
    try:
      batch = self._load(t, broken.update)
    except UserError as e:
      return {"error": str(e)}
    return batch | {"broken": list(broken.items())}


def flip_horizontally(images: np.ndarray) -> np.ndarray:
  """uint8 [b, h, w, c], each mirrored left-right."""
  import cv2  # noqa: PLC0415

  # As one tall image, which OpenCV flips in a twentieth of the time that NumPy
  # needs for pixels of three bytes.
  b, h, w, c = images.shape
  tall = images.reshape(b * h, w, c)
  return cv2.flip(tall, 1).reshape(images.shape)


class Batches(Iterator[dict[str, np.ndarray]]):
  """An endless iterator; `close()` ends its thread or processes."""

  def __init__(
    self,
    dataset: SplitDataset,
    stream: Any,
    pool: concurrent.futures.Executor | None = None,
  ):
    """`stream` yields batches of `_Steps`, which uses the threads of `pool`."""
    self._dataset, self._streams = dataset, [stream]
    # Also at interpreter exit, where grain's own clean-up comes too late.
    self._close = weakref.finalize(self, _close_and_forget, self._streams, pool)

  def __next__(self) -> dict[str, np.ndarray]:
    """This host's rows of the next step.

    Returns:
      {"image": uint8 [b_local, h, w, c], "label": int32 [b_local]}, or the
      modalities, "mask" and "label" of a `MultimodalDataset`. Do not write to
      the arrays: a device may share their memory.

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
        "A process that decodes images ended: it ran out of memory, or was"
        " started from a script without `if __name__ == '__main__':`. Fewer"
        " --config.data.workers (0: none) need less memory."
      ) from e
    if "error" in batch:  # of `_WorkerSteps`
      raise UserError(batch["error"])
    self._dataset.report_broken(dict(batch.pop("broken", ())))
    # A worker's arrays are in shared memory, of which a container has little.
    return {k: v if v.flags.owndata else v.copy() for k, v in batch.items()}

  def close(self) -> None:
    """Ends the thread or processes; a second call does nothing."""
    self._close()


def _close_and_forget(
  streams: list[Any], pool: concurrent.futures.Executor | None
) -> None:
  streams.pop().close()
  if pool is not None:
    pool.shutdown(wait=False, cancel_futures=True)
  gc.collect()  # grain's iterators refer to each other


def batches(  # noqa: PLR0913
  dataset: SplitDataset,
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
    dataset: from `open_dataset`.
    batch_size: of the global batch.
    seed: of the order, of mirroring and of binary pixels.
    start: the first step.
    train: whether to shuffle; otherwise images are in order, not mirrored, and
      binary ones the fixed draws.
    flip: whether to mirror half of the rows left-right; of images only.
    workers: processes that decode; 0: threads of this one. A cached data set
      needs none, and none are started.
    process_index: index of this host.
    process_count: number of hosts; each gets a contiguous share of the rows.

  Raises:
    UserError: the batch does not divide by the hosts.
  """
  rows = local_rows(batch_size, process_index, process_count)
  redraw = train and isinstance(dataset, BinaryDataset) and dataset.dynamic
  if redraw:
    dataset = dataset.grey
  if batch_size > len(dataset):
    log.warning(
      "A batch of %d from %d images: each comes several times in every batch.",
      *(batch_size, len(dataset)),
    )
  sampler = IndexSampler(
    len(dataset), batch_size, seed, shuffle=train, flip=train and flip
  )
  import grain  # noqa: PLC0415  (takes 2 s)

  pool = None if workers else _threads(dataset)
  in_workers = workers > 0 and not dataset.in_memory
  steps = _WorkerSteps if in_workers else _Steps
  steps = steps(dataset, sampler, rows, pool, redraw=redraw)
  stream = grain.MapDataset.source(steps)[start:]
  stream = stream.to_iter_dataset(
    grain.ReadOptions(num_threads=1, prefetch_buffer_size=_PREFETCH)
  )
  if in_workers:
    _parse_flags()
    options = grain.MultiprocessingOptions(
      num_workers=workers, per_worker_buffer_size=_PREFETCH
    )
    stream = stream.mp_prefetch(options, worker_init_fn=_start_worker)
  return Batches(dataset, iter(stream), pool)


def _threads(dataset: SplitDataset) -> concurrent.futures.Executor | None:
  """To decode in; None where nothing is decoded or there is one core.

  Pillow and OpenCV release the interpreter's lock while they work.
  """
  count = min(os.cpu_count() or 1, _MAX_THREADS)
  if dataset.in_memory or count == 1:
    return None
  return concurrent.futures.ThreadPoolExecutor(count, "decode")


def eval_batches(
  dataset: SplitDataset,
  *,
  batch_size: int,
  at_most: int | None = None,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
  """Every image once, in order, in batches of one size.

  The last batch is padded with the last image; `valid` is 0 in these rows.

  Args:
    dataset: from `open_dataset`.
    batch_size: of the global batch.
    at_most: number of images, see `spread_rows`; None: all of them.
    process_index: index of this host.
    process_count: number of hosts; each gets a contiguous share of the rows of
      every batch, and all get the same number of batches.

  Yields:
    {"image": uint8 [b_local, h, w, c], "label": int32 [b_local],
    "valid": float32 [b_local]}; of a `MultimodalDataset`, the modalities and
    "mask" instead of the image.

  Raises:
    UserError: the batch does not divide by the hosts, or a file is gone.
  """
  rows = local_rows(batch_size, process_index, process_count)
  chosen = spread_rows(len(dataset), at_most)
  n = len(chosen)
  with _threads(dataset) or contextlib.nullcontext() as pool:
    for first in range(0, n, batch_size):
      index = np.arange(first, first + batch_size)[rows]
      batch = dataset.load_batch(chosen[index.clip(max=n - 1)], pool)
      yield batch | {"valid": (index < n).astype(np.float32)}


def spread_rows(n: int, at_most: int | None = None) -> np.ndarray:
  """Indices at even distances among n, `at_most` of them.

  Not the first ones: folders are sorted by class.
  """
  return np.linspace(0, n - 1, min(at_most or n, n)).astype(int)


def _parse_flags() -> None:
  """Grain hands flags to its workers, so they must count as parsed."""
  from absl import flags  # noqa: PLC0415

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


def _start_worker(index: int, count: int) -> None:
  """Runs first in a worker process: uses one thread, and ends with the parent.

  A parent that is killed cannot stop its workers, so each checks whether it
  still has the same parent. (Linux can send a signal instead, but does so when
  the thread that started the worker ends, not the process.)
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

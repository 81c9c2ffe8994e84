"""Decode once: prepared images kept in memory or in a memory-mapped file.

A cached data set holds just what `fetch` of the uncached one returns, so
batches are the same with and without. In a folder each cache is a folder of
its own, named by a hash of all that its pixels depend on: the source's
identity (names, sizes and times of its files) and the settings. It is written
under another name and renamed when complete, so a half-written one is never
read, and a lock lets one process a host write while the others wait.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tqdm

from gamix_jax.data.dataset import Broken, Dataset
from gamix_jax.data.notes import shown
from gamix_jax.errors import UserError
from gamix_jax.paths import resolve

log = logging.getLogger(__name__)

_VERSION = 2  # of the pixels: raise it when `decode` changes what it returns
_CHUNK = 256  # images decoded at a time


class CachedDataset(Dataset):
  """A data set whose images are looked up."""

  in_memory = True

  def __init__(self, dataset: Dataset, images: np.ndarray, labels: np.ndarray):
    """`images` uint8 [n, h, w, c] and `labels` int32 [n] of `dataset`."""
    self._source, self._prepare = dataset._source, dataset._prepare
    self.settings, self.split = dataset.settings, dataset.split
    self.label_names = dataset.label_names
    self._broken = dataset._broken
    # A memmap's own indexing returns views of what it has copied.
    self._images, self._labels = np.asarray(images), labels

  def fetch(self, i: int) -> tuple[np.ndarray, int, Broken]:
    """Image i, its label, and no broken files: they were counted before."""
    return self._images[i], int(self._labels[i]), []

  def take(
    self,
    index: np.ndarray,
    pool: concurrent.futures.Executor | None = None,
  ) -> tuple[np.ndarray, np.ndarray, Broken]:
    """All in one copy: looking up needs no threads."""
    del pool
    return self._images[index], self._labels[index], []


def cached(dataset: Dataset) -> CachedDataset:
  """The same data set, held as its settings say; decodes it where needed.

  Raises:
    UserError: no room, a folder that cannot be written, too many broken
      files.
  """
  if dataset.settings.cache == "memory":
    return _in_memory(dataset)
  return _in_folder(dataset, resolve(dataset.settings.cache))


def _in_memory(dataset: Dataset) -> CachedDataset:
  n, size = len(dataset), int(np.prod(dataset.shape))
  if n * size > _physical_memory():
    raise UserError(
      f"data.cache=memory needs {n * size / 2**30:.1f} GiB for {n} images,"
      " more than this machine has. Give a folder: --config.data.cache=<path>"
    )
  images = np.empty((n, *dataset.shape), np.uint8)
  labels = np.empty(n, np.int32)
  for first, part, part_labels in _decoded(dataset):
    images[first : first + len(part)] = part
    labels[first : first + len(part)] = part_labels
  return CachedDataset(dataset, images, labels)


def _in_folder(dataset: Dataset, folder: Path) -> CachedDataset:
  final = folder / f"{dataset.split}-{_key(dataset)}"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / f".{final.name}.lock"):
      found = _opened(final, dataset)
      if found is None:
        for stale in folder.glob(f".{final.name}.tmp-*"):
          shutil.rmtree(stale)  # of a process that was killed: we hold the lock
        _write(dataset, folder, final)
        found = _opened(final, dataset)
  except OSError as e:
    raise UserError(
      f"data.cache: cannot use the folder {shown(folder)}: {e.strerror or e}."
      " Make room, or give another: --config.data.cache=<path>"
    ) from e
  if found is None:
    raise UserError(
      f"data.cache: {shown(final)} was written and cannot be read. Give another"
      " folder: --config.data.cache=<path>"
    )
  images, labels, broken = found
  dataset.note(broken)
  return CachedDataset(dataset, images, labels)


def _key(dataset: Dataset) -> str:
  s = dataset.settings
  parts = [_VERSION, dataset._source.identity(), s.shape, s.crop, s.resize]
  parts.append(s.max_pixels)
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


def _opened(
  final: Path, dataset: Dataset
) -> tuple[np.ndarray, np.ndarray, Broken] | None:
  """Images, labels and broken files of a cache that is there and whole.

  One that is not is deleted.
  """
  if not final.is_dir():
    return None
  try:
    images = np.load(final / "images.npy", mmap_mode="r")
    labels = np.load(final / "labels.npy")
    meta = json.loads((final / "meta.json").read_text())
    broken = [(name, why) for name, why in meta["broken"]]
    shape = (len(dataset), *dataset.shape)
    if images.shape == shape and labels.shape == shape[:1]:
      return images, labels, broken
    fault = "its shape"
  # NumPy meets garbage with whatever comes first, tokenize.TokenError say.
  except Exception as e:
    fault = str(e)
  log.warning("%s is damaged (%s); making it again.", shown(final), fault)
  shutil.rmtree(final)
  return None


def _write(dataset: Dataset, folder: Path, final: Path) -> None:
  temp = folder / f".{final.name}.tmp-{uuid.uuid4().hex}"
  temp.mkdir()
  try:
    before = set(dataset.skipped)
    labels = np.empty(len(dataset), np.int32)
    # Written in order, not through a map: on a full disk that would be a
    # SIGBUS, and this is an OSError.
    with (temp / "images.npy").open("wb") as f:
      shape = (len(dataset), *dataset.shape)
      header = {"descr": "|u1", "fortran_order": False, "shape": shape}
      np.lib.format.write_array_header_1_0(f, header)
      for first, part, part_labels in _decoded(dataset):
        part.tofile(f)
        labels[first : first + len(part)] = part_labels
      f.flush()
      os.fsync(f.fileno())
    np.save(temp / "labels.npy", labels)
    meta = {
      "broken": [b for b in dataset._broken.items() if b[0] not in before],
      "source": dataset.settings.source,
    }
    (temp / "meta.json").write_text(json.dumps(meta))
    temp.rename(final)
  except BaseException:
    shutil.rmtree(temp, ignore_errors=True)
    raise


def _decoded(
  dataset: Dataset,
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
  """Chunks (first index, images, labels) in order, decoded by threads."""
  n = len(dataset)
  threads = os.cpu_count() or 1
  bar = tqdm.tqdm(
    total=n, desc=f"decoding {dataset.split}", unit="image", disable=None
  )
  with concurrent.futures.ThreadPoolExecutor(threads) as pool, bar:
    for first in range(0, n, _CHUNK):
      found = pool.map(dataset.fetch, range(first, min(first + _CHUNK, n)))
      images, labels, broken = zip(*found, strict=True)
      dataset.note([file for files in broken for file in files])
      yield first, np.stack(images), np.array(labels, np.int32)
      bar.update(len(images))


def _physical_memory() -> float:
  try:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  except (AttributeError, ValueError, OSError):  # not every system tells
    return float("inf")


@contextlib.contextmanager
def exclusive(lock: Path) -> Iterator[None]:
  """Holds a lock file; other processes of this host wait for it.

  The system frees it when its holder dies. Where there is no `fcntl`
  (Windows) nothing is locked, and two writers merely do the work twice.
  """
  try:
    import fcntl  # noqa: PLC0415
  except ImportError:
    yield
    return
  with lock.open("w") as f:
    fcntl.flock(f, fcntl.LOCK_EX)
    yield

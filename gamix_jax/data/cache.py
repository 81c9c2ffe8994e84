"""Decode once: prepared images kept in memory or in a memory-mapped file.

A cached data set holds what `load` of the uncached one returns, so batches are
the same with and without. Each cache in a folder is a folder of its own, named
by a hash of all that its pixels depend on: the source's cache key (names, sizes
and times of its files, for example) and the settings. It is renamed when it is
complete, so a partial one is never read. A lock lets one process of a host
write while the others wait.
"""

import concurrent.futures
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tqdm

from gamix_jax import files
from gamix_jax.data.dataset import Broken, Dataset, SplitDataset
from gamix_jax.data.formatting import printable
from gamix_jax.data.multimodal_dataset import (
  CachedMultimodal,
  MultimodalDataset,
)
from gamix_jax.errors import UserError
from gamix_jax.paths import resolve

log = logging.getLogger(__name__)

_VERSION = 2  # of the pixels: raise it when `decode` changes what it returns
_BATCH = 256  # images decoded at a time


class CachedDataset(Dataset):
  """A data set whose images are looked up."""

  in_memory = True

  def __init__(self, dataset: Dataset, images: np.ndarray, labels: np.ndarray):
    """`images` uint8 [n, h, w, c] and `labels` int32 [n] of `dataset`."""
    self._take_over(dataset)
    # A memmap's own indexing returns views of what it has copied.
    self._images, self._labels = np.asarray(images), labels

  def load(self, i: int) -> dict[str, Any]:
    """As `Dataset.load`; the image is a view."""
    return {"image": self._images[i], "label": int(self._labels[i])}

  def load_batch(
    self,
    rows: np.ndarray,
    pool: concurrent.futures.Executor | None = None,
    report: Callable[[Broken], None] | None = None,
  ) -> dict[str, np.ndarray]:
    """As `Dataset.load_batch`, in one copy and without threads.

    Broken files were reported when the cache was made or opened.
    """
    del pool, report
    return {"image": self._images[rows], "label": self._labels[rows]}


def cached(
  dataset: Dataset | MultimodalDataset,
) -> CachedDataset | MultimodalDataset:
  """The same data set, held as its settings say; decodes it where needed.

  Raises:
    UserError: no room, a folder that cannot be written, too many broken
      files.
  """
  if isinstance(dataset, MultimodalDataset):
    return dataset if dataset.in_memory else _multimodal_in_memory(dataset)
  if dataset.settings.cache == "memory":
    return _in_memory(dataset)
  return _in_folder(dataset, resolve(dataset.settings.cache))


def _multimodal_in_memory(dataset: MultimodalDataset) -> CachedMultimodal:
  n = len(dataset)
  size = sum(
    spec.size * (1 if spec.is_image else 4) for spec in dataset.modalities
  )
  _check_memory(n, size, "Keep none: --config.data.cache=none")
  whole: dict[str, np.ndarray] = {}
  for rows, batch in _decode_all(dataset):
    for key, value in batch.items():
      if key not in whole:
        whole[key] = np.empty((n, *value.shape[1:]), value.dtype)
      whole[key][rows] = value
  return CachedMultimodal(dataset, whole)


def _in_memory(dataset: Dataset) -> CachedDataset:
  n, size = len(dataset), int(np.prod(dataset.shape))
  _check_memory(n, size, "Give a folder: --config.data.cache=<path>")
  images = np.empty((n, *dataset.shape), np.uint8)
  labels = np.empty(n, np.int32)
  for rows, batch in _decode_all(dataset):
    images[rows], labels[rows] = batch["image"], batch["label"]
  return CachedDataset(dataset, images, labels)


def _check_memory(n: int, size: int, action: str) -> None:
  """Raises UserError if n items of `size` bytes each do not fit."""
  if n * size > _physical_memory():
    raise UserError(
      f"data.cache=memory needs {n * size / 2**30:.1f} GiB for {n} images,"
      f" more than this machine has. {action}"
    )


def _in_folder(dataset: Dataset, folder: Path) -> CachedDataset:
  final = folder / f"{dataset.split}-{_key(dataset)}"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with files.exclusive(folder / f".{final.name}.lock"):
      found = _read(final, dataset)
      if found is None:
        # Left by a killed process: nobody writes it while we hold the lock.
        for stale in folder.glob(f"{files.PART}*-{final.name}"):
          shutil.rmtree(stale)
        with files.atomic(final) as temporary:
          _write(dataset, temporary)
        found = _read(final, dataset)
  except OSError as e:
    raise UserError(
      f"data.cache: cannot use the folder {printable(folder)}:"
      f" {e.strerror or e}. Make room, or give another:"
      " --config.data.cache=<path>"
    ) from e
  if found is None:
    raise UserError(
      f"data.cache: {printable(final)} was written and cannot be read. Give"
      " another folder: --config.data.cache=<path>"
    )
  images, labels, broken = found
  dataset.report_broken(broken)
  return CachedDataset(dataset, images, labels)


def _key(dataset: Dataset) -> str:
  s = dataset.settings
  parts = [_VERSION, dataset.source.cache_key(), s.shape, s.crop, s.resize]
  parts.append(s.max_pixels)
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


def _read(
  folder: Path, dataset: Dataset
) -> tuple[np.ndarray, np.ndarray, Broken] | None:
  """Images, labels and broken files of a cache; None if there is none.

  A damaged cache is deleted.
  """
  if not folder.is_dir():
    return None
  try:
    images = np.load(folder / "images.npy", mmap_mode="r")
    labels = np.load(folder / "labels.npy")
    meta = json.loads((folder / "meta.json").read_text())
    broken = dict(meta["broken"])
    shape = (len(dataset), *dataset.shape)
    if images.shape == shape and labels.shape == shape[:1]:
      return images, labels, broken
    fault = "its shape"
  # NumPy raises whatever comes first on damaged files, even
  # tokenize.TokenError.
  except Exception as e:
    fault = str(e)
  log.warning(
    "%s is damaged (%s) and will be made again.", printable(folder), fault
  )
  shutil.rmtree(folder)
  return None


def _write(dataset: Dataset, folder: Path) -> None:
  folder.mkdir()
  before = set(dataset.broken)
  labels = np.empty(len(dataset), np.int32)
  # Written in order and not through a memory map, where a full disk would be a
  # SIGBUS instead of an OSError.
  with (folder / "images.npy").open("wb") as f:
    shape = (len(dataset), *dataset.shape)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(f, header)
    for rows, batch in _decode_all(dataset):
      batch["image"].tofile(f)
      labels[rows] = batch["label"]
    f.flush()
    os.fsync(f.fileno())
  np.save(folder / "labels.npy", labels)
  meta = {
    "broken": [b for b in dataset.broken.items() if b[0] not in before],
    "source": dataset.settings.source,
  }
  (folder / "meta.json").write_text(json.dumps(meta))


def _decode_all(
  dataset: SplitDataset,
) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
  """All images in order, in batches with their rows, decoded by threads."""
  n = len(dataset)
  threads = os.cpu_count() or 1
  bar = tqdm.tqdm(
    total=n, desc=f"decoding {dataset.split}", unit="image", disable=None
  )
  with concurrent.futures.ThreadPoolExecutor(threads) as pool, bar:
    for first in range(0, n, _BATCH):
      rows = slice(first, min(first + _BATCH, n))
      batch = dataset.load_batch(np.arange(rows.start, rows.stop), pool)
      yield rows, batch
      bar.update(len(batch["label"]))


def _physical_memory() -> float:
  try:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  except (AttributeError, ValueError, OSError):  # not every system has them
    return float("inf")

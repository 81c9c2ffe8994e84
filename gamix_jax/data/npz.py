"""`npz:<path>`: images in a numpy archive (or a single `.npy`).

Entries, the first name that is there:

  images   x_train, train_images, images, x, data: [n, h, w] or [n, h, w, c],
           c 1 or 3
  labels   y_train, train_labels, labels, y: integers [n] or [n, 1]; optional
  test     x_test, test_images; y_test, test_labels. Without them a fixed
           share of the images is held out by a hash of their index.
  range    two numbers, optional: the values that mean black and white

Without `range`, integers and booleans must be 0..255 and 0..1, and floats
must lie in [0, 1] or [-1, 1]; which of the two is judged by all images
together and logged.
"""

import logging
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gamix_jax.data.sources import Arrays, held_out
from gamix_jax.errors import UserError

log = logging.getLogger(__name__)

IMAGES = ("x_train", "train_images", "images", "x", "data")
LABELS = ("y_train", "train_labels", "labels", "y")
TEST_IMAGES = ("x_test", "test_images")
TEST_LABELS = ("y_test", "test_labels")


def open_npz(path: str, test_share: float, split: str) -> Arrays:
  """Reads the archive and takes one split.

  Raises:
    UserError: it is missing or no archive, or the arrays are not images.
  """
  file = Path(path).expanduser().absolute()
  entries = _load(file)
  key = _first(entries, IMAGES)
  if key is None:
    raise UserError(
      f"{file} has no images: it holds {', '.join(entries) or 'nothing'}, and"
      f" none of {', '.join(IMAGES)}."
    )
  train = _check(entries[key], file, key)
  labels = _labels(entries, LABELS, train, file)
  test_key = _first(entries, TEST_IMAGES)
  if test_key is None:
    low, high = _range([train], entries, file)
    what = f"{file.name}/{key}"
    test = held_out(str(file), [str(i) for i in range(len(train))], test_share)
    keep = test if split == "test" else ~test
    return Arrays(
      _eight_bit(train[keep], low, high), labels[keep], what, len(train)
    )
  test_images = _check(entries[test_key], file, test_key)
  low, high = _range([train, test_images], entries, file)
  total = len(train) + len(test_images)
  if split == "test":
    labels = _labels(entries, TEST_LABELS, test_images, file)
    key, train = test_key, test_images
  return Arrays(
    _eight_bit(train, low, high), labels, f"{file.name}/{key}", total
  )


def _load(file: Path) -> Mapping[str, np.ndarray]:
  try:
    loaded = np.load(file, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
      return {"images": loaded}
    with loaded:
      wanted = (*IMAGES, *LABELS, *TEST_IMAGES, *TEST_LABELS, "range")
      known = [k for k in loaded.files if k in wanted]
      return {k: loaded[k] for k in known or loaded.files}
  except FileNotFoundError as e:
    raise UserError(
      f"The file {file} does not exist."
      " Give one with --config.data.source=npz:/path/to/images.npz"
    ) from e
  except MemoryError as e:
    raise UserError(
      f"{file} does not fit into memory. Unpack it to image files and use"
      " --config.data.source=folder:<path>"
    ) from e
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
    raise UserError(
      f"{file} cannot be read as a numpy archive: {e}."
      " Write it with numpy.savez(path, images=..., labels=...)."
    ) from e


def _first(entries: Mapping[str, np.ndarray], keys: Sequence[str]):
  return next((k for k in keys if k in entries), None)


def _check(images: np.ndarray, file: Path, key: str) -> np.ndarray:
  """Raises UserError unless these are images."""
  shape = images.shape
  where = f"{file}: {key} is {images.dtype} {list(shape)}"
  wanted = "images are [n, h, w] or [n, h, w, 1 or 3]"
  grey, colour = 3, 4
  if images.ndim == colour and shape[1] in (1, 3) and shape[3] not in (1, 3):
    raise UserError(
      f"{where}, but {wanted}. Channels come last:"
      f" numpy.moveaxis({key}, 1, -1)."
    )
  if images.ndim not in (grey, colour) or (
    images.ndim == colour and shape[3] not in (1, 3)
  ):
    raise UserError(f"{where}, but {wanted}. Reshape it and save it again.")
  if 0 in shape:
    raise UserError(f"{where}: there is nothing in it.")
  if images.dtype.kind not in "buif":
    raise UserError(f"{where}, but pixels are uint8 or float numbers.")
  return images


def _labels(
  entries: Mapping[str, np.ndarray],
  keys: Sequence[str],
  images: np.ndarray,
  file: Path,
) -> np.ndarray:
  key = _first(entries, keys)
  n = len(images)
  if key is None:
    return np.full(n, -1, np.int32)
  labels = entries[key]
  if labels.shape not in ((n,), (n, 1)) or labels.dtype.kind not in "bui":
    raise UserError(
      f"{file}: {key} is {labels.dtype} {list(labels.shape)}, but labels are"
      f" integers [{n}], one for each image. Mend it or leave it out."
    )
  return labels.reshape(n).astype(np.int32)


def _range(
  arrays: Sequence[np.ndarray], entries: Mapping[str, np.ndarray], file: Path
) -> tuple[float, float]:
  """The values that mean black and white."""
  low = float(min(a.min() for a in arrays))
  high = float(max(a.max() for a in arrays))
  dtype = arrays[0].dtype
  if not (np.isfinite(low) and np.isfinite(high)):
    raise UserError(f"{file}: the images hold values that are not finite.")
  if "range" in entries:
    stated = np.asarray(entries["range"], np.float64).ravel()
    if stated.shape != (2,) or not stated[0] < stated[1]:
      raise UserError(f"{file}: range must be two numbers, black then white.")
    found = float(stated[0]), float(stated[1])
  elif dtype.kind == "b":
    found = 0.0, 1.0
  elif dtype.kind in "ui":
    found = 0.0, 255.0
  else:
    found = (-1.0, 1.0) if low < 0 else (0.0, 1.0)
    log.info("%s: floats taken to lie in [%g, %g]", file, *found)
  if low < found[0] or high > found[1]:
    raise UserError(
      f"{file}: {dtype} images from {low:g} to {high:g} do not lie in"
      f" [{found[0]:g}, {found[1]:g}]. State their range: numpy.savez(path,"
      " images=..., range=[black, white])."
    )
  return found


def _eight_bit(images: np.ndarray, low: float, high: float) -> np.ndarray:
  """uint8, `low` to 0 and `high` to 255; a slice at a time to save memory."""
  if images.dtype == np.uint8 and (low, high) == (0, 255):
    return images
  out = np.empty(images.shape, np.uint8)
  for i in range(0, len(images), 1024):
    part = images[i : i + 1024].astype(np.float32)
    out[i : i + 1024] = np.round((part - low) * (255 / (high - low)))
  return out

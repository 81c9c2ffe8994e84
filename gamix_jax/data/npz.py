"""`npz:<path>`: images in a NumPy archive (or a single `.npy`).

Entries; of several names, the first one that is there:

  images   x_train, train_images, images, x, data, arr_0 (NumPy's name for an
           array saved without one): [n, h, w] or [n, h, w, c], c 1 or 3
  labels   y_train, train_labels, labels, y: numbers, strings or one-hot, see
           `labels`; optional
  test     x_test, test_images; y_test, test_labels. Without them a fixed
           share of the images is held out by a hash of their index.
  range    two numbers, optional: the values that mean black and white

`data.range` takes precedence over the entry `range`. Without both, the range is
judged by the numbers of all images, or the archive is refused; see `levels`.
The log says which numbers were found and which range was chosen.
"""

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from gamix_jax.data import archive, levels
from gamix_jax.data import labels as labels_lib
from gamix_jax.data.find_file import find_file
from gamix_jax.data.formatting import listed, printable
from gamix_jax.data.settings import Settings, is_range
from gamix_jax.data.source import ArraySource, hash_split
from gamix_jax.errors import UserError

log = logging.getLogger(__name__)

IMAGES = ("x_train", "train_images", "images", "x", "data", "arr_0")
LABELS = ("y_train", "train_labels", "labels", "y")
TEST_IMAGES = ("x_test", "test_images")
TEST_LABELS = ("y_test", "test_labels")
_WANTED = {*IMAGES, *LABELS, *TEST_IMAGES, *TEST_LABELS, "range"}


class Npz(ArraySource):
  """One split of an archive, read into memory."""

  takes_path = True
  takes_range = True

  def __init__(self, path: str, split: str, settings: Settings, seed: int):
    """Reads the archive and takes one split.

    Raises:
      UserError: it is missing or no archive, or the arrays are not images.
    """
    del seed
    file = find_file(path, "npz", archive.EXAMPLE)
    where = printable(file)
    entries = archive.read_archive(
      file, _WANTED, single="images", usage=archive.IMAGES_HELP
    )
    key = first(entries, IMAGES)
    if key is None:
      raise UserError(
        f"{where} has no images: it holds {listed(entries) or 'nothing'}, and"
        f" none of {', '.join(IMAGES)}. If these are modalities, name them with"
        " data.modalities."
      )
    test_key = first(entries, TEST_IMAGES)
    keys = {"train": key} | ({"test": test_key} if test_key else {})
    images = {k: check_images(entries[v], where, v) for k, v in keys.items()}
    labels, names = read_labels(entries, images, where)
    stated = settings.stated_range or stated_range(entries, where)
    ends = levels.find_range(list(images.values()), stated, where)
    total = sum(map(len, images.values()))
    chosen = split if test_key else "train"
    x, y = images[chosen], labels[chosen]
    if test_key is None:
      log.info(
        "%s: no test images in it, so %g %% are held out, by a hash of their"
        " index",
        *(where, 100 * settings.test_fraction),
      )
      indices = [str(i) for i in range(total)]
      keep = hash_split(where, indices, settings.test_fraction, split)
      x, y = x[keep], y[keep]
    super().__init__(
      levels.to_uint8(x, *ends),
      y,
      title=f"{printable(file.name)}/{keys[chosen]}",
      total=total,
      label_names=names,
    )


# ------------------------------------------------------------------ the arrays


def first(entries: Mapping[str, np.ndarray], keys: Sequence[str]) -> str | None:
  """The first of `keys` that is an entry; None if none is."""
  return next((k for k in keys if k in entries), None)


def check_images(images: np.ndarray, where: str, key: str) -> np.ndarray:
  """Raises UserError unless these are images."""
  shape = images.shape
  where = f"{where}: {key} is {images.dtype} {list(shape)}"
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


def read_labels(
  entries: Mapping[str, np.ndarray],
  images: Mapping[str, np.ndarray],
  where: str,
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
  """int32 labels of each split, all -1 without, and the names of classes.

  Raises:
    UserError: there is not one label for each image, or they are not labels.
  """
  keys = {"train": LABELS, "test": TEST_LABELS}
  found = {k: first(entries, keys[k]) for k in images}
  there = {k: key for k, key in found.items() if key is not None}
  for split, key in there.items():
    n = len(images[split])
    if entries[key].shape[:1] != (n,):
      raise UserError(
        f"{where}: {key} is {entries[key].dtype} {list(entries[key].shape)},"
        f" but labels are one for each of the {n} images, [{n}]. Fix it or"
        " leave it out."
      )
  made, names = labels_lib.encode(
    [entries[key] for key in there.values()],
    f"{where}: {' and '.join(there.values())}",
  )
  none = {k: np.full(len(x), -1, np.int32) for k, x in images.items()}
  return none | dict(zip(there, made, strict=True)), names


def stated_range(
  entries: Mapping[str, np.ndarray], where: str
) -> tuple[float, float] | None:
  """The archive's own range; None if it has none.

  Raises:
    UserError: it is not a range.
  """
  if "range" not in entries:
    return None
  stated = entries["range"].ravel()
  ends = stated.tolist() if stated.dtype.kind in "buif" else []
  if len(ends) != 2 or not is_range(*ends):
    raise UserError(
      f"{where}: range must be two numbers, black then white, not"
      f" {ends or stated.dtype}."
    )
  return ends[0], ends[1]

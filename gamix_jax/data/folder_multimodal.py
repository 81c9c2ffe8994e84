"""`folder:<path>` with `data.modalities`: a folder of files for each modality.

    DIR/train/m0/17.4.png    DIR/test/m0/...      or, without a test split,
    DIR/train/m1/17.4.png    DIR/test/m1/...      DIR/m0/..., DIR/m1/...

Without folders `train` and `test` (or others of these names, see `image_files`)
a share of the observations is held out by a hash of their names. A folder that
contains nothing but one other folder stands for that one.

Observations. Files of one name, without its last suffix, are one observation;
their order is that of the names. Where one folder lacks the file, that modality
is missing. So it is where the file is broken, which counts towards
`data.max_corrupt_fraction`. Files in folders further down are found too.

Labels. PolyMNIST's names have them: <index>.<label>.png. The part between the
last two dots is the label if it is a whole number from 0, else there is none.

Images are JPEG, PNG, WebP, BMP and TIFF files, decoded when they are needed.
Other modalities are `.npy` files of one observation each, which are read when
the source is opened; classes are numbers, or probabilities [classes].
"""

import hashlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gamix_jax.data import archive
from gamix_jax.data.folder import gone, inspect_files, is_folder, walk
from gamix_jax.data.formatting import listed, printable
from gamix_jax.data.image_files import TEST_FOLDERS, TRAIN_FOLDERS, is_hidden
from gamix_jax.data.labels import MAX_CLASSES
from gamix_jax.data.modalities import ModalitySpec
from gamix_jax.data.multimodal import MultimodalSource
from gamix_jax.data.settings import Settings
from gamix_jax.data.source import hash_parts, hash_split
from gamix_jax.errors import UserError
from gamix_jax.paths import resolve

log = logging.getLogger(__name__)

_ARRAY = ".npy"
_HELP = (
  "Give a folder with a folder for each of data.modalities, or with train/ and"
  " test/ that have them: --config.data.source=folder:<path>"
)


class MultimodalFolder(MultimodalSource):
  """Files of one split, a folder a modality."""

  takes_path = True

  def __init__(self, path: str, split: str, settings: Settings, seed: int):
    """Lists the folders, checks how each file begins, and takes one split.

    Raises:
      UserError: a folder is missing, unreadable, or holds no files of its
        modality.
    """
    del seed
    specs = settings.modality_specs
    self.names = tuple(spec.name for spec in specs)
    root, folders = _find(path, self.names)
    found = {
      part: [_list(folder, spec) for spec in specs]
      for part, folder in folders.items()
    }
    listings = [one for of in found.values() for one in of]
    self.broken = {k: why for one in listings for k, why in one.broken.items()}
    self.total = sum(len(one.files) + len(one.broken) for one in listings)
    chosen = found[split if len(found) > 1 else "train"]
    keys = sorted({key for one in chosen for key in one.files})
    if len(found) == 1:
      log.info(
        "%s: no folders train and test in it, so %g %% of the observations are"
        " held out, by a hash of their names",
        *(printable(root), 100 * settings.test_fraction),
      )
      keep = hash_split(printable(root), keys, settings.test_fraction, split)
      keys = [key for key, kept in zip(keys, keep, strict=True) if kept]
    self._keys = tuple(keys)
    self._files = {
      name: tuple(one.files.get(key) for key in keys)
      for name, one in zip(self.names, chosen, strict=True)
    }
    self._ends = tuple(
      tuple(one.ends.get(key, b"") for key in keys) for one in chosen
    )
    self.mask = np.array(
      [[file is not None for file in of] for of in self._files.values()]
    ).T.copy()
    self._labels = np.array([_label(key) for key in keys], np.int32)
    self.arrays = {
      spec.name: _stack(spec, keys, one.arrays, printable(root / spec.name))
      for spec, one in zip(specs, chosen, strict=True)
      if not spec.is_image
    }
    lacks = {
      name: int((~seen).sum())
      for name, seen in zip(self.names, self.mask.T, strict=True)
      if not seen.all()
    }
    log.info(
      "%s: %d observations to %s%s",
      *(printable(root), len(keys), "train on" if split == "train" else split),
      "; without " + ", ".join(f"{k}: {n}" for k, n in lacks.items())
      if lacks
      else "",
    )

  def read(self, i: int, name: str) -> bytes | np.ndarray:
    """A whole file of an image, undecoded, or an array.

    Raises:
      UserError: the file was there at opening and cannot be read now.
    """
    if name in self.arrays:
      return self.arrays[name][i]
    path = self._files[name][i]
    try:
      return Path(path).read_bytes()
    except OSError as e:
      raise gone(Path(path), e) from e

  def labels(self) -> np.ndarray:
    """The labels."""
    return self._labels

  def name(self, i: int) -> str:
    """The file name without its suffix, relative to the modality's folder."""
    return printable(self._keys[i])

  def file(self, i: int, name: str) -> str:
    """Path of the file."""
    return printable(self._files[name][i])

  def fingerprint(self) -> str:
    """Of modalities, names, and sizes and both ends of each file."""
    return hash_parts(
      (
        repr(self.names).encode(),
        *map(os.fsencode, self._keys),
        *(end for of in self._ends for end in of),
      )
    )


# ----------------------------------------------------------------- the folders


def _find(path: str, names: Sequence[str]) -> tuple[Path, dict[str, Path]]:
  """The folder, and those with the modalities' folders, by part.

  Raises:
    UserError: there are none.
  """
  if not path:
    raise UserError(f"data.source=folder: names no folder. {_HELP}")
  root = resolve(path)
  while True:
    there = _folders(root)
    if any(name in there for name in names):
      return root, {"train": root}
    train, test = _one_of(there, TRAIN_FOLDERS), _one_of(there, TEST_FOLDERS)
    if train and test:
      return root, {"train": root / train, "test": root / test}
    if len(there) != 1:
      raise UserError(
        f"{printable(root)} has neither a folder {names[0]} nor folders train"
        f" and test; it has {listed(there) or 'no folders'}. {_HELP}"
      )
    root = root / there[0]


def _folders(root: Path) -> list[str]:
  """Names of the folders in a folder, sorted.

  Raises:
    UserError: it cannot be read.
  """
  try:
    with os.scandir(root) as entries:
      return sorted(
        e.name for e in entries if is_folder(e) and not is_hidden(e.name)
      )
  except (OSError, ValueError) as e:  # ValueError: of a NUL in it
    reason = getattr(e, "strerror", None) or e
    raise UserError(
      f"Cannot read the folder {printable(root)}: {reason}. {_HELP}"
    ) from e


def _one_of(there: Sequence[str], words: Sequence[str]) -> str | None:
  found = (name for word in words for name in there if name.lower() == word)
  return next(found, None)


# ------------------------------------------------------------------- the files


class _Listing(NamedTuple):
  """The files of one modality.

  Attributes:
    files: paths, by the names of observations.
    ends: hashes of their sizes and ends.
    arrays: what is in them, of a modality that is not an image.
    broken: {path: reason}.
  """

  files: dict[str, str]
  ends: dict[str, bytes]
  arrays: dict[str, np.ndarray]
  broken: dict[str, str]


def _list(folder: Path, spec: ModalitySpec) -> _Listing:
  """The files of a modality.

  Raises:
    UserError: there are none, or two of one name.
  """
  there = _folders(folder)
  if spec.name not in there:
    raise UserError(
      f"data.modalities names {spec.name!r}, but {printable(folder)} has no"
      f" folder of that name; it has {listed(there, 20) or 'none'}."
    )
  root = folder / spec.name
  images, foreign, ours = walk(root)
  out = _Listing({}, {}, {}, {})
  if spec.is_image:
    _list_images(root, images, foreign, ours, out)
  else:
    _list_arrays(root, foreign, out)
  if not out.files:
    kind = "images" if spec.is_image else f"{_ARRAY} files"
    first = next(iter(out.broken.items()), None)
    raise UserError(
      f"The modality {spec.name} has no {kind} in {printable(root)}"
      + (f" that can be read ({first[0]}: {first[1]})" if first else "")
      + ". Add them, or take it out of data.modalities."
    )
  return out


def _list_images(
  root: Path,
  images: Sequence[str],
  foreign: Sequence[str],
  ours: Sequence[str],
  out: _Listing,
) -> None:
  if not images:
    return
  for file, head in inspect_files(root, images, foreign, ours).items():
    if head.fault:
      out.broken[printable(f"{root}/{file}")] = head.fault
    else:
      _add(out.files, root, file)
      out.ends[_key(file)] = head.ends


def _list_arrays(root: Path, names: Sequence[str], out: _Listing) -> None:
  for file in names:
    if not file.lower().endswith(_ARRAY) or is_hidden(Path(file).name):
      continue
    try:
      array = archive.read_array(root / file)
    except UserError as e:
      out.broken[printable(f"{root}/{file}")] = str(e)
      continue
    _add(out.files, root, file)
    key = _key(file)
    out.arrays[key] = array
    head = repr((array.shape, array.dtype.str)).encode()
    content = np.ascontiguousarray(array).tobytes()
    out.ends[key] = hashlib.blake2b(head + content, digest_size=8).digest()


def _add(files: dict[str, str], root: Path, file: str) -> None:
  """Raises UserError if there is one of that name."""
  key = _key(file)
  if key in files:
    raise UserError(
      f"{printable(files[key])} and {printable(Path(file).name)} have the same"
      " name but for the suffix, so they would be one observation. Rename one."
    )
  files[key] = f"{root}/{file}"


def _key(file: str) -> str:
  """The name of an observation: a path without its last suffix."""
  return file.rpartition(".")[0]


def _label(key: str) -> int:
  """The label in the name of an observation; -1 if there is none."""
  name = key.rpartition("/")[2]
  match = re.search(r"\.([0-9]{1,9})$", name)
  label = int(match[1]) if match else -1
  return label if label < MAX_CLASSES else -1


def _stack(
  spec: ModalitySpec,
  keys: Sequence[str],
  arrays: Mapping[str, np.ndarray],
  where: str,
) -> np.ndarray:
  """[n, ...], zeros where there is no file.

  Raises:
    UserError: the files have different shapes, or hold NaN.
  """
  there = {key: arrays[key] for key in keys if key in arrays}
  first = next(iter(there.values()), np.zeros(spec.shape, np.float32))
  for key, array in there.items():
    file = f"{where}/{printable(key)}{_ARRAY}"
    if array.shape != first.shape or array.dtype.kind not in "buif":
      raise UserError(
        f"{file} is {array.dtype} {list(array.shape)}, but {spec.name} is"
        f" numbers {list(first.shape)} in the other files. Make them alike."
      )
    if not np.isfinite(array).all():
      raise UserError(
        f"{file} holds NaN or infinity. If {spec.name} is missing there, take"
        " the file away."
      )
  dtype = np.result_type(*(a.dtype for a in there.values()), first.dtype)
  out = np.zeros((len(keys), *first.shape), dtype)
  for i, key in enumerate(keys):
    if key in there:
      out[i] = there[key]
  return out

"""`hf:<dataset>`: what the `datasets` library of Hugging Face opens.

`<dataset>` is the name of a data set on the hub, which is downloaded once, as
in `hf:ylecun/mnist`; or a path: a folder that `save_to_disk` wrote, a folder of
Parquet, Arrow or image files, or one Parquet file. It is memory-mapped, not
streamed, so images are read at random.

Options, after a question mark:

  image     column of the images; by default `image`, `img` or the only one
  label     column of the labels; by default `label`, `labels` or the only one
            of classes; without, images have no labels
  config    of data sets that have several
  revision  of the data set on the hub: a branch, a tag or a commit
  train,    names of the splits; by default train, and the first of test, val,
  test      valid and validation that is there

Without a test split a fixed share of the images is held out by a hash of their
index.

An image column has the feature `Image`, or encoded files as bytes. Labels are
whole numbers, classes or words, see `labels`.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gamix_jax.data import labels as labels_lib
from gamix_jax.data import options
from gamix_jax.data.formatting import listed, printable
from gamix_jax.data.image_files import (
  END_BYTES,
  TEST_FOLDERS,
  TRAIN_FOLDERS,
  Head,
  head_of,
)
from gamix_jax.data.settings import Settings
from gamix_jax.data.source import Source, hash_parts, hash_split
from gamix_jax.errors import UserError
from gamix_jax.paths import resolve

log = logging.getLogger(__name__)

_OPTIONS = {
  name: options.Word()
  for name in ("image", "label", "config", "revision", "train", "test")
}
_IMAGES = ("image", "img")
_LABELS = ("label", "labels")
_HELP = (
  "Give a data set of the hub or a folder:"
  " --config.data.source=hf:user/name or hf:/path/to/folder"
)
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


class HuggingFace(Source):
  """One split of a data set; each process maps its files for itself."""

  @classmethod
  def resolve_rest(cls, rest: str) -> str:
    """With an absolute path, if it is a path."""
    where, _ = options.split(rest)
    path = _local(where)
    return rest if path is None else f"{path}{rest[len(where) :]}"

  def __init__(self, rest: str, split: str, settings: Settings, seed: int):
    """Opens one split; downloads the data set first if that was not done.

    Raises:
      UserError: the library is missing, the data set cannot be opened, or it
        has no images.
    """
    del seed
    where, given = options.split(rest)
    chosen = options.parse("hf", given, _OPTIONS)
    self._title = f"hf:{printable(where)}"
    parts = _open(where, chosen, self._title)
    train, test = _splits(parts, chosen, self._title)
    part = test if test is not None and split == "test" else train
    self._part, self._column = part, None
    features = parts[part].features
    image = _image_column(features, chosen["image"], self._title)
    label = _label_column(features, chosen["label"], image, self._title)
    import datasets  # noqa: PLC0415  (found by `_open`)

    table = parts[part].select_columns([image])
    self._table = table.cast_column(image, datasets.Image(decode=False))
    n = len(self._table)
    keep = np.ones(n, bool)
    if test is None:
      log.info(
        "%s: no test images in it, so %g %% of %s are held out, by a hash of"
        " their index",
        *(self._title, 100 * settings.test_fraction, train),
      )
      names = [f"{part}/{i}" for i in range(n)]
      keep = hash_split(self._title, names, settings.test_fraction, split)
    labels, self.label_names = _labels(
      [parts[p] for p in dict.fromkeys((train, test or train))],
      label,
      self._title,
    )
    heads = [self._head(i) for i in range(n)]
    self.total = n
    self.broken = {
      f"{part}[{i}]": head.fault for i, head in enumerate(heads) if head.fault
    }
    self._index = np.flatnonzero([not head.fault for head in heads] & keep)
    if not len(self._index):
      why = next(iter(self.broken.values()), "it is empty")
      raise UserError(
        f"The {split} split of {self._title} has no readable image in the"
        f" column {image} ({why}). Name the column: ?image=<column>"
      )
    self._labels = labels[0 if part == train else 1][self._index]
    self._ends = [heads[i].ends for i in self._index]

  def __getstate__(self) -> dict[str, Any]:
    """Without the mapped column, for a worker process."""
    return self.__dict__ | {"_column": None}

  def _cell(self, row: int) -> tuple[Any, str | None]:
    """Buffer and path of an image; one of them is None."""
    if self._column is None:
      # Much faster to index than the library's own data set.
      self._column = self._table.with_format("arrow")[:].column(0)
    cell = self._column[row]
    if not cell.is_valid:
      return None, None
    return cell["bytes"].as_buffer(), cell["path"].as_py()

  def _head(self, row: int) -> Head:
    data, path = self._cell(row)
    if data is None and path is None:
      return Head("empty")
    if data is None:
      try:
        data = Path(path).read_bytes()
      except OSError as e:
        return Head(f"{printable(path)} cannot be read ({e.strerror})")
    data = memoryview(data)
    tail = data[max(END_BYTES, len(data) - END_BYTES) :]
    return head_of(len(data), bytes(data[:END_BYTES]), bytes(tail))

  def __len__(self) -> int:
    """Number of images."""
    return len(self._index)

  def __getitem__(self, i: int) -> dict[str, Any]:
    """The encoded image, as it is in the table, and its label.

    Raises:
      UserError: the table refers to a file that cannot be read.
    """
    data, path = self._cell(int(self._index[i]))
    if data is None:
      try:
        data = Path(path).read_bytes()
      except OSError as e:
        raise UserError(
          f"{self._title}: cannot read {printable(path)}, which was there at"
          f" the start: {e.strerror}. Put it back, or start again without it."
        ) from e
    return {"image": bytes(data), "label": int(self._labels[i])}

  def labels(self) -> np.ndarray:
    """The labels."""
    return self._labels

  def name(self, i: int) -> str:
    """Split and row."""
    return f"{self._part}[{self._index[i]}]"

  def fingerprint(self) -> str:
    """Of rows, labels, names of classes, sizes, and both ends of each image."""
    return hash_parts(
      (
        repr(self.label_names).encode(),
        self._index.astype("<i8").tobytes(),
        self._labels.astype("<i4").tobytes(),
        *self._ends,
      )
    )


# ----------------------------------------------------------------- the data set


def _local(where: str) -> Path | None:
  """The path that is meant; None for a name on the hub.

  Raises:
    UserError: `~name` of a user whom this machine does not know.
  """
  if not where or "://" in where:
    return None
  path = resolve(where)
  try:
    there = path.exists()
  except (OSError, ValueError):  # a name too long, a NUL in it
    there = False
  is_path = there or where[0] in "/.~" or not _HUB_NAME.fullmatch(where)
  return path if is_path else None


def _open(where: str, chosen: Mapping[str, Any], title: str) -> dict[str, Any]:
  """The splits of a data set, by name.

  Raises:
    UserError: the library is missing, or it cannot open the data set.
  """
  if not where:
    raise UserError(f"data.source=hf: names no data set. {_HELP}")
  try:
    import datasets  # noqa: PLC0415  (optional, and takes 2 s)
  except ImportError as e:
    raise UserError(
      f"data.source={title} needs the library datasets, which cannot be"
      f" imported ({e}): pip install 'gamix_jax[hf]'"
    ) from e
  path = _local(where)
  if path is not None and not path.exists():
    raise UserError(f"{printable(path)} does not exist. {_HELP}")
  try:
    found = _load(datasets, where, path, chosen)
  # The library raises whatever comes first: its own errors, those of servers,
  # OSError, ValueError, pyarrow's on damaged files, ...
  except Exception as e:
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    reason = " ".join(lines)[:300].rstrip(".")
    raise UserError(
      f"{title} cannot be opened ({type(e).__name__}: {reason}). Where there is"
      " no network, prepare it elsewhere with save_to_disk and give its folder."
    ) from e
  if isinstance(found, datasets.Dataset):
    return {str(found.split or "train"): found}
  return dict(found)


def _load(
  datasets: Any, where: str, path: Path | None, chosen: Mapping[str, Any]
) -> Any:
  """A Dataset or a DatasetDict."""
  config, revision = chosen["config"], chosen["revision"]
  if path is None:
    return datasets.load_dataset(where, config, revision=revision)
  if path.is_file():
    return datasets.load_dataset("parquet", data_files=str(path))
  saved = ("dataset_dict.json", "state.json")
  if any((path / name).is_file() for name in saved):
    return datasets.load_from_disk(str(path))
  return datasets.load_dataset(str(path), config)


def _splits(
  parts: Mapping[str, Any], chosen: Mapping[str, Any], title: str
) -> tuple[str, str | None]:
  """Names of the splits to train on and to hold out.

  Raises:
    UserError: a name that was given is none.
  """
  for key in ("train", "test"):
    if chosen[key] is not None and chosen[key] not in parts:
      raise UserError(
        f"{title} has no split {chosen[key]!r}; it has {listed(parts)}."
      )
  train = chosen["train"] or _first(TRAIN_FOLDERS, parts)
  if train is None:
    train = max(parts, key=lambda part: len(parts[part]))
  test = chosen["test"] or _first(TEST_FOLDERS, parts)
  return train, None if test == train else test


def _first(names: Sequence[str], there: Mapping[str, Any]) -> str | None:
  return next((name for name in names if name in there), None)


# ------------------------------------------------------------------ the columns


def _is_image(feature: Any) -> bool:
  """Whether a feature is an image or has encoded files."""
  import datasets  # noqa: PLC0415

  if isinstance(feature, datasets.Image):
    return True
  if isinstance(feature, dict):  # an image whose feature was lost
    return feature.keys() == {"bytes", "path"}
  return getattr(feature, "dtype", "") in ("binary", "large_binary")


def _image_column(
  features: Mapping[str, Any], wanted: str | None, title: str
) -> str:
  """The column of images.

  Raises:
    UserError: there is none, or several that could be.
  """
  fits = [name for name, feature in features.items() if _is_image(feature)]
  if wanted is not None:
    if wanted in fits:
      return wanted
    what = "holds no images" if wanted in features else "is not there"
    raise UserError(f"{title}: the column {wanted!r} {what}. {_has(features)}")
  found = _first(_IMAGES, dict.fromkeys(fits)) or (
    fits[0] if len(fits) == 1 else None
  )
  if found is None:
    what = (
      f"several columns of images ({listed(fits)})"
      if fits
      else ("no column of images")
    )
    choose = " Choose one: ?image=<column>" if fits else ""
    raise UserError(f"{title} has {what}.{choose} {_has(features)}")
  return found


def _label_column(
  features: Mapping[str, Any], wanted: str | None, image: str, title: str
) -> str | None:
  """The column of labels; None for none.

  Raises:
    UserError: the one that was given holds no labels.
  """
  import datasets  # noqa: PLC0415

  def fits(name: str) -> bool:
    feature = features.get(name)
    if name == image or feature is None:
      return False
    return isinstance(feature, datasets.ClassLabel) or bool(
      re.fullmatch(
        r"u?int\d+|bool|(large_)?string", getattr(feature, "dtype", "")
      )
    )

  if wanted is not None:
    if fits(wanted):
      return wanted
    what = "holds no labels" if wanted in features else "is not there"
    raise UserError(f"{title}: the column {wanted!r} {what}. {_has(features)}")
  named = next(filter(fits, _LABELS), None)
  classes = [
    name for name, f in features.items() if isinstance(f, datasets.ClassLabel)
  ]
  return named or (classes[0] if len(classes) == 1 else None)


def _has(features: Mapping[str, Any]) -> str:
  each = [
    f"{name} ({getattr(f, 'dtype', None) or type(f).__name__})"
    for name, f in features.items()
  ]
  return f"Its columns are {listed(each) or 'none'}."


def _labels(
  parts: Sequence[Any], label: str | None, title: str
) -> tuple[list[np.ndarray], tuple[str, ...]]:
  """int32 labels of each split, and the names of classes.

  Raises:
    UserError: they are no labels.
  """
  if label is None:
    return [np.full(len(part), -1, np.int32) for part in parts], ()
  columns = [_values(part, label) for part in parts]
  there = [np.array([v is not None for v in c], bool) for c in columns]
  given = [np.array([v for v in c if v is not None]) for c in columns]
  found, names = labels_lib.encode(
    [a for a in given if len(a)], f"{title}: {label}"
  )
  made = [np.full(len(c), -1, np.int32) for c in columns]
  filled = (k for k, a in enumerate(given) if len(a))
  for k, values in zip(filled, found, strict=True):
    made[k][there[k]] = values
  feature = parts[0].features[label]
  return made, tuple(getattr(feature, "names", None) or names)


def _values(part: Any, column: str) -> list[Any]:
  """All values of a column; None for each where the split lacks it."""
  if column not in part.features:
    return [None] * len(part)
  table = part.select_columns([column]).with_format("arrow")[:]
  return table.column(0).to_pylist()

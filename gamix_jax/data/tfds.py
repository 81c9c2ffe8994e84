"""`tfds:<name>`: TensorFlow Datasets with random access and without TensorFlow.

The data set is prepared once as array_record (in ~/tensorflow_datasets or
TFDS_DATA_DIR), in a separate process. Preparing needs TensorFlow if the builder
yields images as arrays (MNIST, CIFAR-10). That process hides the accelerators
from TensorFlow, and the process that trains never imports it.

Test images are those of the split `test` or `validation`; without one, a share
is held out by a hash of the index. The image is the feature `image` or the only
image feature. The label is the feature `label` if that is a class.
"""

import concurrent.futures
import importlib.util
import logging
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np

from gamix_jax import files
from gamix_jax.data.settings import Settings
from gamix_jax.data.source import Source, hash_parts, hash_split
from gamix_jax.errors import UserError

log = logging.getLogger(__name__)

_TEST_SPLITS = ("test", "validation")
_CELEBA = (
  " For CelebA, whose download often fails by quota: get img_align_celeba.zip"
  " by hand (https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html), then"
  " --config.data.source=zip:img_align_celeba.zip"
)
_AGAIN = "Delete that folder to have the data set prepared again."
_ALTERNATIVES = (
  " Prepare it where there is a network and copy its folder to {place}, or use"
  " --config.data.source=folder:<path> or npz:<path>."
)


class Tfds(Source):
  """One split of a prepared data set; each process opens it for itself."""

  def __init__(self, name: str, split: str, settings: Settings, seed: int):
    """Opens one split; prepares the data set first if that was not done.

    Raises:
      UserError: there is no such data set, it cannot be prepared, or it holds
        no images.
    """
    del seed
    if not name:
      raise UserError("data.source=tfds: names no data set, as in tfds:celeb_a")
    builder = _builder(name)
    if not builder.is_prepared():
      _prepare_in_subprocess(name)
      builder = _builder(name)
    self._folder = Path(builder.data_dir)
    self._records: Any = None
    try:
      builder = _read(self._folder)
      _check_random_access(builder, name)
      self._image, self._label = _features(builder)
      self._split, self._index, self.total = _select(
        builder, name, split, settings.test_fraction
      )
      # With configuration and version.
      self._full_name = builder.info.full_name
      if self._label:
        self.label_names = tuple(builder.info.features[self._label].names)
    except UserError:
      raise
    except Exception as e:  # of any kind, if a file is damaged
      raise UserError(
        f"tfds:{name} in {self._folder} cannot be read: {_first_line(e)}."
        f" {_AGAIN}"
      ) from e

  def __getstate__(self) -> dict[str, Any]:
    """Without the open files, for a worker process."""
    return self.__dict__ | {"_records": None}

  def __len__(self) -> int:
    """Number of images."""
    return len(self._index)

  def __getitem__(self, i: int) -> dict[str, Any]:
    """The encoded image, as it is in the record, and its label."""
    if self._records is None:
      self._records = _data_source(
        _read(self._folder), self._split, self._image
      )
    try:
      record = self._records[int(self._index[i])]
      label = int(record[self._label]) if self._label else -1
      return {"image": record[self._image], "label": label}
    except Exception as e:  # of any kind, if a file is damaged
      raise UserError(
        f"Cannot read record {self._index[i]} of {self._folder}:"
        f" {_first_line(e)}. {_AGAIN}"
      ) from e

  def labels(self) -> np.ndarray:
    """The labels; read from every record if there are any."""
    return super().labels() if self._label else np.full(len(self), -1)

  def name(self, i: int) -> str:
    """Split and index of the record."""
    return f"{self._split}[{self._index[i]}]"

  def fingerprint(self) -> str:
    """Of name, version, split and number of images."""
    of = (self._full_name, self._split, len(self))
    return hash_parts([repr(of).encode()])

  def cache_key(self) -> str:
    """Folder, files, their sizes and times, and the indices of the records."""
    found = sorted(p for p in self._folder.iterdir() if p.is_file())
    stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in found]
    index = self._index.tolist()
    return repr((str(self._folder), stats, self._split, index))


def _select(
  builder: Any, name: str, split: str, test_fraction: float
) -> tuple[str, np.ndarray, int]:
  """The TFDS split to read, indices of its records, and the images in all."""
  sizes = {k: s.num_examples for k, s in builder.info.splits.items()}
  test = next((s for s in _TEST_SPLITS if sizes.get(s)), None)
  if "train" in sizes and test is not None:
    used = "train" if split == "train" else test
    return used, np.arange(sizes[used]), sizes["train"] + sizes[test]
  used = "train" if sizes.get("train") else max(sizes, key=sizes.get)
  log.info(
    "tfds:%s: no test images in it, so %g %% of %s are held out, by a hash of"
    " their index",
    *(name, 100 * test_fraction, used),
  )
  names = [f"{used}/{i}" for i in range(sizes[used])]
  keep = hash_split(f"tfds:{name}", names, test_fraction, split)
  return used, np.flatnonzero(keep), sizes[used]


def _first_line(e: Exception) -> str:
  line = (str(e).strip().splitlines() or ["no reason given"])[0]
  return f"{type(e).__name__}: {line[:200]}"


def prepare(name: str) -> None:
  """Downloads and prepares as array_record, in this process.

  Raises:
    UserError: it needs TensorFlow and there is none, or the download failed.
  """
  _hide_accelerators()
  builder = _builder(name)
  folder = Path(builder.data_dir)
  place = folder.parent
  try:
    place.mkdir(parents=True, exist_ok=True)
    with files.exclusive(place / ".gamix_jax.lock"):
      if builder.is_prepared():
        return  # by another process, while we waited
      builder.download_and_prepare(file_format="array_record")
  except ImportError as e:
    if "tensorflow" not in f"{e.name} {e}".lower():
      raise
    raise UserError(
      f"Preparing tfds:{name} needs TensorFlow, once (its images come as"
      " arrays): pip install 'gamix_jax[tfds]', then the same command again."
    ) from e
  # A download fails in as many ways as there are servers: requests' errors,
  # checksums, missing manual files (AssertionError), archives cut short, ...
  except Exception as e:
    reason = next((x for x in str(e).splitlines() if x.strip()), "no reason")
    raise UserError(
      f"tfds:{name} could not be downloaded and prepared"
      f" ({type(e).__name__}: {reason[:200]})."
      + (_CELEBA if name.startswith("celeb_a") else "")
      + _ALTERNATIVES.format(place=place)
    ) from e


def _prepare_in_subprocess(name: str) -> None:
  """Runs `prepare` in a fresh process, which may import TensorFlow."""
  log.warning("Preparing tfds:%s once; this can take long.", name)
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
    try:
      pool.submit(prepare, name).result()
    except concurrent.futures.BrokenExecutor as e:
      raise UserError(
        f"The process that prepared tfds:{name} was killed; was there enough"
        " memory? The same command starts it again."
      ) from e


def _hide_accelerators() -> None:
  if importlib.util.find_spec("tensorflow") is None:
    return
  os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
  import tensorflow as tf  # noqa: PLC0415

  for kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], kind)


def _builder(name: str) -> Any:
  import tensorflow_datasets as tfds  # noqa: PLC0415

  try:
    return tfds.builder(name)
  except Exception as e:
    missing = isinstance(e, tfds.core.DatasetNotFoundError)
    lines = str(e).splitlines() or [""]
    reason = "there is no such data set" if missing else lines[0][:300]
    raise UserError(
      f"tfds:{name}: {reason}. Names are listed at"
      " https://www.tensorflow.org/datasets/catalog"
    ) from e


def _read(folder: Path) -> Any:
  import tensorflow_datasets as tfds  # noqa: PLC0415

  return tfds.builder_from_directory(folder)


def _check_random_access(builder: Any, name: str) -> None:
  found = [f.value for f in builder.info.available_file_formats()]
  if "array_record" not in found:
    raise UserError(
      f"tfds:{name} is in {builder.data_dir} as {', '.join(found)}, which"
      " cannot be read at random. Move that folder away, or set TFDS_DATA_DIR"
      " to another place, and it is prepared as array_record."
    )


def _features(builder: Any) -> tuple[str, str | None]:
  """Names of the image and of the label, None where there is none."""
  import tensorflow_datasets as tfds  # noqa: PLC0415

  features = dict(builder.info.features)
  images = [
    k for k, f in features.items() if isinstance(f, tfds.features.Image)
  ]
  if "image" not in images and len(images) != 1:
    raise UserError(
      f"{builder.name} has no image to train on; its features are"
      f" {', '.join(features)}."
    )
  image = "image" if "image" in images else images[0]
  is_class = isinstance(features.get("label"), tfds.features.ClassLabel)
  return image, "label" if is_class else None


def _data_source(builder: Any, split: str, image: str) -> Any:
  import tensorflow_datasets as tfds  # noqa: PLC0415

  decoders = {image: tfds.decode.SkipDecoding()}
  return builder.as_data_source(split, decoders=decoders)

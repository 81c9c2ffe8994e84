"""The table of sources, and opening what the configuration names."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gamix_jax.data.binary import BinaryDataset
from gamix_jax.data.builtin import Digits, Synthetic
from gamix_jax.data.cache import cached
from gamix_jax.data.dataset import Dataset, SplitDataset
from gamix_jax.data.folder import Folder
from gamix_jax.data.folder_multimodal import MultimodalFolder
from gamix_jax.data.huggingface import HuggingFace
from gamix_jax.data.idx import Idx
from gamix_jax.data.ivae import Ivae
from gamix_jax.data.linear_gaussian import LinearGaussianSource
from gamix_jax.data.mnist_label import MnistLabel
from gamix_jax.data.modalities import CATEGORICAL, ModalitySpec
from gamix_jax.data.multimodal import FilteredMultimodal, MultimodalSource
from gamix_jax.data.multimodal_dataset import MultimodalDataset
from gamix_jax.data.npz import Npz
from gamix_jax.data.npz_multimodal import MultimodalNpz
from gamix_jax.data.polydigits import Polydigits
from gamix_jax.data.polymnist import Polymnist
from gamix_jax.data.settings import Settings
from gamix_jax.data.source import FilteredSource, Source, exclude_labels
from gamix_jax.data.tar import Tar
from gamix_jax.data.tfds import Tfds
from gamix_jax.data.zip_file import Zip
from gamix_jax.errors import UserError
from gamix_jax.registry import Registry

# What `data.source` names before a colon or a question mark. Called with (rest,
# split, settings, seed), see `Source`; a function has the class's default
# flags.
SOURCES: Registry[Callable[[str, str, Settings, int], Source]] = Registry(
  "data.source"
)
SOURCES.register("digits", Digits)
SOURCES.register("synthetic", Synthetic)
SOURCES.register("folder", Folder)
SOURCES.register("zip", Zip)
SOURCES.register("tar", Tar)
SOURCES.register("idx", Idx)
SOURCES.register("npz", Npz)
SOURCES.register("hf", HuggingFace)
SOURCES.register("tfds", Tfds)
SOURCES.register("polydigits", Polydigits)
SOURCES.register("polymnist", Polymnist)
SOURCES.register("mnist_label", MnistLabel)
SOURCES.register("linear_gaussian", LinearGaussianSource)
SOURCES.register("ivae", Ivae)

# What opens these when `data.modalities` names modalities.
_WITH_MODALITIES = {"folder": MultimodalFolder, "npz": MultimodalNpz}

ANY_FINGERPRINT = "any"  # as `data.fingerprint`: all images are accepted


def resolve_source(source: str) -> str:
  """`data.source` with an absolute path, so that it holds in every folder.

  A source without a path, or one that is not in the table, stays as it is.

  Raises:
    UserError: `~name` of a user whom this machine does not know.
  """
  name, colon, rest = _parts(source)
  opener = SOURCES.get(name)
  if not rest or not hasattr(opener, "resolve_rest"):
    return source
  return f"{name}{colon}{opener.resolve_rest(rest)}"


def _parts(source: str) -> tuple[str, str, str]:
  """The source's name, a colon if there is one, and what is left.

  Options without anything before them need no colon: `ivae?seed=3`.
  """
  name = re.match("[^:?]*", source)[0]
  rest = source[len(name) :]
  return (name, ":", rest[1:]) if rest[:1] == ":" else (name, "", rest)


def _flag(opener: Any, name: str) -> bool:
  """A flag of `Source`; functions do not have it."""
  return getattr(opener, name, False)


def open_source(settings: Settings, split: str, seed: int) -> Source:
  """The source that `settings.source` names, with all of its classes.

  Raises:
    UserError: no source has that name, it cannot be opened, or it has images
      where `data.modalities` names modalities, or the other way round.
  """
  name, _, rest = _parts(settings.source)
  opener = SOURCES.choose(name)
  if settings.modalities:
    opener = _WITH_MODALITIES.get(name, opener)
  if settings.stated_range and not _flag(opener, "takes_range"):
    users = [k for k, v in SOURCES.items() if _flag(v, "takes_range")]
    raise UserError(
      f"data.range={settings.range} is for {', '.join(users)}; {name} knows"
      " what is black and what is white. Leave it out."
    )
  source = opener(rest, split, settings, seed)
  if source.multimodal and not settings.modalities:
    raise UserError(
      f"data.source={settings.source} has several modalities. Name them:"
      f' --config.data.modalities="{_entries(source)}"'
      " --config.data.flip=False"
    )
  if settings.modalities and not source.multimodal:
    users = [k for k, v in SOURCES.items() if _flag(v, "multimodal")]
    raise UserError(
      f"data.source={settings.source} has images only, but data.modalities"
      f" names {', '.join(s.name for s in settings.modality_specs)}. Set it to"
      f" (), or use {', '.join(sorted({*users, *_WITH_MODALITIES}))}."
    )
  return source


def _entries(source: MultimodalSource) -> tuple[str, ...]:
  """Entries of `data.modalities` that fit what the source has."""

  def some(name: str) -> np.ndarray:
    found = source.arrays.get(name)
    return source.read(0, name)[None] if found is None else found

  return tuple(str(_guess(name, some(name))) for name in source.names)


def _guess(name: str, array: np.ndarray) -> ModalitySpec:
  """An entry for an array [n, ...]: an image, classes, or other numbers."""
  shape = array.shape[1:]
  if array.dtype == np.uint8 and len(shape) in (2, 3):
    return ModalitySpec(name, (*shape, 1)[:3], "l1")
  if array.dtype.kind in "iu" and not shape:
    return ModalitySpec(name, (int(array.max()) + 1,), CATEGORICAL)
  one_hot = len(shape) == 1 and np.isin(array, (0, 1)).all()
  if one_hot and (array.sum(-1) == 1).all():
    return ModalitySpec(name, shape, CATEGORICAL)
  return ModalitySpec(name, shape or (1,), "l2")


def open_dataset(
  config: Settings | Mapping[str, Any], split: str, seed: int = 0
) -> Dataset | MultimodalDataset:
  """Opens one split of the data that the configuration names.

  Args:
    config: the section `data`, whole: a ConfigDict, any mapping, or Settings.
      With `data.modalities` it is opened as multimodal data.
    split: "train" or "test". What is held out never depends on the seed.
    seed: makes the images of the synthetic source; others ignore it.

  Raises:
    UserError: whatever the user can fix, in one or two lines.

  Example:
    >>> c = config.base().data
    >>> c.update(source="digits", image_size=16, channels=1)
    >>> held_out = open_dataset(c, "test")
    >>> len(held_out), held_out[0]["image"].shape, held_out[0]["image"].dtype
    (332, (16, 16, 1), dtype('uint8'))
  """
  if split not in ("train", "test"):
    raise ValueError(f"split must be train or test, not {split!r}")
  settings = Settings.from_config(config)
  source = open_source(settings, split, seed)
  if split == "train":
    filtered = FilteredMultimodal if source.multimodal else FilteredSource
    source = exclude_labels(source, settings, filtered)
  prepared = MultimodalDataset if source.multimodal else Dataset
  dataset = prepared(source, settings, split)
  _check_fingerprint(dataset)
  if settings.cache != "none":
    dataset = cached(dataset)
  return dataset if settings.binarize == "none" else BinaryDataset(dataset)


def fingerprint(train: SplitDataset, test: SplitDataset) -> str:
  """Of both splits, as `data.fingerprint` has it."""
  return f"{train.fingerprint()}:{test.fingerprint()}"


def _check_fingerprint(dataset: SplitDataset) -> None:
  """Raises UserError unless these are the images that the settings expect."""
  expected = dataset.settings.fingerprint
  if expected in ("", ANY_FINGERPRINT):
    return
  train, _, test = expected.partition(":")
  if dataset.fingerprint() != {"train": train, "test": test}[dataset.split]:
    raise fingerprint_error(dataset.settings.source)


def fingerprint_error(source: str, trained_on: str = "") -> UserError:
  """The error for a source without the images that a run was trained on."""
  there = f" ({trained_on})" if trained_on else ""
  return UserError(
    f"data.source={source} does not hold the images that the run was trained"
    f" on{there}. Give the source that does: --config.data.source=<source>; or"
    f" accept these: --config.data.fingerprint={ANY_FINGERPRINT}"
  )

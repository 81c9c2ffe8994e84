"""The images that `polymnist:<where>` and `mnist_label:<where>` are made of.

`where` is a source of labelled images, such as MNIST or Fashion-MNIST:
`idx:<folder>`, `npz:<file>`, `tfds:<name>` or `digits`. A folder alone means
idx, and an .npz file alone means npz.
"""

import dataclasses

import numpy as np

from gamix_jax.data import options
from gamix_jax.data.builtin import Digits
from gamix_jax.data.dataset import Dataset
from gamix_jax.data.idx import Idx
from gamix_jax.data.npz import Npz
from gamix_jax.data.settings import Settings
from gamix_jax.data.tfds import Tfds
from gamix_jax.errors import UserError
from gamix_jax.paths import resolve

_OPENERS = {"idx": Idx, "npz": Npz, "tfds": Tfds, "digits": Digits}
_FORMS = "idx:<folder>, npz:<file>, tfds:mnist or digits"


def open_images(
  source: str,
  where: str,
  split: str,
  settings: Settings,
  shape: tuple[int, int, int],
) -> tuple[Dataset, np.ndarray, np.ndarray]:
  """Opens labelled images and prepares all of them.

  Args:
    source: name of the source that is made of them, for messages.
    where: see the module docstring; without options.
    split: "train" or "test".
    settings: `test_fraction`, `range` and the limits of broken files apply.
    shape: (height, width, 1 | 3) that images are resized to, whole.

  Returns:
    The data set, images uint8 [n, *shape] and labels int32 [n].

  Raises:
    UserError: `where` names nothing, it cannot be opened, or it has an image
      without a label.
  """
  kind, rest = _kind(source, where)
  opener = _OPENERS[kind]
  if settings.stated_range and not opener.takes_range:
    raise UserError(
      f"data.range={settings.range} is for idx and npz; {kind} knows what is"
      " black and what is white. Leave it out."
    )
  settings = dataclasses.replace(
    settings,
    source=f"{kind}:{rest}" if rest else kind,
    image_size=shape[:2],
    channels=shape[2],
    crop="none",
    resize="area",
    modalities=(),
    missing=0.0,
    missing_test=0.0,
  )
  dataset = Dataset(opener(rest, split, settings, 0), settings, split)
  # A broken image has another one in its place, and that one's label.
  batch = dataset.load_batch(np.arange(len(dataset)))
  if (batch["label"] < 0).any():
    raise UserError(
      f"data.source={source}:{where} needs images with labels, and some of its"
      f" {split} images have none."
    )
  return dataset, batch["image"], batch["label"]


def resolve_where(rest: str) -> str:
  """What follows `polymnist:`, with an absolute path if there is one.

  Raises:
    UserError: `~name` of a user whom this machine does not know.
  """
  where, given = options.split(rest)
  kind, colon, path = where.partition(":")
  tail = f"?{given}" if given else ""
  if colon and kind in _OPENERS:
    takes_path = _OPENERS[kind].takes_path and path
    return f"{kind}:{resolve(path) if takes_path else path}{tail}"
  if where and where not in _OPENERS:
    return f"{resolve(where)}{tail}"
  return rest


def _kind(source: str, where: str) -> tuple[str, str]:
  """The name of the images' source and what it opens."""
  kind, _, rest = where.partition(":")
  if kind in _OPENERS:
    return kind, rest
  if not where:
    raise UserError(f"data.source={source}: needs images after it: {_FORMS}.")
  path = resolve(where)
  if path.is_file():
    return "npz", where
  if path.is_dir() or path.parent.is_dir():
    return "idx", where
  raise UserError(
    f"data.source={source}:{where} names neither a folder nor a file. Give"
    f" {_FORMS}."
  )

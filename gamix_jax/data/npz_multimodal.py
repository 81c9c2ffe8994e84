"""`npz:<path>` with `data.modalities`: a NumPy archive, an entry a modality.

Entries, for a modality called NAME:

  NAME          [n, ...]; a share of the rows is held out by a hash of their
                index, the same one as of an archive of images
  NAME_train,   instead of NAME, if the archive has a test split
  NAME_test
  mask          [n, M], booleans or 0 and 1, optional: which modalities of a row
                are there, in the order of `data.modalities`; or mask_train and
                mask_test. Without it all are
  y, y_train,   labels, optional, as of an archive of images; see `npz`
  y_test
  range         (black, white) of the images, optional

What they hold:

  images        uint8, or numbers of another range: `data.range`, the entry
                `range`, or judged by the numbers; see `levels`
  categorical   class numbers [n], or probabilities [n, classes]
  bernoulli     booleans, or numbers from 0 to 1, or from -1 to 1; if none is
                below 0, the first two become -1 (off) to 1 (on)
  others        numbers, as they are

Where the mask is 0, an array may hold anything, also NaN.
"""

import logging
from collections.abc import Mapping

import numpy as np

from gamix_jax.data import archive, levels, npz
from gamix_jax.data.find_file import find_file
from gamix_jax.data.formatting import listed, printable
from gamix_jax.data.modalities import ModalitySpec
from gamix_jax.data.multimodal import MultimodalArrays
from gamix_jax.data.settings import Settings
from gamix_jax.data.source import hash_split
from gamix_jax.errors import UserError

log = logging.getLogger(__name__)

Parts = Mapping[str, np.ndarray]  # of a modality, by "train" and "test"
_MASKS = ("mask", "mask_train", "mask_test")
_USAGE = "Write it with numpy.savez(path, m0=..., m1=...)."


class MultimodalNpz(MultimodalArrays):
  """One split of an archive, read into memory."""

  takes_path = True
  takes_range = True

  def __init__(self, path: str, split: str, settings: Settings, seed: int):
    """Reads the archive and takes one split.

    Raises:
      UserError: it is missing or no archive, or it does not fit
        `data.modalities`.
    """
    del seed
    file = find_file(path, "npz", archive.EXAMPLE)
    where = printable(file)
    specs = settings.modality_specs
    entries = archive.read_archive(
      file, _wanted(specs), single=None, usage=_USAGE
    )
    keys = _keys(specs, entries, where)
    raw = {
      spec.name: {part: entries[key] for part, key in keys[spec.name].items()}
      for spec in specs
    }
    parts = tuple(next(iter(keys.values())))
    others = {
      key: array
      for key, array in entries.items()
      if not any(key in of.values() for of in keys.values())
    }
    # Checks lengths, masks and NaN before anything is converted.
    whole = {
      part: MultimodalArrays(
        {name: of[part] for name, of in raw.items()},
        mask=_mask(others, part),
        title=where if len(parts) == 1 else f"{where}: {part}",
      )
      for part in parts
    }
    first = next(iter(raw.values()))
    labels, label_names = npz.read_labels(others, first, where)
    stated = settings.stated_range or npz.stated_range(others, where)
    if settings.stated_range and not any(spec.is_image for spec in specs):
      raise UserError(
        f"data.range={settings.range} is for images, but data.modalities names"
        f" none: {listed(list(map(str, specs)))}. Leave it out."
      )
    for m, spec in enumerate(specs):
      seen = {part: of.mask[:, m] for part, of in whole.items()}
      raw[spec.name] = _converted(spec, raw[spec.name], seen, stated, where)
    chosen = split if len(parts) > 1 else "train"
    rows = np.ones(len(whole[chosen]), bool)
    total = sum(map(len, whole.values()))
    if len(parts) == 1:
      log.info(
        "%s: no test split in it, so %g %% of the rows are held out, by a hash"
        " of their index",
        *(where, 100 * settings.test_fraction),
      )
      indices = [str(i) for i in range(total)]
      rows = hash_split(where, indices, settings.test_fraction, split)
    super().__init__(
      {name: of[chosen][rows] for name, of in raw.items()},
      labels[chosen][rows],
      mask=whole[chosen].mask[rows],
      title=f"{printable(file.name)}/{split}",
      total=total,
      label_names=label_names,
    )


def _wanted(specs: tuple[ModalitySpec, ...]) -> set[str]:
  names = {f"{s.name}{end}" for s in specs for end in ("", "_train", "_test")}
  return {*names, *_MASKS, *npz.LABELS, *npz.TEST_LABELS, "range"}


def _keys(
  specs: tuple[ModalitySpec, ...], entries: Mapping[str, np.ndarray], where: str
) -> dict[str, dict[str, str]]:
  """The entries of each modality, by part: {"m0": {"train": "m0"}, ...}.

  Raises:
    UserError: a modality has no entry, or only some have a test split.
  """
  keys = {}
  for name in (spec.name for spec in specs):
    train = npz.first(entries, (f"{name}_train", name))
    if train is None:
      raise UserError(
        f"{where} has no entry {name} or {name}_train, which data.modalities"
        f" names. It has {listed(entries, 20) or 'none'}."
      )
    keys[name] = {"train": train}
    if f"{name}_test" in entries:
      keys[name]["test"] = f"{name}_test"
  for name, of in keys.items():
    lacks = [other for other, its in keys.items() if len(its) < len(of)]
    if lacks:
      raise UserError(
        f"{where} has {name}_test, but no {lacks[0]}_test. Add it, or leave"
        " out the test split of all modalities."
      )
  return keys


def _mask(entries: Mapping[str, np.ndarray], part: str) -> np.ndarray | None:
  """The mask of one part; None if the archive has none."""
  names = ("mask_train", "mask") if part == "train" else ("mask_test",)
  key = npz.first(entries, names)
  return None if key is None else entries[key]


def _converted(
  spec: ModalitySpec,
  parts: Parts,
  seen: Parts,
  stated: tuple[float, float] | None,
  where: str,
) -> dict[str, np.ndarray]:
  """The arrays of a modality in the range that `MultimodalArrays` takes."""
  there = [array[seen[part]] for part, array in parts.items()]
  there = [array for array in there if len(array)]
  if spec.is_image:
    for array in parts.values():
      npz.check_images(array, where, spec.name)
    if not there:
      return {k: np.zeros(a.shape, np.uint8) for k, a in parts.items()}
    ends = levels.find_range(there, stated, f"{where}: {spec.name}")
    return {
      part: levels.to_uint8(_zeroed(array, seen[part]), *ends)
      for part, array in parts.items()
    }
  if spec.likelihood == "bernoulli" and all(
    array.dtype.kind in "buif" and array.min(initial=0) >= 0 for array in there
  ):
    if any(array.max(initial=0) > 1 for array in there):
      high = max(array.max(initial=0) for array in there)
      raise UserError(
        f"{where}: {spec.name} has values up to {high:g}, but those of"
        " bernoulli are from 0 to 1, or from -1 to 1. Rescale them."
      )
    log.info("%s: %s: 0 is off and 1 is on", where, spec.name)
    return {
      part: 2 * _zeroed(array, seen[part]).astype(np.float32) - 1
      for part, array in parts.items()
    }
  return dict(parts)


def _zeroed(array: np.ndarray, seen: np.ndarray) -> np.ndarray:
  """The array with zeros where nothing is there; a copy if there is any."""
  if seen.all():
    return array
  array = array.copy()
  array[~seen] = 0
  return array

"""The section `data` of the configuration: its values and their checks."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from gamix_jax.data import modalities as modalities_lib
from gamix_jax.errors import UserError

RESIZES = ("area", "linear", "cubic", "nearest")
MISSING_BY = ("random", "value")
OCCLUDE = ("none", "half", "box")
BINARIZE = ("none", "fixed", "dynamic")
# Typed by users who mean to turn data.cache off or on. A folder with such a
# name can be given as ./None.
NOT_FOLDERS = (
  *("", "none", "memory", "null", "true", "false", "yes", "no", "on", "off"),
  *("0", "1"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Which images to use, and how each is prepared for a batch.

  Attributes:
    source: the name of a source in `SOURCES`, with what it opens after a
      colon: `digits`, `synthetic[:<n>]`, `folder:<path>`, `zip:<file>`,
      `tar:<pattern>`, `idx:<folder>`, `npz:<path>`, `hf:<dataset>`,
      `tfds:<name>`.
    fingerprint: of both splits, as from `data.fingerprint`. Images with another
      one are refused. "" and "any" accept all images.
    image_size: of prepared images, in pixels: an int (a square) or
      (height, width).
    channels: of prepared images: 1 (grey, ITU-R 601 luma) or 3 (RGB).
    batch_size: of the global batch, the rows of all hosts together.
    crop: before resizing. "square": the largest centred window with the aspect
      ratio of `image_size`, so a square for square images. An int: a centred
      window with that aspect ratio and this height in pixels, or the largest
      that fits in a smaller image. "none": the whole image, stretched if its
      aspect ratio is another.
    resize: "area" averages the source pixels under each target pixel when
      shrinking and is linear when enlarging; "linear", "cubic" and "nearest"
      use only neighbours, so they alias when shrinking.
    flip: whether to mirror left-right with probability 1/2, in training only.
    cache: where prepared images are kept, so that each is decoded once:
      "none", "memory", or a folder for a memory-mapped file.
    workers: number of processes that decode; 0: threads of this one. Cached
      images need none, and none are started.
    test_fraction: share that is held out by hash if the source has no test
      split.
    max_corrupt_fraction: share of the source's files that may be unreadable.
    exclude_labels: classes, by name or number, that are left out of the
      training split; the test split has them.
    occlude: the part of an image that the encoder does not see: "none", "half"
      or "box"; see `occlusion`. Prepared images are whole.
    binarize: whether pixels become black or white at random, by their grey
      level: "none", "fixed" or "dynamic"; see `binary`.
    range: (black, white) of the numbers in `npz:` and `idx:`. "auto": judged
      by the numbers, which must leave no doubt; see `levels`.
    max_pixels: largest height times width of an image file. A larger one counts
      as broken and is not decoded.
    modalities: of each observation, an entry each, see `modalities`; (): the
      data are images. With modalities, their shapes take the place of
      `image_size` and `channels`.
    missing: fraction of the modalities of training observations that are
      treated as missing, in [0, 1).
    missing_test: the same of the test split.
    missing_by: which ones: "random", or those of the largest "value"; see
      `missing`.
  """

  source: str
  image_size: int | tuple[int, int]
  channels: int
  batch_size: int
  fingerprint: str = ""
  crop: str | int = "square"
  resize: str = "area"
  flip: bool = True
  cache: str = "none"
  workers: int = 0
  test_fraction: float = 0.2
  max_corrupt_fraction: float = 0.01
  exclude_labels: tuple[int | str, ...] = ()
  occlude: str = "none"
  binarize: str = "none"
  range: str | tuple[float, float] = "auto"
  max_pixels: int = 1 << 28
  modalities: tuple[str, ...] = ()
  missing: float = 0.0
  missing_test: float = 0.0
  missing_by: str = "random"

  @classmethod
  def from_config(cls, config: "Settings | Mapping[str, Any]") -> "Settings":
    """Settings from the section itself, a ConfigDict or any mapping.

    Raises:
      UserError: an unknown key, or a value out of its range.
    """
    if isinstance(config, cls):
      return config
    config = dict(**config)
    names = [f.name for f in dataclasses.fields(cls)]
    for key in config.keys() - set(names):
      near = difflib.get_close_matches(key, names, 1)
      hint = f"did you mean data.{near[0]}?" if near else f"it has {names}"
      raise UserError(f"The configuration has no key data.{key}; {hint}")
    return cls(**config)

  def __post_init__(self):
    """Raises UserError at the first value out of its range."""

    def check(key: str, ok: bool, wanted: str) -> None:
      if not ok:
        value = getattr(self, key)
        raise UserError(f"data.{key}={value!r} must be {wanted}.")

    size = self.image_size
    check(
      "image_size",
      (_is_int(size) and size > 0)
      or (
        isinstance(size, list | tuple)
        and len(size) == 2
        and all(_is_int(s) and s > 0 for s in size)
      ),
      "an int or (height, width), each at least 1",
    )
    check("fingerprint", isinstance(self.fingerprint, str), "a string")
    check("source", isinstance(self.source, str), "a string")
    check("channels", self.channels in (1, 3), "1 (grey) or 3 (colour)")
    check(
      "batch_size",
      _is_int(self.batch_size) and self.batch_size > 0,
      "an int, at least 1",
    )
    check(
      "crop",
      self.crop in ("square", "none")
      if isinstance(self.crop, str)
      else _is_int(self.crop) and self.crop > 0,
      '"square", "none" or a side in pixels',
    )
    check("resize", self.resize in RESIZES, "one of " + ", ".join(RESIZES))
    check(
      "cache",
      isinstance(self.cache, str)
      and (
        self.cache in ("none", "memory")
        or self.cache.strip().lower() not in NOT_FOLDERS
      ),
      '"none", "memory" or a folder',
    )
    check(
      "workers", _is_int(self.workers) and self.workers >= 0, "an int from 0"
    )
    check("test_fraction", 0 < self.test_fraction < 1, "between 0 and 1")
    check(
      "max_corrupt_fraction", 0 <= self.max_corrupt_fraction <= 1, "from 0 to 1"
    )
    check(
      "exclude_labels",
      isinstance(self.exclude_labels, list | tuple)
      and all(_is_int(k) or isinstance(k, str) for k in self.exclude_labels),
      "a tuple of classes, such as (3,)",
    )
    check("occlude", self.occlude in OCCLUDE, "one of " + ", ".join(OCCLUDE))
    check(
      "binarize", self.binarize in BINARIZE, "one of " + ", ".join(BINARIZE)
    )
    check(
      "range",
      self.range == "auto" or _is_range(self.range),
      '"auto" or (black, white), two numbers such as (0, 255)',
    )
    check(
      "max_pixels",
      _is_int(self.max_pixels) and self.max_pixels > 0,
      "an int, at least 1",
    )
    for key in ("missing", "missing_test"):
      share = getattr(self, key)
      check(
        key,
        (_is_int(share) or isinstance(share, float)) and 0 <= share < 1,
        "a number in [0, 1)",
      )
    check(
      "missing_by",
      self.missing_by in MISSING_BY,
      "one of " + ", ".join(MISSING_BY),
    )
    self._check_modalities()

  def _check_modalities(self) -> None:
    """Raises UserError for wrong modalities, and keys that need or bar them."""
    if modalities_lib.parse(self.modalities):
      if self.occlude != "none":
        raise UserError(
          f"data.occlude={self.occlude!r} is for images; of several modalities"
          " whole ones can be missing, see data.missing. Remove it:"
          " --config.data.occlude=none"
        )
      if self.binarize != "none":
        raise UserError(
          f"data.binarize={self.binarize!r} is for images, not for several"
          " modalities. Remove it: --config.data.binarize=none"
        )
      if self.flip:
        raise UserError(
          "data.flip=True mirrors images, but the modalities of an observation"
          " belong together. Switch it off: --config.data.flip=False"
        )
      if self.cache not in ("none", "memory"):
        raise UserError(
          f"data.cache={self.cache!r}: a folder keeps images, not several"
          " modalities. Use --config.data.cache=memory or none."
        )
      return
    for key in ("missing", "missing_test"):
      if getattr(self, key):
        raise UserError(
          f"data.{key}={getattr(self, key)} is for data.modalities, which is"
          " empty: name the modalities, or leave it 0."
        )

  @property
  def shape(self) -> tuple[int, int, int]:
    """(height, width, channels) of every prepared image."""
    if isinstance(self.image_size, int):
      return self.image_size, self.image_size, self.channels
    return self.image_size[0], self.image_size[1], self.channels

  @property
  def modality_specs(self) -> tuple[modalities_lib.ModalitySpec, ...]:
    """The entries of `modalities`, parsed; empty for images."""
    return modalities_lib.parse(self.modalities)

  @property
  def stated_range(self) -> tuple[float, float] | None:
    """(black, white); None where `range` is "auto"."""
    return None if self.range == "auto" else self.range


def _is_int(x: Any) -> bool:
  return isinstance(x, int) and not isinstance(x, bool)


def _is_range(x: Any) -> bool:
  """Whether it is two numbers, the first smaller, that differ in float32."""
  return (
    isinstance(x, list | tuple)
    and len(x) == 2
    and all(_is_int(v) or isinstance(v, float) for v in x)
    and is_range(*x)
  )


def is_range(black: float, white: float) -> bool:
  """Whether these are finite, the first smaller, and differ in float32."""
  return -1e30 < black < white < 1e30 and white - black > 1e-30

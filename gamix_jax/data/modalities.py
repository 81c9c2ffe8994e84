"""The modalities of an observation, as `data.modalities` names them.

Each entry is "NAME SHAPE LIKELIHOOD [WEIGHT]":

    ("m0 16x16x3 l1", "m1 16x16x3 l1")
    ("image 28x28x1 bernoulli", "digit 10 categorical size")
    ("x 25 l2 0.5",)
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Literal

from gamix_jax.errors import UserError

# Other entries of a batch.
RESERVED = ("mask", "label", "valid", "eps", "step")
CATEGORICAL = "categorical"  # the likelihood of classes
_CHANNELS = (1, 3)  # of an image
_FORM = (
  '"NAME SHAPE LIKELIHOOD [WEIGHT]", such as "m0 28x28x3 l1" or'
  ' "digit 10 categorical size"'
)


@dataclasses.dataclass(frozen=True)
class ModalitySpec:
  """One entry of `data.modalities`.

  Attributes:
    name: of the entry in a batch.
    shape: of one observation: (h, w, c) of images, (..., classes) of
      categorical ones.
    likelihood: name of p(x | z), such as "l1"; the table of likelihoods
      decides whether there is one of that name.
    weight: of the reconstruction term; "size": the default weight times the
      largest size of all modalities over this one's; None: the default weight.
  """

  name: str
  shape: tuple[int, ...]
  likelihood: str
  weight: float | Literal["size"] | None = None

  @property
  def is_image(self) -> bool:
    """Whether it is (h, w, 1 | 3): uint8 in a batch, for floats in [-1, 1]."""
    return (
      len(self.shape) == 3
      and self.shape[-1] in _CHANNELS
      and not self.is_categorical
    )

  @property
  def is_categorical(self) -> bool:
    """Whether it is probabilities of classes, [..., classes]."""
    return self.likelihood == CATEGORICAL

  @property
  def size(self) -> int:
    """Number of elements of one observation."""
    return math.prod(self.shape)

  def __str__(self) -> str:
    """The entry; `parse` reads it."""
    weight = "" if self.weight is None else f" {self.weight}"
    return f"{self.name} {shape_text(self.shape)} {self.likelihood}{weight}"


def shape_text(shape: Sequence[int]) -> str:
  """A shape as entries have it: 28x28x1."""
  return "x".join(map(str, shape))


def parse(entries: Sequence[str]) -> tuple[ModalitySpec, ...]:
  """The modalities that `data.modalities` names, in its order.

  Raises:
    UserError: an entry is not of the form above, or two have one name.
  """
  if not isinstance(entries, list | tuple) or not all(
    isinstance(e, str) for e in entries
  ):
    raise UserError(
      f"data.modalities={entries!r} must be a tuple of strings, each {_FORM}."
    )
  specs = tuple(map(_parse_one, entries))
  names = [s.name for s in specs]
  for name in names:
    if names.count(name) > 1:
      raise UserError(
        f"data.modalities names {name!r} {names.count(name)} times. Give each"
        " modality a name of its own."
      )
  return specs


def _parse_one(entry: str) -> ModalitySpec:
  where = f"data.modalities: {entry!r}"
  words = entry.split()
  if len(words) not in (3, 4):
    raise UserError(f"{where} has {len(words)} words, but an entry is {_FORM}.")
  name, shape, likelihood = words[:3]
  if not name.isidentifier():
    raise UserError(
      f"{where}: the name {name!r} must consist of letters, digits and _, and"
      " not begin with a digit."
    )
  if name in RESERVED:
    raise UserError(
      f"{where}: {name!r} is another entry of a batch. Choose a name that is"
      f" none of {', '.join(RESERVED)}."
    )
  if not re.fullmatch(r"[1-9]\d{0,8}(x[1-9]\d{0,8})*", shape, re.ASCII):
    raise UserError(
      f"{where}: the shape {shape!r} must be whole numbers from 1, joined by"
      " x, such as 28x28x1 or 10."
    )
  if not likelihood.isidentifier():
    raise UserError(
      f"{where}: {likelihood!r} must be the name of a likelihood, such as l1,"
      " l2, bernoulli or categorical."
    )
  return ModalitySpec(
    name,
    tuple(map(int, shape.split("x"))),
    likelihood,
    _weight(words[3], where) if len(words) > 3 else None,
  )


def _weight(word: str, where: str) -> float | Literal["size"]:
  if word == "size":
    return "size"
  try:
    weight = float(word)
  except ValueError:
    weight = math.nan
  if not 0 < weight < math.inf:
    raise UserError(
      f"{where}: the weight {word!r} must be a number > 0, or size."
    )
  return weight


def chosen(
  entries: Sequence[str], there: Sequence[str], source: str
) -> tuple[str, ...]:
  """Names of a source's modalities that `data.modalities` names.

  Args:
    entries: `data.modalities`; empty for all.
    there: what the source has.
    source: its name, for messages.

  Returns:
    In the order of `there`.

  Raises:
    UserError: the source has no such modality.
  """
  named = [spec.name for spec in parse(entries)]
  for name in named:
    if name not in there:
      raise UserError(
        f"data.modalities names {name!r}, which data.source={source} does not"
        f" have; it has {', '.join(there)}."
      )
  return tuple(name for name in there if name in named or not named)

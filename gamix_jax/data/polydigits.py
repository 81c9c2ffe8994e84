"""`polydigits`: five views of a digit, in colour, without any download.

Each view of an observation is another one of scikit-learn's digits of the same
class, enlarged, on a background of that view's own (see `backgrounds`) whose
colours the digit inverts, as in PolyMNIST (Sutter et al., arXiv:2105.02470). So
the views have the class in common, and nothing else.

The views are m0 to m4, uint8 16x16x3; those that `data.modalities` names are
made. The 1,797 digits are split by hash, as those of the source `digits` are,
and each digit is in several observations: 5,000 of them for training and 1,000
for the test. All is a function of the split, of `data.test_fraction` and of the
option:

    translated    0: a digit has 14 of the 16 pixels. 1: 12 of them, 3/4 of the
                  view as in Sutter et al., arXiv:2403.05300. The place is
                  random in both.

    polydigits?translated=1
"""

from collections.abc import Sequence

import numpy as np

from gamix_jax.data import backgrounds, options, pairing
from gamix_jax.data.builtin import Digits
from gamix_jax.data.modalities import chosen
from gamix_jax.data.multimodal import MultimodalArrays
from gamix_jax.data.settings import Settings

ROWS = {"train": 5000, "test": 1000}
VIEWS = tuple(f"m{i}" for i in range(backgrounds.VIEWS))
SIZE = 16
_DIGIT = 14  # pixels of a digit
_SMALL = 12  # of a translated digit
_OPTIONS = {"translated": options.Integer(0, 0, 1)}


class Polydigits(MultimodalArrays):
  """One split, in memory.

  Attributes:
    digits: which digit each view shows: index into the split of the source
      `digits`, int [n, 5].
  """

  def __init__(self, rest: str, split: str, settings: Settings, seed: int):
    """Makes the views that `data.modalities` names, or all if it is empty.

    Raises:
      UserError: an unknown option, or `data.modalities` names a view that there
        is not.
    """
    del seed
    values = options.parse("polydigits", rest.removeprefix("?"), _OPTIONS)
    names = chosen(settings.modalities, VIEWS, "polydigits")
    digits = Digits("", split, settings, 0)
    n, labels = ROWS[split], digits.labels()
    key = (77, split == "test")
    rounds = -(-n // len(labels))
    self.digits = np.concatenate(
      [
        pairing.within_class(
          labels, len(VIEWS), np.random.default_rng((*key, 0, r))
        )
        for r in range(rounds)
      ]
    )[:n]
    ink = _enlarged(
      [digits[i]["image"] for i in range(len(digits))],
      _SMALL if values["translated"] else _DIGIT,
    )
    super().__init__(
      {
        name: _view(
          VIEWS.index(name),
          ink[self.digits[:, VIEWS.index(name)]],
          np.random.default_rng((*key, 1, VIEWS.index(name))),
        )
        for name in names
      },
      labels[self.digits[:, 0]],
      title=f"polydigits/{split}",
      total=sum(ROWS.values()),
      label_names=digits.label_names,
    )


def _enlarged(images: Sequence[np.ndarray], side: int) -> np.ndarray:
  """The ink of each digit, 0 to 1: float32 [n, side, side]."""
  import cv2  # noqa: PLC0415

  size = (side, side)
  large = [
    cv2.resize(image.astype(np.float32), size, interpolation=cv2.INTER_CUBIC)
    for image in images
  ]
  # Strokes that are thinner than a pixel of the 8x8 are pale; they become full.
  return np.clip((np.stack(large) / 255 - 0.15) / 0.6, 0, 1)


def _view(view: int, ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Digits on a view's background: uint8 [n, SIZE, SIZE, 3].

  Args:
    view: from 0.
    ink: of the digits, float [n, side, side].
    rng: chooses the places of digits and backgrounds.
  """
  n, side = ink.shape[:2]
  room = SIZE - side + 1
  padded = np.zeros((n, SIZE, SIZE), np.float32)
  place = rng.integers(room, size=(n, 2))
  for y in range(room):
    for x in range(room):
      here = (place == (y, x)).all(1)
      padded[here, y : y + side, x : x + side] = ink[here]
  under = backgrounds.crop(backgrounds.drawn(view), rng.random((n, 2)), SIZE)
  under = under.astype(np.float32)
  return np.round(under + padded[..., None] * (255 - 2 * under)).astype(
    np.uint8
  )

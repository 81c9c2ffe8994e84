"""`polymnist:<where>`: five views of a digit of MNIST on pictures in colour.

As in Sutter et al., arXiv:2105.02470, and translated as in Sutter et
al., arXiv:2403.05300. Each view of an observation shows another image of the
same class, on a random 28x28 crop of the picture of that view. Where the image
is 128 or more, the crop's colours are inverted. The views are m0 to m4, uint8
28x28x3; those that `data.modalities` names are made.

`where` says which images, see `mnist`: `polymnist:idx:/data/mnist`. There are
as many observations as images in the split, and each view shows each image
once. Options:

    translated    0: the image as it is. 1: at 3/4 of its size, 21x21, at a
                  random place in the view.
    backgrounds   code: drawn by code, with colours that leave every digit
                  legible. pictures: of scikit-image.
    rows          the number of observations; by default all.

    polymnist:idx:/data/mnist?translated=1&backgrounds=pictures

An observation is made when it is asked for, and is a function of the images,
the split, the index and the first two options.
"""

from typing import Any

import numpy as np

from gamix_jax.data import backgrounds, mnist, options, pairing
from gamix_jax.data.modalities import chosen
from gamix_jax.data.multimodal import MultimodalSource
from gamix_jax.data.settings import Settings
from gamix_jax.data.source import hash_parts

VIEWS = tuple(f"m{i}" for i in range(backgrounds.VIEWS))
SIZE = 28
_SMALL = 21  # of a translated digit
_BLACK = 128  # pixels from here on are the digit
_OPTIONS = {
  "translated": options.Integer(0, 0, 1),
  "backgrounds": options.Choice(("code", "pictures")),
  "rows": options.Integer(None, 1),
}
_VERSION = 1  # of the pixels: raise it when what is drawn changes


class Polymnist(MultimodalSource):
  """One split.

  Attributes:
    images: which image each view shows: index into the split of `where`,
      int [n, 5].
  """

  takes_range = True
  resolve_rest = staticmethod(mnist.resolve_where)
  arrays = {}  # noqa: RUF012  (nothing is made in advance)

  def __init__(self, rest: str, split: str, settings: Settings, seed: int):
    """Reads the images, which stay in memory, and chooses pairs and places.

    Raises:
      UserError: the images cannot be opened or have no labels, an unknown
        option or view, or scikit-image is needed and not installed.
    """
    del seed
    where, given = options.split(rest)
    values = options.parse("polymnist", given, _OPTIONS)
    self.names = chosen(settings.modalities, VIEWS, "polymnist")
    size = _SMALL if values["translated"] else SIZE
    dataset, images, labels = mnist.open_images(
      "polymnist", where, split, settings, (size, size, 1)
    )
    n = len(images)
    self._digits = images[..., 0] >= _BLACK
    key = (78, split == "test")
    rows = min(n, values["rows"] or n)
    self.images = pairing.within_class(
      labels, len(VIEWS), np.random.default_rng((*key, 0))
    )[:rows]
    draw = {"code": backgrounds.drawn, "pictures": backgrounds.picture}
    self._views = {name: VIEWS.index(name) for name in self.names}
    self._under = {
      name: draw[values["backgrounds"]](view)
      for name, view in self._views.items()
    }
    self._places = {
      name: np.random.default_rng((*key, 1, view)).random((n, 4))[:rows]
      for name, view in self._views.items()
    }
    self.mask = np.ones((rows, len(self.names)), bool)
    self._labels = labels[:rows]
    self._title = f"polymnist/{split}"
    self.label_names = dataset.label_names
    self.total = dataset.source.total
    self._made_of = (dataset.fingerprint(), *values.items(), *self.names)

  def views(self, name: str, rows: np.ndarray) -> np.ndarray:
    """One view of several observations.

    Args:
      name: of the view.
      rows: indices, int [b].

    Returns:
      uint8 [b, 28, 28, 3], a new array.
    """
    places = self._places[name][rows]
    made = backgrounds.crop(self._under[name], places[:, :2], SIZE)
    digits = self._digits[self.images[rows, self._views[name]]]
    side = digits.shape[1]
    corners = (places[:, 2:] * (SIZE - side + 1)).astype(int)
    for image, digit, (y, x) in zip(
      made, digits, corners.tolist(), strict=True
    ):
      window = image[y : y + side, x : x + side]
      # An inverted byte is 255 minus it: its exclusive or with 255.
      window ^= np.where(digit, np.uint8(255), np.uint8(0))[..., None]
    return made

  def read(self, i: int, name: str) -> np.ndarray:
    """One view of observation i: uint8 [28, 28, 3]."""
    return self.views(name, np.array([i]))[0]

  def labels(self) -> np.ndarray:
    """The class that all views of an observation have."""
    return self._labels

  def name(self, i: int) -> str:
    """Split and index."""
    return f"{self._title}[{i}]"

  def fingerprint(self) -> str:
    """Of the images, the options and the views."""
    of: tuple[Any, ...] = (_VERSION, len(self), self._title, *self._made_of)
    return hash_parts([repr(of).encode()])

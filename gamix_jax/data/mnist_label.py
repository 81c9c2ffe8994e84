"""`mnist_label:<where>`: an image, and its class as a second modality.

    image   uint8 28x28x1, or of the size that `data.modalities` has
    digit   the class, one-hot: float32 [10]

`where` says which images, see `mnist`; any with labels will do.
`mnist_label:digits` needs no download.
"""

import numpy as np

from gamix_jax.data import mnist, options
from gamix_jax.data.modalities import chosen
from gamix_jax.data.multimodal import MultimodalArrays
from gamix_jax.data.settings import Settings

NAMES = ("image", "digit")


class MnistLabel(MultimodalArrays):
  """One split, in memory."""

  takes_range = True
  resolve_rest = staticmethod(mnist.resolve_where)

  def __init__(self, rest: str, split: str, settings: Settings, seed: int):
    """Reads the images.

    Raises:
      UserError: the images cannot be opened or have no labels, an option, or
        `data.modalities` has another name.
    """
    del seed
    where, given = options.split(rest)
    options.parse("mnist_label", given, {})
    names = chosen(settings.modalities, NAMES, "mnist_label")
    shapes = {spec.name: spec.shape for spec in settings.modality_specs}
    shape = shapes.get("image", ())
    if len(shape) != 3 or shape[2] not in (1, 3):
      shape = (28, 28, 1)
    dataset, images, labels = mnist.open_images(
      "mnist_label", where, split, settings, shape
    )
    # A split need not have the last class.
    classes = max(labels.max() + 1, shapes.get("digit", (0,))[-1])
    one_hot = np.eye(classes, dtype=np.float32)[labels]
    arrays = {"image": images, "digit": one_hot}
    super().__init__(
      {name: arrays[name] for name in names},
      labels,
      title=f"mnist_label/{split}",
      total=dataset.source.total,
      label_names=dataset.label_names,
    )

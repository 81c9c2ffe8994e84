"""Evaluates both sides' images with the same metrics and pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.quality.rows import Images
from gamix_jax import metrics, pictures

MAX_CLASSIFIED = 20_000  # maximum number of training images for the classifier
SEED = 0  # of the classifier and of the random network
COLUMNS, ROWS = 16, 2  # of images per kind in a picture
DPI = 100


class Judge:
  """Evaluates images of one task.

  Attributes:
    extractors: {"classifier" or "random": features of images}.
    accuracy: the classifier's accuracy on the held-out images; None without
      a classifier.
  """

  def __init__(self, images: Images, features: Sequence[str], cache: Path):
    """Trains the classifier, or loads it from `cache`.

    Images without labels, or of a single class, have no classifier.
    """
    self._images, self._test = images, pictures.to_float(images.test)
    self.extractors, self.accuracy = {}, None
    labels = images.train_labels[:MAX_CLASSIFIED]
    for name in features:
      if name == "random":
        shape = images.test.shape[1:]
        self.extractors[name] = metrics.random_features(shape, SEED)
      elif labels.min() >= 0 and len(np.unique(labels)) > 1:
        found = metrics.classifier_features(
          images.train[:MAX_CLASSIFIED], labels, SEED, cache
        )
        self.accuracy = found.accuracy(self._test, images.test_labels)
        self.extractors[name] = found
    self._real = {k: f(self._test) for k, f in self.extractors.items()}

  def __call__(
    self, reconstructions: np.ndarray, samples: np.ndarray
  ) -> dict[str, Any]:
    """Computes metrics of uint8 images [n, h, w, c], as many as are held out.

    Returns:
      {"mae": in [-1, 1], "features": {extractor: {"fd_reconstructions",
      "fd_prior", and of the samples "precision", "recall", "density",
      "coverage"}}}.
    """
    expected = self._images.test.shape
    if not reconstructions.shape == samples.shape == expected:
      raise ValueError(
        f"{reconstructions.shape} and {samples.shape} must be {expected}"
      )
    made, drawn = pictures.to_float(reconstructions), pictures.to_float(samples)
    found = {}
    for name, extract in self.extractors.items():
      real, drawn_features = self._real[name], extract(drawn)
      found[name] = {
        "fd_reconstructions": metrics.frechet_distance(extract(made), real),
        "fd_prior": metrics.frechet_distance(drawn_features, real),
        **metrics.prdc(real, drawn_features),
      }
    error = np.abs(made - self._test).mean(dtype=np.float64)
    return {"mae": float(error), "features": found}


def picture(path: Path, kinds: Mapping[str, np.ndarray]) -> None:
  """Writes a PNG of the first images of each kind, uint8 [n, h, w, c].

  Raises:
    OSError: if it cannot be written.
  """
  grids = {
    k: pictures.grid(pictures.to_float(v[: COLUMNS * ROWS]), COLUMNS)
    for k, v in kinds.items()
  }
  height, width = next(iter(grids.values())).shape[:2]
  margin, gap = 130, 8  # pixels
  size = margin + width, len(grids) * (height + gap)
  fig = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI)
  FigureCanvasAgg(fig)
  for i, (name, grid) in enumerate(grids.items()):
    top = (i + 1) * (height + gap) - gap
    place = (margin / size[0], 1 - top / size[1])
    ax = fig.add_axes((*place, width / size[0], height / size[1]))
    ax.imshow(grid, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    ax.set_axis_off()
    words = dict(ha="right", va="center", fontsize=10)
    ax.text(-0.008, 0.5, name, transform=ax.transAxes, **words)
  fig.savefig(path, format="png")

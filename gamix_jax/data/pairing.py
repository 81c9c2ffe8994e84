"""Views of one class: which image each view of an observation shows."""

import numpy as np


def within_class(
  labels: np.ndarray, views: int, rng: np.random.Generator
) -> np.ndarray:
  """Pairs images of the same class, at random.

  Row i has images of class `labels[i]`. Each view has each image once, so it is
  a permutation of the images; and a row's images differ, if its class has at
  least as many images as there are views.

  Args:
    labels: of the images, int [n].
    views: number of views m.
    rng: chooses the pairs.

  Returns:
    Indices of images, int32 [n, m].
  """
  n = len(labels)
  in_class = np.argsort(labels, kind="stable")
  shuffled = np.lexsort((rng.random(n), labels))
  _, starts, counts = np.unique(
    labels[in_class], return_index=True, return_counts=True
  )
  start, count = np.repeat(starts, counts), np.repeat(counts, counts)
  place = np.arange(n) - start
  found = np.empty((n, views), np.int32)
  for view in range(views):
    # The class's images in a ring, in a random order; each view is a place
    # further than the one before, so that no row has an image twice.
    found[in_class, view] = shuffled[start + (place + view) % count]
  return found

"""Completions of incomplete images, of models trained with `data.occlude`."""

from typing import Any

import jax
import numpy as np

from gamix_jax import metrics, occlusion, pictures
from gamix_jax.evaluate.eval_inputs import EvalInputs
from gamix_jax.evaluate.results import Results

CHUNK = 128  # images whose completions are held at a time
CLASSES = ("completion_classes", "completion_right", "completion_covers")


def measure(inputs: EvalInputs, key: jax.Array, numbers: Results) -> None:
  """Adds the numbers of the section "Completions".

  Args:
    inputs: of a model with `data.occlude`; up to `eval.bound_images` images.
    key: of the draws of z.
    numbers: where they are added.
  """
  n = min(len(inputs.images), inputs.settings.bound_images)
  draws = inputs.settings.completions
  classify = getattr(inputs.features.extract, "with_classes", None)
  several = inputs.model.config.posterior.components > 1
  own = {"images": n, "completions": draws}
  each: dict[str, list[np.ndarray]] = {}
  for start in range(0, n, CHUNK):
    rows = slice(start, min(start + CHUNK, n))
    part_key = jax.random.fold_in(key, start)
    for name, values in _of_part(inputs, rows, part_key, classify).items():
      each.setdefault(name, []).append(values)
  for name, parts in each.items():
    value = metrics.mean_and_error(np.concatenate(parts))
    numbers.add(name, value, **own)
  if classify is None:
    reason = "the features are not those of a classifier"
    names = [*CLASSES, *(["component_classes"] if several else [])]
    numbers.missing(names, reason, **own)


def _of_part(
  inputs: EvalInputs, rows: slice, key: jax.Array, classify: Any
) -> dict[str, np.ndarray]:
  """The numbers of each image of a part."""
  model, q = inputs.model, jax.tree.map(lambda v: v[rows], inputs.q)
  x = pictures.to_float(inputs.images.x[rows])
  labels = inputs.images.labels[rows]
  index = np.arange(rows.start, rows.stop)
  hidden = np.asarray(occlusion.mask(model.hidden(index), x.shape[1:]))
  z = np.asarray(q.independent(key, inputs.settings.completions))
  equal = np.full(z.shape[:2], 1 / len(z))
  completed = model.decode(z)
  found = metrics.completion_errors(x, completed, hidden)
  found["completion_diversity"] = metrics.diversity(completed, equal, hidden)
  if classify is not None:
    classes = _classes(classify, completed)
    right = classes == labels
    found["completion_classes"] = metrics.effective_number(classes, equal)
    found["completion_right"] = right.mean(axis=0)
    found["completion_covers"] = right.any(axis=0).astype(float)
  weights, mu, _ = (np.asarray(v) for v in q.components())
  if weights.shape[1] > 1:
    of_means = model.decode(mu.swapaxes(0, 1))
    found["component_diversity"] = metrics.diversity(
      of_means, weights.T, hidden
    )
    if classify is not None:
      found["component_classes"] = metrics.effective_number(
        _classes(classify, of_means), weights.T
      )
  return found


def _classes(classify: Any, x: np.ndarray) -> np.ndarray:
  """The classes [s, n] of images [s, n, h, w, c], as 8 bits."""
  s, n = x.shape[:2]
  shown = pictures.to_float(pictures.to_uint8(x.reshape(s * n, *x.shape[2:])))
  return classify(shown)[1].reshape(s, n)

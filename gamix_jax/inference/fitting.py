"""Samplers fitted to a run's own training images, where they are not yet."""

from collections.abc import Callable

import numpy as np
import tqdm

from gamix_jax import data
from gamix_jax.errors import UserError
from gamix_jax.inference.device import PATIENCE
from gamix_jax.inference.model import Model
from gamix_jax.inference.samplers import COMPONENTS

FITTED = ("population", "gmm")  # of the sources
IMAGES = 10_000  # training images that are enough, unless told otherwise


def read_images(
  dataset: data.Dataset, indices: np.ndarray | range
) -> tuple[np.ndarray, np.ndarray]:
  """uint8 images [n, h, w, c] and labels [n] (-1: none) by their indices."""
  found = [
    dataset[int(i)]
    for i in tqdm.tqdm(indices, delay=PATIENCE, disable=None, leave=False)
  ]
  return (
    np.stack([f["image"] for f in found]),
    np.array([f["label"] for f in found]),
  )


def ensure_fitted(
  model: Model,
  source: str,
  *,
  images: int | None = None,
  components: int | str | None = None,
  say: Callable[[str], None] = print,
) -> None:
  """Has a source of latents ready: fits it if it needs that and is not.

  Args:
    model: of `load`; its config says which data to open.
    source: see `Model.draw_latents`.
    images: training images to fit to, chosen by the run's seed; None: what
      there is already, or IMAGES (all, if there are fewer).
    components: of the mixture, see `Model.fit_samplers`; None: what there is
      already, or 10, of few images a tenth of them.
    say: told what is done, a line.

  Raises:
    UserError: a source that this model cannot have; images under 1; the data
      cannot be opened; as `Model.fit_samplers`.
  """
  model.check_source(source)
  if source not in FITTED:
    return
  if images is not None and images < 1:
    raise UserError(f"{images} training images cannot be fitted to; 1 or more.")
  there, config = model.fitted, model.config
  if there is not None:
    fits = (
      components is None or components in (there.get(k) for k in _ASKED)
    ) and (images is None or images == there["images"])
    if fits:
      return
  dataset = data.open_dataset(config.data, "train", config.seed)
  n = min(images or IMAGES, len(dataset))
  rng = np.random.default_rng(config.seed % 2**63)
  chosen = np.sort(rng.permutation(len(dataset))[:n])
  say(f"Fitting the population and a mixture to {n} training images.")
  x, _ = read_images(dataset, chosen)
  about = model.fit_samplers(
    x,
    seed=config.seed,
    components=components or min(COMPONENTS, max(1, n // 10)),
  )
  if "components" in about:
    say(
      f"The mixture has {about['components']} components of "
      f"{about['covariance']} covariance."
    )


_ASKED = ("components", "chosen_by")  # what --components may have said

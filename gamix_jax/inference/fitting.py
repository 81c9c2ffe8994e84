"""Fits samplers to a run's own training data, unless already fitted."""

from collections.abc import Callable

import numpy as np
import tqdm

from gamix_jax import data
from gamix_jax.errors import UserError
from gamix_jax.inference.base import LoadedModel
from gamix_jax.inference.device import PROGRESS_DELAY
from gamix_jax.inference.samplers import COMPONENTS

FITTED = ("population", "gmm", "two_stage")  # the sources that need fitting
DEFAULT_IMAGES = 10_000  # training images or observations to fit to
CHUNK = 256  # observations that are read at a time


def read_images(
  dataset: data.Dataset, indices: np.ndarray | range
) -> tuple[np.ndarray, np.ndarray]:
  """Reads uint8 images [n, h, w, c] and labels [n] (-1 if unlabelled)."""
  examples = [
    dataset[int(i)]
    for i in tqdm.tqdm(indices, delay=PROGRESS_DELAY, disable=None, leave=False)
  ]
  return (
    np.stack([example["image"] for example in examples]),
    np.array([example["label"] for example in examples]),
  )


def read_observations(
  dataset: data.MultimodalDataset, indices: np.ndarray | range
) -> dict[str, np.ndarray]:
  """Reads observations of several modalities, with "mask" and "label".

  As `MultimodalDataset.load_batch`; what is missing is zeros.
  """
  chunks = range(0, len(indices), CHUNK)
  parts = [
    dataset.load_batch(np.asarray(indices[start : start + CHUNK]))
    for start in tqdm.tqdm(
      chunks, delay=PROGRESS_DELAY, disable=None, leave=False
    )
  ]
  return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


def ensure_fitted(
  model: LoadedModel,
  source: str,
  *,
  images: int | None = None,
  components: int | str | None = None,
  say: Callable[[str], None] = print,
) -> None:
  """Fits a source of latents if it needs fitting and is not fitted yet.

  Args:
    model: returned by `load`; its config names the dataset.
    source: see `Model.draw_latents`.
    images: number of training images to fit to, chosen by the run's seed; None
      accepts an existing fit, else uses DEFAULT_IMAGES or all if there are
      fewer.
    components: of the mixture, see `Model.fit_samplers`; None accepts an
      existing fit, else uses 10, or n // 10 for n < 100 images.
    say: called with each progress line.

  Raises:
    UserError: as `Model.fit_samplers`, if the model does not support the
      source, if images < 1, or if the data cannot be opened.
  """
  model.check_source(source)
  if source not in FITTED:
    return
  if images is not None and images < 1:
    raise UserError(f"--fit_images={images} must be 1 or more.")
  fitted, config = model.fitted, model.config
  if fitted is not None:
    same_components = components is None or components in (
      fitted.get("components"),
      fitted.get("chosen_by"),
    )
    complete = source != "two_stage" or "two_stage_steps" in fitted
    same_images = images is None or images == fitted["images"]
    if same_components and same_images and complete:
      return
    if same_components and same_images:  # only the second VAE is missing
      images = fitted["images"]
      chosen_by, number = fitted["chosen_by"], fitted["components"]
      components = "bic" if chosen_by == "bic" else number
  dataset = data.open_dataset(config.data, "train", config.seed)
  n = min(images or DEFAULT_IMAGES, len(dataset))
  rng = np.random.default_rng(config.seed % 2**63)
  chosen = np.sort(rng.permutation(len(dataset))[:n])
  if model.spec.multimodal:
    what, x = "observations", read_observations(dataset, chosen)
  else:
    what, (x, _) = "images", read_images(dataset, chosen)
  second = ", and a second VAE" if source == "two_stage" else ""
  say(f"Fitting the population and a mixture to {n} training {what}{second}.")
  about = model.fit_samplers(
    x,
    seed=config.seed,
    components=components or min(COMPONENTS, max(1, n // 10)),
    two_stage=source == "two_stage",
  )
  if "components" in about:
    say(
      f"The mixture has {about['components']} components with "
      f"{about['covariance']} covariance."
    )

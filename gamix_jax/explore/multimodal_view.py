"""Computes what the page of several modalities shows; without Gradio."""

import base64
import dataclasses
import html
import io
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from PIL import Image

from gamix_jax import data, pictures
from gamix_jax.errors import UserError
from gamix_jax.inference import MultimodalModel
from gamix_jax.inference.fitting import read_observations
from gamix_jax.modality import MASK

OBSERVATIONS = 512  # held-out observations to choose from
SAMPLES = 8
NUMBERS = 6  # of an array that are written out
SIDE = "clamp(52px, 8vw, 96px)"  # five beside each other on a phone


@dataclasses.dataclass(frozen=True)
class Shown:
  """A value of a modality: a picture, uint8 [h, w] or [h, w, 3], or words."""

  image: np.ndarray | None = None
  words: str = ""


class MultimodalView:
  """A model of several modalities and observations of its run's data.

  Attributes:
    model: see `gamix_jax.load`.
    observations: {modality: [n, *shape], "mask": [n, m]}.
    held_out: whether they are real ones, not samples of the model.
  """

  def __init__(
    self,
    model: MultimodalModel,
    observations: Mapping[str, np.ndarray],
    held_out: bool = True,
  ) -> None:
    """Keeps the observations; what they must be, see `MultimodalModel`."""
    self.model, self.held_out = model, held_out
    names = (*model.names, MASK)
    self.observations = {k: v for k, v in observations.items() if k in names}

  def __len__(self) -> int:
    """The number of observations."""
    return len(self.observations[self.model.names[0]])

  @property
  def has_samples(self) -> bool:
    """Whether new observations can be drawn without training data."""
    source = self.model.default_source
    return source == "prior" or self.model.fitted is not None

  def observation(self, i: int) -> dict[str, Shown]:
    """The modalities of observation i; "missing" where there is none."""
    mask = self.observations.get(MASK)
    return {
      k: self._shown(k, self.observations[k][i])
      if mask is None or mask[i, m] > 0
      else Shown(words="missing")
      for m, k in enumerate(self.model.names)
    }

  def translations(
    self, i: int, given: Sequence[str], seed: int | None = None
  ) -> dict[str, Shown]:
    """All modalities of observation i, generated from the given ones.

    Args:
      i: index of the observation.
      given: names of one modality or more.
      seed: of a draw of the posterior; None decodes its mean.

    Raises:
      UserError: if nothing is given, if the observation lacks it, or if the
        seed is out of range.
    """
    if not given:
      raise UserError("Choose at least one modality that is given.")
    x = {k: v[i : i + 1] for k, v in self.observations.items()}
    key = None if seed is None else _key(seed)
    made = self.model.translate(x, given, self.model.names, key)
    return {k: self._shown(k, v[0]) for k, v in made.items()}

  def samples(self, seed: int, temperature: float) -> list[dict[str, Shown]]:
    """New observations.

    Raises:
      UserError: if the temperature is negative or the seed out of range.
    """
    made = self.model.sample(
      _key(seed),
      SAMPLES,
      source=self.model.default_source,
      temperature=temperature,
    )
    return [
      {k: self._shown(k, v[i]) for k, v in made.items()} for i in range(SAMPLES)
    ]

  def _shown(self, name: str, value: np.ndarray) -> Shown:
    modality = self.model.spec.modalities[name]
    if modality.is_image:
      image = value if value.dtype == np.uint8 else pictures.to_uint8(value)
      return Shown(image[..., 0] if image.shape[-1] == 1 else image)
    if modality.likelihood.categorical and len(modality.shape) == 1:
      return Shown(words=f"{np.argmax(value)} ({np.max(value):.2f})")
    flat = np.ravel(value)
    words = ", ".join(f"{v:.3g}" for v in flat[:NUMBERS])
    return Shown(words=words + ", ..." * (len(flat) > NUMBERS))


def held_out(model: MultimodalModel) -> dict[str, np.ndarray]:
  """Loads held-out observations of the run's data, with their mask.

  Raises:
    UserError: as `data.open_dataset`.
  """
  dataset = data.open_dataset(model.config.data, "test", model.config.seed)
  n = min(len(dataset), OBSERVATIONS)
  return read_observations(dataset, range(n))


def stand_ins(model: MultimodalModel) -> dict[str, np.ndarray]:
  """Samples of the model, for use where its data are not at hand.

  Raises:
    UserError: if the model has no prior to sample from.
  """
  return model.sample(jax.random.key(0), OBSERVATIONS)


def columns_html(columns: Sequence[tuple[str, Sequence[Shown]]]) -> str:
  """Lays columns of pictures and words out, as many in a row as fit.

  Args:
    columns: a title and the values below each other.
  """
  cells = "".join(
    f'<figure style="margin:0;width:{SIDE}"><figcaption style="font-size:12px;'
    f'overflow-wrap:anywhere">{html.escape(title)}</figcaption>'
    f"{''.join(map(_cell, values))}</figure>"
    for title, values in columns
  )
  return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{cells}</div>'


def _cell(shown: Shown) -> str:
  style = f"display:block;width:{SIDE};height:{SIDE};margin-bottom:4px"
  if shown.image is None:
    return (
      f'<div style="{style};font-size:12px;overflow:hidden">'
      f"{html.escape(shown.words)}</div>"
    )
  file = io.BytesIO()
  Image.fromarray(shown.image).save(file, "png")
  url = base64.b64encode(file.getvalue()).decode()
  style += ";object-fit:contain;image-rendering:pixelated"
  return f'<img alt="" style="{style}" src="data:image/png;base64,{url}">'


def _key(seed: int) -> jax.Array:
  if seed < 0 or seed >= 2**32:
    raise UserError(f"The seed {seed} must be from 0 to {2**32 - 1}.")
  return jax.random.key(seed)

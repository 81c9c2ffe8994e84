"""`MultimodalModel`: the inference API of a model of several modalities.

    model = gamix_jax.load("runs/polydigits")
    q = model.encode({"m0": x})                 # given one modality only
    model.translate({"m0": x}, to=("m1", "m2"))
    model.sample(key, 16)["m3"]

Observations are a dict {modality: array [b, *shape]} of any subset of the
modalities: images are uint8 or floats in [-1, 1], classes are whole numbers
[b, ...] or probabilities [b, ..., classes], everything else is floats. In the
optional entry "mask" [b, m] a 0 marks a modality that an observation lacks; m
follows `names`. Batches of a `MultimodalDataset` are such dicts.

Outputs are NumPy arrays by modality: the means of the likelihoods, clipped to
[-1, 1] for images, probabilities for classes.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.typing import ArrayLike

from gamix_jax.errors import UserError
from gamix_jax.inference import arrays, samplers
from gamix_jax.inference.base import LoadedModel
from gamix_jax.modality import MASK, to_float
from gamix_jax.posterior import Posterior
from gamix_jax.registry import check_choice

Observations = Mapping[str, ArrayLike]
Names = Sequence[str] | str


class MultimodalModel(LoadedModel):
  """A trained model of several modalities; `load` returns one.

  The attributes are those of `LoadedModel`.
  """

  @property
  def names(self) -> tuple[str, ...]:
    """The modalities, in the order of the mask's columns."""
    return tuple(self.spec.modalities)

  @property
  def trained_sizes(self) -> tuple[int, ...]:
    """How many modalities can be given; see `MultimodalVAE.trained_sizes`."""
    observed = self.config.multimodal.observed_sizes
    return self.spec.vae.trained_sizes(observed)

  def check_trained(self, sizes: ArrayLike) -> None:
    """Checks that the model has learned to encode so many modalities.

    Args:
      sizes: numbers of modalities, of one or more observations.

    Raises:
      UserError: one is not in `trained_sizes`.
    """
    other = np.setdiff1d(np.asarray(sizes, int), self.trained_sizes)
    if not len(other):
      return
    config, m = self.config, len(self.names)
    trained = " or ".join(map(str, self.trained_sizes))
    raise UserError(
      f"{other[0]} of {m} modalities are given, but multimodal.fusion="
      f"{config.multimodal.fusion!r} with objective.name="
      f"{config.objective.name!r} was trained on {trained} only, so its "
      f"posterior given {other[0]} is arbitrary. Give {trained}, or train with "
      "--config.objective.name=masked, with --config.data.missing=0.5 or with "
      "another fusion, such as poe."
    )

  def _observations(self, x: Observations) -> dict[str, np.ndarray]:
    x = arrays.observations(self.spec, x)
    self.check_trained(x[MASK].sum(axis=1))
    return x

  # --- encode and decode ---------------------------------------------------

  def encode(self, x: Observations) -> Posterior:
    """Computes q(z | what is observed) of b observations.

    Args:
      x: {modality: [b, *shape]} of one or more modalities, optionally "mask".

    Returns:
      A pytree of JAX arrays with `mean()`, `sample(key, n)`, `log_prob(z)`,
      ..., see `posterior.base` and `multimodal.posteriors`.

    Raises:
      UserError: a modality that the model does not have, or none; arrays of
        different lengths, or of a wrong shape, type or range; a row of which
        nothing is observed, or more or fewer modalities than in training, see
        `check_trained`.
    """
    return super().encode(x)

  def decode(self, z: ArrayLike, *, raw: bool = False) -> dict[str, np.ndarray]:
    """Decodes latents to all modalities.

    Args:
      z: [..., d], all latents of an observation.
      raw: whether to return the decoders' unbounded outputs, such as logits.

    Returns:
      {modality: [..., *shape]}, the likelihoods' means; images are clipped to
      [-1, 1].

    Raises:
      UserError: if shape or dtype is wrong, or a value is not finite.
    """
    return self._decode(z, self.names, raw=raw)

  def _decode(
    self, z: ArrayLike, names: Sequence[str], *, raw: bool = False
  ) -> dict[str, np.ndarray]:
    latent = self.spec.vae.latent
    z = arrays.latents(z, latent, self.spec.dtype)
    x_hat = self._device.decode(z.reshape(-1, latent), names, raw=raw)
    return {k: v.reshape(*z.shape[:-1], *v.shape[1:]) for k, v in x_hat.items()}

  def reconstruct(self, x: Observations) -> dict[str, np.ndarray]:
    """Decodes the posterior means.

    Args:
      x: see `encode`.

    Returns:
      {modality: [b, *shape]} of the modalities in x. Where the mask says that
      one is missing, it is what the others say about it.

    Raises:
      UserError: as `encode`.
    """
    z = self.encode(x).mean()
    return self._decode(z, [k for k in self.names if k in x])

  # --- from some modalities to others --------------------------------------

  def translate(
    self,
    x: Observations,
    from_: Names | None = None,
    to: Names | None = None,
    key: jax.Array | None = None,
  ) -> dict[str, np.ndarray]:
    """Generates modalities given others.

    Args:
      x: see `encode`.
      from_: the modalities that are given; all others in x are not looked at.
        Default: those in x.
      to: the modalities that are generated. Default: all that are not given.
      key: of a draw of z for each observation; None decodes the posterior
        mean.

    Returns:
      {modality: [b, *shape]} of those in `to`.

    Raises:
      UserError: as `encode`; a row that has none of the modalities in
        `from_`; a name that is not a modality, or nothing to generate.

    Example:
      >>> five = gamix_jax.load("pretrained:polydigits")
      >>> grey = np.zeros((2, 16, 16, 3))
      >>> views = five.translate({"m0": grey}, to=("m1", "m4"))
      >>> {name: x_hat.shape for name, x_hat in views.items()}
      {'m1': (2, 16, 16, 3), 'm4': (2, 16, 16, 3)}
    """
    x = arrays.observations(self.spec, x)
    given = self._chosen("from_", from_, self._in(x))
    rest = tuple(k for k in self.names if k not in given)
    to = self._chosen("to", to, rest)
    if not to:
      raise UserError(
        "All modalities are given, so there is nothing to generate; choose "
        f"from_ or to among {', '.join(self.names)}."
      )
    x = self._only(x, given, "from_")
    self.check_trained(x[MASK].sum(axis=1))
    return self._decode(self._latents(x, key), to)

  def impute(
    self,
    x: Observations,
    mask: ArrayLike | None = None,
    *,
    key: jax.Array | None = None,
  ) -> dict[str, np.ndarray]:
    """Fills missing modalities with what the observed ones say about them.

    Args:
      x: see `encode`.
      mask: [b, m], 1 where a modality is observed; in place of that in x.
      key: of a draw of z for each observation; None decodes the posterior
        mean.

    Returns:
      {modality: [b, *shape]} of all modalities: floats in [-1, 1] of images,
      probabilities of classes. What is observed is as it was.

    Raises:
      UserError: as `encode`.
    """
    if mask is not None:
      x = {**x, MASK: mask}
    x = self._observations(x)
    out = self._decode(self._latents(x, key), self.names)
    for seen, k in zip(x[MASK].T > 0, self.names, strict=True):
      out[k] = np.array(out[k])  # may be read-only
      out[k][seen] = to_float(x[k][seen], self.spec.dtype)
    return out

  def _latents(
    self, x: dict[str, np.ndarray], key: jax.Array | None
  ) -> np.ndarray:
    """The mean of each posterior, or a draw of it, [b, d]."""
    q = self._device.encode(x)
    if key is None:
      return np.asarray(q.mean())
    return samplers.draw_population(q, key)

  def _in(self, x: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """The modalities that are observed in any row."""
    observed = x[MASK].any(axis=0)
    return tuple(k for k, v in zip(self.names, observed, strict=True) if v)

  def _chosen(
    self, what: str, names: Names | None, default: tuple[str, ...]
  ) -> tuple[str, ...]:
    """Validates names of modalities."""
    if names is None:
      return default
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
      check_choice(what, name, self.names)
    if not names or len(set(names)) < len(names):
      raise UserError(
        f"{what}={names} must be one or more different names of "
        f"{', '.join(self.names)}."
      )
    return names

  def _only(
    self, x: dict[str, np.ndarray], names: tuple[str, ...], what: str
  ) -> dict[str, np.ndarray]:
    """The same observations, of which only these modalities are observed."""
    mask = x[MASK] * np.array([k in names for k in self.names], np.float32)
    listed = " or ".join(names)
    arrays.check_rows(mask, f"no {listed}, which {what} asks for")
    return x | {MASK: mask}

  # --- new observations ----------------------------------------------------

  def sample(
    self,
    key: jax.Array,
    n: int,
    *,
    source: str = "prior",
    temperature: float = 1.0,
  ) -> dict[str, np.ndarray]:
    """Draws latents with `draw_latents` and decodes them.

    Args:
      key: from `jax.random.key`; the same key gives the same observations.
      n: number of observations.
      source: see `draw_latents`; `default_source` is one that this model has.
      temperature: see `draw_latents`.

    Returns:
      {modality: [n, *shape]}; rows belong together.

    Raises:
      UserError: as `draw_latents`. MMVM without its population term has no
        prior to sample from, so it needs `fit_samplers` and another source.
    """
    return self.decode(
      self.draw_latents(key, n, source=source, temperature=temperature)
    )

  # --- bounds --------------------------------------------------------------

  def log_likelihood(
    self,
    x: Observations,
    samples: int = 100,
    *,
    given: Names | None = None,
    of: Names | None = None,
    key: jax.Array | None = None,
  ) -> np.ndarray:
    """Estimates the log-likelihood of modalities, joint or conditional.

    Without `given`, it is the importance-weighted bound of the joint ln p(x)
    of what is observed (Burda et al., arXiv:1509.00519):

        ln 1/S sum_s p(x, z_s) / q(z_s | x),    z_s ~ q(z | x)

    With it, it is the log predictive density of the modalities `of`:

        ln 1/S sum_s p(x_of | z_s),    z_s ~ q(z | x_given)

    Both are lower bounds in expectation: the first of ln p(x), the second of
    ln E_q(z | x_given) p(x_of | z). That is ln p(x_of | x_given) only if q is
    the model's posterior, so the second judges encoders as well. Modalities
    that a row lacks are left out of it.

    p(x | z) is the likelihood of the reconstruction term with its weight, see
    `modality.log_likelihood`. It is a density over images in [-1, 1] and the
    values of other modalities; of classes, a probability if their weight is
    the default, else a power of it.

    Args:
      x: see `encode`.
      samples: S; per component for a mixture posterior that is learned.
      given: the modalities that are given; None for a joint likelihood.
      of: the modalities whose likelihood it is. Default: all that are observed
        and not given.
      key: of the draws; default: a fixed key.

    Returns:
      [b] in nats.

    Raises:
      UserError: as `encode`; samples < 1; a row without any of `given` or of
        `of`; a modality that is in both; a posterior without a finite bound.
    """
    key = jax.random.key(0) if key is None else key
    x = arrays.observations(self.spec, x)
    given = self._chosen("given", given, ())
    rest = tuple(k for k in self._in(x) if k not in given)
    of = self._chosen("of", of, rest)
    both = [k for k in of if k in given]
    if both or not of:
      raise UserError(
        f"given={given} and of={of} must be different modalities of the "
        "observations, and at least one must be left for `of`."
      )
    target = self._only(x, of, "of")
    if not given:
      self.check_trained(target[MASK].sum(axis=1))
      return self._likelihood.bounds(target, samples, key)["iwae"]
    source = self._only(x, given, "given")
    self.check_trained(source[MASK].sum(axis=1))
    return self._likelihood.predictive(source, target, samples, key)

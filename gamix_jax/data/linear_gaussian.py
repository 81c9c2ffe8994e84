"""`linear_gaussian`: modalities whose likelihood and posterior are known.

Hirt, Campolo, Leong & Ortega, arXiv:2309.00380. With z ~ N(0, I),

    x_m = W_m z + noise of variance 1,    W_m' W_m = I,

of m = 0, ..., M - 1. The number of numbers in x_m is drawn from 30, ..., 59.
All is a function of the option `seed`, none of the run's seed. Options:

    seed         of sizes, loadings and data; 0
    modalities   M; 5
    latent       number of shared latents; 5
    rows         number of rows for training; 5000
    sparse       1: besides the shared latents, each modality depends on as many
                 of its own, which no other one depends on; 0

    linear_gaussian?seed=3&sparse=1

The modalities are x0, x1, ..., float32; the test has 1,000 rows.
`data.modalities` has to state their sizes, which `sizes` gives.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from gamix_jax.data import options
from gamix_jax.data.modalities import chosen
from gamix_jax.data.multimodal import MultimodalArrays
from gamix_jax.data.settings import Settings
from gamix_jax.errors import UserError

TEST_ROWS = 1000
LOW, HIGH = 30, 59  # sizes of a modality, both included
_OPTIONS = {
  "seed": options.Integer(0, 0),
  "modalities": options.Integer(5, 1, 99),
  # Shared and private loadings of a modality are orthonormal together.
  "latent": options.Integer(5, 1, LOW // 2),
  "sparse": options.Integer(0, 0, 1),
  "rows": options.Integer(5_000, 1),
}


def sizes(seed: int = 0, modalities: int = 5) -> tuple[int, ...]:
  """The size of each modality, 30 to 59, for the options of the source."""
  rng = np.random.default_rng((79, seed, 0))
  return tuple(rng.integers(LOW, HIGH + 1, modalities).tolist())


class LinearGaussian:
  """The joint law of latents and modalities; computes in float64.

  Attributes:
    names: of the modalities: x0, x1, ...
    shared: number of latents that all modalities depend on. They come first;
      then, if there are any, those of x0 alone, those of x1 alone, ...
    loadings: W of each modality, [d_m, L] of L latents in all; zero for the
      latents that it does not depend on.
  """

  def __init__(
    self,
    seed: int = 0,
    modalities: int = 5,
    latent: int = 5,
    sparse: bool = False,
  ):
    """For the options of the source; see the module docstring."""
    self.names = tuple(f"x{m}" for m in range(modalities))
    self.shared = latent
    private = latent if sparse else 0
    latents = latent + modalities * private
    rng = np.random.default_rng((79, seed, 1))
    self.loadings: dict[str, np.ndarray] = {}
    for m, size in enumerate(sizes(seed, modalities)):
      q, _ = np.linalg.qr(rng.normal(size=(size, latent + private)))
      w = np.zeros((size, latents))
      own = latent + m * private
      w[:, :latent] = q[:, :latent]
      w[:, own : own + private] = q[:, latent:]
      self.loadings[self.names[m]] = w

  @classmethod
  def of_source(cls, source: str) -> "LinearGaussian":
    """Of a value of `data.source`, such as "linear_gaussian?seed=3".

    Raises:
      UserError: it is another source or has an unknown option.
    """
    if not source.startswith("linear_gaussian"):
      raise UserError(f"data.source={source} is not linear_gaussian.")
    values = _values(source.removeprefix("linear_gaussian"))
    del values["rows"]
    return cls(**values)

  def draw(
    self, n: int, rng: np.random.Generator
  ) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Observations {NAME: float64 [n, d_m]}, and their latents [n, L]."""
    latents = next(iter(self.loadings.values())).shape[1]
    z = rng.normal(size=(n, latents))
    x = {
      name: z @ w.T + rng.normal(size=(n, len(w)))
      for name, w in self.loadings.items()
    }
    return x, z

  def log_prob(
    self,
    x: Mapping[str, Float[np.ndarray, "n _"]],
    mask: Float[np.ndarray, "n m"] | None = None,
  ) -> Float[np.ndarray, " n"]:
    """Exact ln p(x_S) in nats, S the modalities that a row's mask has.

    By Woodbury's identity, with W the loadings of S stacked, d their rows and
    A = I + W' W:

        ln p = -1/2 (d ln 2 pi + ln det A + |x|^2 - x' W A^-1 W' x)

    Args:
      x: observations of every modality, [n, d_m].
      mask: 1 or True where a modality is observed, in the order of `names`;
        None: all are. Of a row without any the result is 0.
    """
    mask, squared, projected = self._statistics(x, mask)
    result = np.empty(len(mask))
    for seen, rows in _patterns(mask):
      precision, size = self._precision(seen)
      mean = np.linalg.solve(precision, projected[rows].T).T
      explained = np.sum(projected[rows] * mean, 1)
      constant = size * np.log(2 * np.pi) + np.linalg.slogdet(precision)[1]
      result[rows] = -0.5 * (constant + squared[rows] - explained)
    return result

  def posterior(
    self,
    x: Mapping[str, Float[np.ndarray, "n _"]],
    mask: Float[np.ndarray, "n m"] | None = None,
  ) -> tuple[Float[np.ndarray, "n l"], Float[np.ndarray, "n l l"]]:
    """Mean and covariance of the Gaussian p(z | x_S); arguments as `log_prob`.

    Of a row without any modality it is the prior, N(0, I).
    """
    mask, _, projected = self._statistics(x, mask)
    latents = projected.shape[1]
    means = np.empty((len(mask), latents))
    covariances = np.empty((len(mask), latents, latents))
    for seen, rows in _patterns(mask):
      covariance = np.linalg.inv(self._precision(seen)[0])
      means[rows] = projected[rows] @ covariance
      covariances[rows] = covariance
    return means, covariances

  def _precision(self, seen: np.ndarray) -> tuple[np.ndarray, int]:
    """I + W' W of the modalities seen, and how many numbers they have."""
    all_of = list(self.loadings.values())
    used = [w for w, there in zip(all_of, seen, strict=True) if there]
    start = np.eye(all_of[0].shape[1])
    return sum((w.T @ w for w in used), start), sum(map(len, used))

  def _statistics(
    self, x: Mapping[str, np.ndarray], mask: np.ndarray | None
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mask as bool, |x_S|^2 [n] and W' x_S [n, L].

    Raises:
      ValueError: a modality or the mask has another shape.
    """
    n = len(x[self.names[0]])
    shape = (n, len(self.names))
    mask = np.ones(shape, bool) if mask is None else np.asarray(mask) > 0
    if mask.shape != shape:
      raise ValueError(f"the mask is {mask.shape}, not {shape}")
    squared, projected = 0.0, 0.0
    for name, there in zip(self.names, mask.T, strict=True):
      w = self.loadings[name]
      if np.shape(x[name]) != (n, len(w)):
        raise ValueError(f"{name} is {np.shape(x[name])}, not {(n, len(w))}")
      # What is missing may be anything, NaN too.
      seen = np.where(there[:, None], np.asarray(x[name], np.float64), 0)
      squared = squared + np.sum(seen**2, 1)
      projected = projected + seen @ w
    return mask, squared, projected


def _values(rest: str) -> dict[str, int]:
  """The options after the source's name, with their defaults."""
  where, given = options.split(rest)
  if where:
    raise UserError(
      f"data.source=linear_gaussian takes options only, not {where}"
    )
  return options.parse("linear_gaussian", given, _OPTIONS)


def _patterns(mask: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
  """Each row that a mask has, and the indices of the rows that are like it."""
  patterns, which = np.unique(mask, axis=0, return_inverse=True)
  which = which.reshape(-1)
  return [(p, np.flatnonzero(which == k)) for k, p in enumerate(patterns)]


class LinearGaussianSource(MultimodalArrays):
  """One split, in memory.

  Attributes:
    model: the law that the data were drawn from.
    latents: the true ones, float64 [n, L].
  """

  def __init__(self, rest: str, split: str, settings: Settings, seed: int):
    """Draws the modalities that `data.modalities` names, or all if it is empty.

    Raises:
      UserError: an unknown option or modality.
    """
    del seed
    values = _values(rest)
    rows = {"train": values.pop("rows"), "test": TEST_ROWS}
    self.model = LinearGaussian(**values)
    names = chosen(settings.modalities, self.model.names, "linear_gaussian")
    rng = np.random.default_rng((79, values["seed"], 2, split == "test"))
    x, self.latents = self.model.draw(rows[split], rng)
    super().__init__(
      {name: x[name].astype(np.float32) for name in names},
      title=f"linear_gaussian/{split}",
      total=sum(rows.values()),
    )

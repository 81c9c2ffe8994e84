"""Pure numbers from arrays: pictures, features, and the pieces of the ELBO.

ELBO surgery (Hoffman & Johnson 2016; Chen et al., arXiv:1802.04942), with
q(z) = 1/n sum_i q(z | x_i) the population:

    1/n sum_i KL(q(z | x_i) || p) = I(i; z) + KL(q(z) || p)
    KL(q(z) || p) = KL(q(z) || prod_d q(z_d)) + sum_d KL(q(z_d) || p(z_d))

The parts are the mutual information, the population's KL, its total
correlation and its dimensions' KL. All are in nats.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gamix_jax.errors import UserError
from gamix_jax.posterior import Posterior

# Of the posterior means over the images; Burda et al., arXiv:1509.00519.
ACTIVE_VARIANCE = 0.01
# A posterior's variance under this is a point's.
COLLAPSED_VARIANCE = 0.01
KL_FORMS = ("full_covariance", "diagonal")
# Floats of one array of densities inside `surgery`: 64 MiB.
CHUNK_FLOATS = 2**24
FEATURE_WIDTHS = (16, 32, 64)
FEATURE_BATCH = 256


def sharpness(x: jax.Array) -> jax.Array:
  """Variance of the response to the 3x3 Laplacian; larger is sharper.

  The kernel is [[0, 1, 0], [1, -4, 1], [0, 1, 0]], without padding. Grey is
  the plain mean of the channels. The images are mapped to [0, 1] first, as the
  published values are of such (Qin & Huang, arXiv:2405.12783, experiments);
  in [-1, 1] they would be 4 times as large.

  Args:
    x: [b, h, w, c] in [-1, 1].

  Returns:
    [b]; 0 of a constant image, 20 sigma^2 of noise with variance sigma^2 (on
    [0, 1]) in every pixel of a grey image.

  Raises:
    UserError: if h or w is under 3, or x has not 4 axes.
  """
  if x.ndim != 4 or min(x.shape[1:3]) < 3:
    raise UserError(
      f"sharpness wants images [b, h, w, c] of 3x3 or more, not {x.shape}."
    )
  grey = jnp.mean((x + 1) / 2, axis=-1)
  middle = grey[:, 1:-1, 1:-1]
  beside = grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
  above = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1]
  return jnp.var(beside + above - 4 * middle, axis=(1, 2))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
  """Squared Frechet distance of the Gaussians with two sets' moments.

      |m_a - m_b|^2 + tr( S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2 )

  Dowson & Landau 1982; with Inception features it is the FID (Heusel et al.,
  arXiv:1706.08500, eq. 6). Covariances are unbiased, as there. Float64.

  Args:
    a: features [n, f].
    b: features [m, f].

  Returns:
    0 or more, in the features' unit squared. Biased upwards for few rows, so
    compare numbers of equal n and m only.

  Raises:
    UserError: under 2 rows, unequal widths, or a value that is not finite.
  """
  a, b = (np.asarray(v, np.float64) for v in (a, b))
  if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
    raise UserError(
      "frechet_distance wants features [n, f] and [m, f], "
      f"not {a.shape} and {b.shape}."
    )
  if min(len(a), len(b)) < 2:
    raise UserError(
      f"frechet_distance has {len(a)} and {len(b)} rows of features; a "
      "covariance needs 2 or more of each."
    )
  if not (np.isfinite(a).all() and np.isfinite(b).all()):
    raise UserError("frechet_distance got features that are not finite.")
  f = a.shape[1]
  cov_a, cov_b = (np.cov(v, rowvar=False).reshape(f, f) for v in (a, b))
  values, vectors = np.linalg.eigh(cov_a)
  # Rounding makes eigenvalues that are 0 slightly negative, here and below.
  root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  product = root @ cov_b @ root
  values = np.linalg.eigvalsh((product + product.T) / 2)
  between = np.sum(np.square(a.mean(axis=0) - b.mean(axis=0)))
  spread = np.trace(cov_a) + np.trace(cov_b)
  cross = np.sum(np.sqrt(np.maximum(values, 0)))
  return float(max(between + spread - 2 * cross, 0.0))


class random_features:
  """Features of a fixed random conv network: no download, no training.

  3x3 convolutions with stride 2, He-scaled normal weights and leaky ReLU; the
  mean and the standard deviation over space of every layer. The weights come
  from NumPy's PCG64, so they are the same on every platform.

  A `frechet_distance` of these is called `fd_<name>`. It is never an FID and
  not on its scale: compare it with numbers of the same name and data only.
  `name` is the network's, `width` is f.
  """

  def __init__(self, shape: tuple[int, int, int], seed: int = 0):
    """Draws the weights, by `seed`, for images of `shape` (h, w, c).

    Raises:
      UserError: if the images are under 8x8.
    """
    if len(shape) != 3 or min(shape[:2]) < 8 or shape[2] < 1:
      raise UserError(
        f"random_features wants images (h, w, c) of 8x8 or more, not {shape}."
      )
    rng = np.random.Generator(np.random.PCG64(seed))
    self.shape = tuple(shape)
    self.kernels = []
    inputs = shape[2]
    for outputs in FEATURE_WIDTHS:
      kernel = rng.standard_normal((3, 3, inputs, outputs))
      kernel *= math.sqrt(2 / (9 * inputs))
      self.kernels.append(jnp.asarray(kernel, jnp.float32))
      inputs = outputs
    self.width = 2 * sum(FEATURE_WIDTHS)
    self.name = f"random_conv_f{self.width}_s{seed}"

  def __call__(self, x: jax.Array) -> np.ndarray:
    """Images [b, h, w, c] in [-1, 1] -> float32 features [b, f].

    Raises:
      UserError: if the images have another shape than was said.
    """
    if x.ndim != 4 or x.shape[1:] != self.shape:
      raise UserError(
        f"{self.name} was made for images {self.shape}, not {x.shape[1:]}."
      )
    out = np.empty((len(x), self.width), np.float32)
    for start in range(0, len(x), FEATURE_BATCH):
      rows = slice(start, start + FEATURE_BATCH)
      part = jnp.asarray(x[rows], jnp.float32)
      out[rows] = jax.device_get(_conv_features(self.kernels, part))
    return out


@jax.jit
def _conv_features(kernels: list[jax.Array], x: jax.Array) -> jax.Array:
  pooled = []
  for kernel in kernels:
    x = jax.lax.conv_general_dilated(
      x,
      kernel,
      window_strides=(2, 2),
      padding="SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      precision=jax.lax.Precision.HIGHEST,  # the same number on any device
    )
    x = jax.nn.leaky_relu(x, 0.2)
    pooled += [jnp.mean(x, axis=(1, 2)), jnp.std(x, axis=(1, 2))]
  return jnp.concatenate(pooled, axis=-1)


def surgery(
  q: Posterior,
  key: jax.Array,
  *,
  draws: int = 1,
  dataset_size: int | None = None,
  chunk: int | None = None,
  log_prior: Callable[[jax.Array], jax.Array] | None = None,
  gaussian_components: bool = False,
) -> dict[str, float]:
  """The pieces of the mean KL, estimated from draws; see the file's head.

  q(z) is exact for the n images of q. Of n images that stand for N others,

      q(z_i) ~ 1/N q(z_i | x_i) + (N - 1) / (N (n - 1)) sum_j q(z_i | x_j),

  j not i: what `mss_weights` are on average over the order of the others.
  Its logarithm is biased downwards, and the mutual information upwards.

  Args:
    q: posteriors of n images over a latent of size d.
    key: a typed PRNG key.
    draws: for each image, and of each component where there are any.
    dataset_size: N, n or more; None is n.
    chunk: draws looked at at once, each against all n posteriors; None bounds
      the memory.
    log_prior: ln p(z) in nats, [..., d] -> [...]. None is the posterior's own.
    gaussian_components: q is made of diagonal Gaussians, `centres()`, and p
      has independent dimensions: give the last two numbers too.

  Returns:
    `kl`, `mutual_information` (0 to ln N but for the draws' noise, which only
    the lower end feels), `population_kl`: kl is the sum of the other two.
    Then `total_correlation` and `dimension_kl`, whose sum is `population_kl`.

  Raises:
    UserError: draws or chunk under 1; N under n; one image of several.
  """
  if draws < 1 or (chunk is not None and chunk < 1):
    raise UserError(f"surgery: draws={draws} and chunk={chunk}; 1 or more.")
  z, w = q.draws(key, draws)
  s, n, d = z.shape
  size = n if dataset_size is None else dataset_size
  _check_size(size, n)
  if n == 1 and size > 1:
    raise UserError("surgery: one image does not stand for a data set.")
  own = -math.log(size)
  other = math.log((size - 1) / (size * (n - 1))) if n > 1 else own
  if chunk is None:
    floats = sum(leaf.size for leaf in jax.tree.leaves(q))
    chunk = max(1, CHUNK_FLOATS // floats)
  out = _log_densities(
    q,
    z.reshape(s * n, d),
    jnp.tile(jnp.arange(n), s),
    (own, other),
    chunk=min(chunk, s * n),
    marginals=gaussian_components,
  )
  prior = log_prior or q.log_prior

  def host(x):
    return np.asarray(jax.device_get(x), np.float64).reshape(s, n)

  weights, p = host(w), host(prior(z))
  posterior, population = host(out["posterior"]), host(out["population"])

  def mean(x):
    return float(np.sum(weights * x) / n)

  numbers = {
    "kl": mean(posterior - p),
    "mutual_information": mean(posterior - population),
    "population_kl": mean(population - p),
  }
  if gaussian_components:
    product = host(out["product"])
    numbers["total_correlation"] = mean(population - product)
    numbers["dimension_kl"] = mean(product - p)
  return numbers


@jax.jit(static_argnames=("chunk", "marginals"))
def _log_densities(
  q: Posterior,
  z: jax.Array,
  image: jax.Array,
  log_weights: tuple[jax.Array, jax.Array],
  *,
  chunk: int,
  marginals: bool,
) -> dict[str, jax.Array]:
  """ln q(z | x_i), ln q(z), ln prod_d q(z_d), each [m], of z [m, d] of x_i."""
  weights, mu, var = q.centres() if marginals else (None, None, None)

  def one(draw):
    z, i = draw
    n = jnp.shape(jax.tree.leaves(q)[0])[0]
    each = q.log_prob(jnp.broadcast_to(z, (n, *z.shape)))
    log_w = jnp.where(jnp.arange(n) == i, *log_weights).astype(each.dtype)
    population = jax.nn.logsumexp(log_w + each)
    out = {"posterior": each[i], "population": population}
    if marginals:
      square = jnp.square(jnp.broadcast_to(z, mu.shape) - mu) / var
      each = -0.5 * (square + jnp.log(2 * jnp.pi * var))
      log_w = log_w[:, None] + jnp.log(weights)
      marginal = jax.nn.logsumexp(log_w[..., None] + each, axis=(0, 1))
      out["product"] = jnp.sum(marginal)
    return out

  return jax.lax.map(one, (z, image), batch_size=chunk)


def _check_size(dataset_size: int, batch: int) -> None:
  if dataset_size < batch:
    raise UserError(
      f"dataset_size={dataset_size} is smaller than the batch of {batch}."
    )


def mss_weights(batch: int, dataset_size: int) -> np.ndarray:
  """Weights of minibatch-stratified sampling (arXiv:1802.04942, app. C).

  With M = batch - 1 others in every row: 1/N for the row's own image, 1/M for
  M - 1 others and (N - M) / (N M) for the last of them.

  Args:
    batch: M + 1, 2 or more.
    dataset_size: N, of which the batch is a random part without repeats.

  Returns:
    [batch, batch] float64; rows sum to 1, the diagonal is 1/N.

  Raises:
    UserError: a batch under 2, or N under it.
  """
  if batch < 2:
    raise UserError(f"mss_weights: a batch of {batch} has no others.")
  _check_size(dataset_size, batch)
  n, m = dataset_size, batch - 1
  weights = np.full((batch, batch), 1 / m)
  # The last row's own place is the last, so its last other is one before.
  weights[:, -1] = weights[-1, -2] = (n - m) / (n * m)
  np.fill_diagonal(weights, 1 / n)
  return weights


def log_population_mss(log_q: jax.Array, dataset_size: int) -> jax.Array:
  """Estimate of ln q(z_i) in nats from a batch; see `mss_weights`.

  Args:
    log_q: [m + 1, m + 1]; [i, j] is ln q(z_i | x_j) in nats.
    dataset_size: N, m + 1 or more.

  Returns:
    [m + 1]; its exp is unbiased over batches, itself it is biased downwards.

  Raises:
    UserError: if log_q is not square, or as `mss_weights`.
  """
  if log_q.ndim != 2 or log_q.shape[0] != log_q.shape[1]:
    raise UserError(f"log_q is {log_q.shape}; it is square.")
  weights = np.log(mss_weights(len(log_q), dataset_size))
  return jax.nn.logsumexp(log_q + jnp.asarray(weights, log_q.dtype), axis=1)


def population_kl_gaussian(
  mean: np.ndarray, var: np.ndarray, form: str = "full_covariance"
) -> float:
  """KL(N(m, S) || N(0, I)) in nats, m and S the moments of q(z); float64.

      full_covariance  1/2 ( tr S + |m|^2 - d - ln det S )
      diagonal         the same with S's diagonal alone

  A lower bound of KL(q(z) || N(0, I)), which has KL(q(z) || N(m, S)) on top.
  The diagonal's bound is the looser one.

  Args:
    mean: of each image's posterior, [n, d].
    var: of each image's posterior, [n, d].
    form: one of the two above.

  Returns:
    0 or more. NaN of the full covariance where n <= d: the means then have no
    covariance of full rank.

  Raises:
    UserError: unknown form.
  """
  if form not in KL_FORMS:
    raise UserError(
      f"form={form!r} is not a form; there are: {', '.join(KL_FORMS)}."
    )
  mean, var = (np.asarray(v, np.float64) for v in (mean, var))
  n, d = mean.shape
  m = mean.mean(axis=0)
  if form == "diagonal":
    s = mean.var(axis=0) + var.mean(axis=0)
    return 0.5 * float(np.sum(s + np.square(m) - 1 - np.log(s)))
  if n <= d:
    return float("nan")
  s = np.cov(mean, rowvar=False, bias=True) + np.diag(var.mean(axis=0))
  return 0.5 * float(np.trace(s) + m @ m - d - np.linalg.slogdet(s)[1])


def latent_report(mean: np.ndarray, var: np.ndarray) -> dict[str, float]:
  """How much of the latent is used.

  Args:
    mean: of each image's posterior, [n, d].
    var: of each image's posterior, [n, d].

  Returns:
    `active_units`, 0 to d: dimensions whose mean varies over the images by
    more than 0.01 (Burda et al., arXiv:1509.00519, sec. 5.2).
    `collapsed_share`, 0 to 1: posterior variances under 0.01.
  """
  active = np.sum(np.var(mean, axis=0, dtype=np.float64) > ACTIVE_VARIANCE)
  collapsed = np.mean(np.asarray(var) < COLLAPSED_VARIANCE)
  return {"active_units": float(active), "collapsed_share": float(collapsed)}

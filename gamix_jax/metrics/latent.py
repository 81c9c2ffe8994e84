"""Decomposition of the ELBO, and use of the latent, from posteriors.

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
import scipy.special
from jaxtyping import Array, Float, Int

from gamix_jax.errors import UserError
from gamix_jax.posterior import Posterior

# Of the posterior means over the images; Burda et al., arXiv:1509.00519.
ACTIVE_VARIANCE = 0.01
# A posterior's variance under this is a point's.
COLLAPSED_VARIANCE = 0.01
KL_FORMS = ("full_covariance", "diagonal")
# Floats of one array of densities inside `surgery`: 64 MiB.
CHUNK_FLOATS = 2**24


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
  """The terms of the mean KL, estimated from draws; see the module docstring.

  q(z) is exact for the n images of q. Of n images that stand for N others,

      q(z_i) ~ 1/N q(z_i | x_i) + (N - 1) / (N (n - 1)) sum_j q(z_i | x_j),

  j not i: what `mss_weights` are on average over the order of the others.
  Its logarithm is biased downwards, and the mutual information upwards.

  Args:
    q: posteriors of n images over a latent of size d.
    key: a typed PRNG key.
    draws: for each image, and of each component where there are any.
    dataset_size: N, n or more; None is n.
    chunk: draws at a time, each against all n posteriors; None bounds
      the memory.
    log_prior: ln p(z) in nats, [..., d] -> [...]. None is the posterior's own.
    gaussian_components: q's components are diagonal Gaussians, and p has
      independent dimensions: give the last two numbers too.

  Returns:
    `kl`, `mutual_information` (0 to ln N but for the draws' noise, which only
    the lower end feels), `population_kl`: kl is the sum of the other two.
    Then `total_correlation` and `dimension_kl`, whose sum is `population_kl`.

  Raises:
    UserError: draws or chunk under 1; N under n; one image of several.
  """
  if draws < 1 or (chunk is not None and chunk < 1):
    raise UserError(f"surgery: draws={draws} and chunk={chunk}; 1 or more.")
  z, w = q.sample(key, draws)
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
  weights, mu, var = q.components() if marginals else (None, None, None)

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
  mean: Float[np.ndarray, "n d"],
  var: Float[np.ndarray, "n d"],
  form: str = "full_covariance",
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


def total_variance(q: Posterior) -> Float[Array, "b d"]:
  """The variance of each posterior, [b, d]; of a mixture, the total variance.

  That is the components' mean variance plus the variance of their means.
  """
  weights, mu, var = q.components()
  if mu.shape[1] == 1:
    return var[:, 0]
  each = var + jnp.square(mu - q.mean()[:, None])
  return jnp.sum(weights[..., None] * each, axis=1)


def latent_report(
  mean: Float[np.ndarray, "n d"], var: Float[np.ndarray, "n d"]
) -> dict[str, float]:
  """Measures how much of the latent is used.

  Args:
    mean: of each image's posterior, [n, d].
    var: of each image's posterior, [n, d].

  Returns:
    `active_units`, 0 to d: dimensions whose mean varies over the images by
    more than 0.01 (Burda et al., arXiv:1509.00519, sec. 5.2).
    `collapsed_fraction`, 0 to 1: posterior variances under 0.01.
  """
  active = np.sum(np.var(mean, axis=0, dtype=np.float64) > ACTIVE_VARIANCE)
  collapsed = np.mean(np.asarray(var) < COLLAPSED_VARIANCE)
  return {"active_units": float(active), "collapsed_fraction": float(collapsed)}


def mixture_report(
  weights: Float[np.ndarray, "n k"], var: Float[np.ndarray, "n k d"]
) -> dict[str, float]:
  """Measures how many components are used.

  Args:
    weights: of each image's components, [n, k].
    var: of these components, [n, k, d].

  Returns:
    `effective_components`, 1 to k: exp of the weights' entropy, mean over
    images. `components_in_use`, 1 to k: exp of the entropy of the weights' mean
    over images; a component that is used for a few images counts here only.
    `collapsed_components`, 0 to 1: the share of the components'
    variances under 0.01, each component with its weight.
  """
  weights, var = np.asarray(weights, np.float64), np.asarray(var)
  entropy = scipy.special.entr(weights).sum(axis=1)
  collapsed = (var < COLLAPSED_VARIANCE).mean(axis=2)
  return {
    "effective_components": float(np.mean(np.exp(entropy))),
    "components_in_use": float(
      np.exp(scipy.special.entr(weights.mean(axis=0)).sum())
    ),
    "collapsed_components": float(np.mean(np.sum(weights * collapsed, axis=1))),
  }


def by_activity(mean: Float[np.ndarray, "n d"]) -> Int[np.ndarray, " d"]:
  """Latents [d], that first whose posterior mean [n, d] varies most."""
  return np.argsort(-np.var(mean, axis=0), kind="stable")


def bits_per_dim(nats: float, dims: int) -> float:
  """Converts a density over pixels to bits per dimension.

      -nats / (dims ln 2) + log2(127.5)

  The model has a density p(x) of pixels in [-1, 1]. The 256 grey levels are
  1 / 127.5 apart, so that a level has about the probability p(x) / 127.5 a
  number, and minus its log2 are the bits. All 256 as likely are 8 bits. No
  noise is added to the levels (no dequantisation), so that for noise of the
  model's that is narrow against 1 / 127.5 this would not be a code length.

  Args:
    nats: ln p(x), or a bound of it.
    dims: h w c.
  """
  return -nats / (dims * math.log(2)) + math.log2(127.5)


def mean_and_error(each: Float[np.ndarray, " n"]) -> tuple[float, float | None]:
  """Mean over images and its standard error, None of one image alone."""
  each = np.asarray(each, np.float64)
  if len(each) < 2:
    return float(each.mean()), None
  return float(each.mean()), float(each.std(ddof=1) / math.sqrt(len(each)))


def sparseness(z: Float[np.ndarray, "n d"]) -> dict[str, float]:
  """Lifetime and population sparseness of latents.

      S = (1 - (sum z)^2 / (m sum z^2)) / (1 - 1/m)

  over the m latents of an image (population) and the m images of a latent
  (lifetime), averaged over images and latents; Vinje & Gallant 2000, as in
  arXiv:2405.14473. A latent or an image of zeros has none and is left out.

  Args:
    z: 0 or more, rates or counts, [n, d].

  Returns:
    `population_sparseness`, `lifetime_sparseness`: 0 where all are equal, 1
    where one alone is not 0; NaN with a single latent, a single image, or
    nothing but zeros.

  Raises:
    UserError: a negative number.
  """
  z = np.asarray(z, np.float64)
  if np.any(z < 0):
    raise UserError("sparseness is of numbers from 0 on; some are negative.")

  def mean_over(axis):
    m, square = z.shape[axis], np.sum(np.square(z), axis=axis)
    used = square > 0
    if m < 2 or not used.any():
      return math.nan
    share = np.square(np.sum(z, axis=axis))[used] / (m * square[used])
    return float(np.mean((1 - share) / (1 - 1 / m)))

  return {
    "population_sparseness": mean_over(1),
    "lifetime_sparseness": mean_over(0),
  }

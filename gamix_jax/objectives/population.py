"""The population q(z) = 1/N sum_i q(z | x_i) and its distance from N(0, I).

A batch of B images is a sample of the population. The term has five forms:

    means       1/2 sum_d ( m^2 + v - 1 - ln v ), v the biased variance of the
                posteriors' means: what the published code does
    full        the same, v plus the mean of sigma^2: the mixture's variance
    debiased    the KL of the Gaussian with q(z)'s mean, variances and, to
                second order, correlations, corrected for the bias of
                estimating them from B images
    quadratic   1/2 |m|^2 + 1/4 |M - I|^2 of the moments m = E z, M = E z z^T,
                as a U-statistic: unbiased for any family and any B from 2
    kernel      the squared maximum mean discrepancy of q(z) with a kernel that
                sees all moments, as a U-statistic: as unbiased

The bias of `means` and `full` depends on B, so the batch size is part of these
objectives. `quadratic` and `kernel` are unbiased: their mean over parts of a
batch estimates the same number as the whole batch does, so gradients can be
accumulated over parts. `debiased` is nearly unbiased: at a perfect population
of 8 latents its remaining bias is at most 0.1 nats for 4 images and 0.006 for
16, and below the noise for 64.

The last three are not from the paper. The published forms match means and
variances only, and leave latents correlated. Then N(0, I) has mass where there
are no codes. `debiased` and `quadratic` match correlations as well, and
`kernel` whatever else differs. All forms are |m|^2 / 2 for a population
N(m, I) near N(0, I), so that their weights are alike; `kernel` is no KL
otherwise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Float

from gamix_jax.errors import UserError
from gamix_jax.posterior import Posterior
from gamix_jax.registry import check_choice

# Below any useful variance, and above float32's rounding error at 1.
MIN_VARIANCE = 1e-6
# The term in nats; the population's mean and variance.
Estimate = tuple[Float[Array, ""], Float[Array, " d"], Float[Array, " d"]]


def _moments(q: Posterior) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
  """Each image's mean and variance under its posterior, both [b, d]."""
  weights, mu, var = q.components()
  mean = jnp.einsum("bk,bkd->bd", weights, mu)
  spread = var + jnp.square(mu - mean[:, None])
  return mean, jnp.einsum("bk,bkd->bd", weights, spread)


def _diagonal_kl(
  mean: Float[Array, " d"], var: Float[Array, " d"]
) -> Float[Array, ""]:
  """KL(N(mean, diag var) || N(0, I)) in nats, of [d] each."""
  log_det = jnp.sum(jnp.log(var))
  return 0.5 * (jnp.sum(var) + jnp.sum(jnp.square(mean)) - var.size - log_det)


def means(q: Posterior) -> Estimate:
  """The published form: variances of the posteriors' means only."""
  weights, mu, _ = q.components()
  mean, between, _ = _biased_moments(weights, mu)
  # The minimum keeps ln v and 1 / v finite if all codes are the same.
  var = jnp.maximum(between, MIN_VARIANCE)
  return _diagonal_kl(mean, var), mean, var


def full(q: Posterior) -> Estimate:
  """As `means`, plus the posteriors' variances: the variance of q(z)."""
  weights, mu, sigma2 = q.components()
  mean, between, weights = _biased_moments(weights, mu)
  var = between + jnp.einsum("bk,bkd->d", weights, sigma2)
  var = jnp.maximum(var, MIN_VARIANCE)
  return _diagonal_kl(mean, var), mean, var


def _biased_moments(weights, mu):
  """Mean and variance [d] of the components' means, and weights over all."""
  weights = weights / weights.shape[0]
  mean = jnp.einsum("bk,bkd->d", weights, mu)
  centred = mu - mean[None, None]
  between = jnp.einsum("bk,bkd->d", weights, jnp.square(centred))
  return mean, between, weights


def debiased(q: Posterior) -> Estimate:
  """KL of the Gaussian with q(z)'s moments, with the bias removed.

      1/2 sum_a [ m_a^2 - b_a/n + v_a - 1 - ln v_a - (b_a/v_a)^2 / (n-1) ]
        + 1/2 sum_{a<b} C_ab^2 / (v_a v_b)

  To second order in the correlations. n is the batch size, b the unbiased
  variance of the means, v = b plus the mean variance within posteriors. C is
  q(z)'s covariance, and C^2 is estimated without bias. The correction of the
  logarithm is of first order in 1/n and assumes Gaussian codes. Scaling by v
  instead of the true variances leaves a bias of the order of 1/n times the
  correlations. For a single batch the value can be negative; its expectation
  is what matters. Needs n >= 4.
  """
  weights, mu, _ = q.components()
  mean, within = _moments(q)
  n = mean.shape[0]
  m = jnp.mean(mean, axis=0)
  centred = mean - m[None]
  between = jnp.sum(jnp.square(centred), axis=0) / (n - 1)
  var = jnp.maximum(between + jnp.mean(within, axis=0), MIN_VARIANCE)
  bias = between / n + jnp.square(between / var) / (n - 1)
  # No gradient through the scale: the diagonal terms set the variances.
  scale = jax.lax.rsqrt(jax.lax.stop_gradient(var))
  scaled = centred * scale[None]
  products = _products(scaled)
  pairs = _squared_covariances(scaled, products)
  if mu.shape[1] > 1:  # one component has no covariance of its own
    offsets = (mu - mean[:, None]) * scale[None, None]
    pairs += _covariances_within(scaled, products, weights, offsets)
  kl = _diagonal_kl(m, var) - 0.5 * jnp.sum(bias) + 0.5 * pairs
  return kl, m, var


def squared_covariances(centred: Float[Array, "n d"]) -> Float[Array, ""]:
  """Unbiased estimate of sum_{a<b} Cov(x_a, x_b)^2, for any distribution of x.

  A U-statistic over all 4-tuples of different rows, computed from sums (Himeno
  & Yamada 2014, Journal of Multivariate Analysis 130, 27).

  Args:
    centred: [n, d], n >= 4, with column means of 0.

  Returns:
    A number; it can be negative for a single batch.
  """
  return _squared_covariances(centred, _products(centred))


def _products(x: Float[Array, "n d"]) -> Float[Array, "d d"]:
  """sum_i x_i x_i^T of rows, [d, d].

  In full float32 precision, also on devices that would round (TPU, TF32).
  """
  return jnp.einsum("ni,nj->ij", x, x, precision="highest")


def _squared_covariances(
  centred: Float[Array, "n d"], products: Float[Array, "d d"]
) -> Float[Array, ""]:
  n = float(centred.shape[0])  # whose products no int32 may hold
  square = jnp.square(centred)
  s = products / (n - 1)
  diagonal = jnp.diagonal(s)
  off = _off_diagonal(s, s)
  crossed = jnp.square(jnp.sum(diagonal)) - jnp.sum(jnp.square(diagonal))
  fourth = jnp.square(jnp.sum(square, axis=1)) - jnp.sum(
    jnp.square(square), axis=1
  )
  q = jnp.sum(fourth) / (n - 1)
  factor = 0.5 * (n - 1) / (n * (n - 2) * (n - 3))
  return factor * ((n - 1) * (n - 2) * off + crossed - n * q)


def _covariances_within(
  centred: Float[Array, "n d"],
  products: Float[Array, "d d"],
  weights: Float[Array, "n k"],
  offsets: Float[Array, "n k d"],
) -> Float[Array, ""]:
  """The part of the squared covariances that comes from within posteriors.

  An unbiased estimate of sum_{a<b} (C + W)^2 - C^2, with C the covariance of
  the means x and W the mean of W_i = sum_k pi_ik c_ik c_ik^T. An image's W_i is
  multiplied only with the covariance of other images' means and with their
  W_j, so expectations of products are products of expectations. Added to
  `squared_covariances` of the means, it gives the expectation over draws of z
  of `squared_covariances` of the draws.

  Args:
    centred: x less its mean, [n, d].
    products: `_products` of them.
    weights: pi, [n, k].
    offsets: c, components' means less their image's, [n, k, d].
  """
  n = float(centred.shape[0])  # as in `_squared_covariances`
  square = jnp.square(centred)
  scaled = weights[..., None] * offsets
  w = jnp.einsum("nki,nkj->ij", scaled, offsets, precision="highest")
  own = jnp.sum(scaled * offsets, axis=1)  # W_i's diagonal, [n, d]
  # Mean over i of <C without image i, W_i>, off the diagonals.
  along = jnp.einsum("nkd,nd->nk", offsets, centred, precision="highest")
  itself = jnp.sum(weights * jnp.square(along)) - jnp.sum(own * square)
  crossed = _off_diagonal(products, w)
  crossed = (crossed - n / (n - 1) * itself) / (n * (n - 2))
  inner = jnp.einsum("nkd,nld->nkl", offsets, offsets, precision="highest")
  norms = jnp.einsum("nkl,nk,nl->n", jnp.square(inner), weights, weights)
  pairs = _pairs(
    _off_diagonal(w, w), jnp.sum(norms) - jnp.sum(jnp.square(own)), n
  )
  return crossed + 0.5 * pairs


def _off_diagonal(a: jax.Array, b: jax.Array) -> jax.Array:
  """sum_{i != j} a_ij b_ij."""
  return jnp.sum(a * b) - jnp.sum(jnp.diagonal(a) * jnp.diagonal(b))


def quadratic(q: Posterior) -> Estimate:
  """1/2 |E z|^2 + 1/4 |E z z^T - I|_F^2 of the population, unbiased.

  This is the Gaussian's KL to second order around N(0, I), and the squared
  maximum mean discrepancy with the kernel <x, y> / 2 + <x, y>^2 / 4. Products
  of moments are averaged over pairs of different images, so the expectation
  does not depend on the batch size. For a single batch the value can be
  negative. Needs n >= 2.
  """
  weights, mu, sigma2 = q.components()
  n, _, d = mu.shape
  mean = jnp.einsum("bk,bkd->bd", weights, mu)
  flat = mu.reshape(-1, d)
  scaled = (weights[..., None] * mu).reshape(-1, d)
  # The sum over images of E z z^T.
  total = jnp.einsum("ni,nj->ij", scaled, flat, precision="highest")
  total = total + jnp.diag(jnp.einsum("bk,bkd->d", weights, sigma2))
  first = _pairs(
    jnp.sum(jnp.square(jnp.sum(mean, axis=0))), jnp.sum(jnp.square(mean)), n
  )
  second = _pairs(
    jnp.sum(jnp.square(total)), jnp.sum(_squared_norms(weights, mu, sigma2)), n
  )
  kl = 0.5 * first + 0.25 * (second - 2 * jnp.trace(total) / n + d)
  m = jnp.mean(mean, axis=0)
  return kl, m, jnp.diagonal(total) / n - jnp.square(m)


# c of the kernel (1 + |x - y|^2 / c)^-1/2, for each latent. At 1/5 it is close
# to the Cramer-Wold distance's for 128 points (arXiv:1805.09235).
KERNEL_WIDTH = 0.2
# s of the Gaussians exp(-s |x - y|^2 / c) that make up the kernel. The widest
# reach codes 40 sqrt(c) away; without them, far codes would not be pulled.
NODES = np.exp(np.arange(-7.0, 2.0))


def kernel(q: Posterior) -> Estimate:
  """Unbiased squared maximum mean discrepancy between q(z) and N(0, I).

      a [ mean_{i != j} E k(z_i, z_j) - 2 mean_i E k(z_i, y) + E k(y, y') ]
      k(x, y) = sum_s sqrt(s) e^-s exp(-s |x - y|^2 / c)

  with z_i from q(z | x_i), y and y' from N(0, I), c = d / 5, and s of NODES. k
  is about sqrt(pi) (1 + |x - y|^2 / c)^-1/2 less a constant: the trapezoidal
  rule for its integral over ln s. The expectations are in closed form: draws
  would add so much noise to the gradient of the variances that samples become
  worse. A family that is not Gaussian counts as the Gaussians of its
  `components`. a makes the term |m|^2 / 2 to second order at a population
  N(m, I).

  For k components it computes 9 (n k)^2 d exponentials or logarithms. For a
  single batch the value can be negative. Needs n >= 2. Gretton et al. 2012,
  JMLR 13, 723.
  """
  weights, mu, sigma2 = q.components()
  n, k, d = mu.shape
  points, var = mu.reshape(n * k, d), sigma2.reshape(n * k, d)
  weights = weights.reshape(n * k)
  # Not from indices, which devices would send each other.
  other = jnp.repeat(jnp.repeat(1 - jnp.eye(n, dtype=mu.dtype), k, 0), k, 1)
  pairs = weights[:, None] * weights[None] * other / (float(n) * (n - 1))
  square = jnp.square(points[:, None] - points[None])
  spread = var[:, None] + var[None]

  def own(t):
    return jnp.sum(pairs * _expected(square, spread, t))

  def crossed(t):
    return jnp.sum(weights * _expected(jnp.square(points), var + 1, t)) / n

  t = NODES / (KERNEL_WIDTH * d)
  share = np.sqrt(NODES) * np.exp(-NODES)
  found = jnp.zeros((), mu.dtype)
  # Not a loop on the device, which would send sums over devices in each turn.
  for at, by in zip(t.tolist(), share.tolist(), strict=True):
    found += by * (own(at) - 2 * crossed(at))
  found = found + float(np.sum(share * (1 + 4 * t) ** (-d / 2)))
  slope = np.sum(share * 2 * t * (1 + 4 * t) ** (-d / 2 - 1))
  mean, within = _moments(q)
  of_all = jnp.var(mean, axis=0) + jnp.mean(within, axis=0)
  return found / float(2 * slope), jnp.mean(mean, axis=0), of_all


def _expected(
  square: Float[Array, "... d"], var: Float[Array, "... d"], t: jax.Array
) -> Float[Array, "..."]:
  """E exp(-t |x|^2) for x of N(m, diag var), given m^2."""
  return jnp.exp(-_exponent(square, var, t))


# Not kept for the gradient, since [(n k)^2, d] is large. It needs no logarithm.
@jax.checkpoint
def _exponent(
  square: Float[Array, "... d"], var: Float[Array, "... d"], t: jax.Array
) -> Float[Array, "..."]:
  a = 1 + 2 * t * var
  return jnp.sum(t * square / a + 0.5 * jnp.log(a), axis=-1)


def _pairs(of_sum: jax.Array, own: jax.Array, n: float) -> jax.Array:
  """Mean of <a_i, a_j> over i != j, from |sum a|^2 and sum |a|^2."""
  return (of_sum - own) / (float(n) * (n - 1))


def _squared_norms(
  weights: Float[Array, "b k"],
  mu: Float[Array, "b k d"],
  sigma2: Float[Array, "b k d"],
) -> Float[Array, " b"]:
  """|E z z^T|_F^2 of each image, [b], without an array [b, d, d].

  sum_kl pi_k pi_l [ <mu_k, mu_l>^2 + 2 mu_k^T S_l mu_k + <S_k, S_l> ] with
  diagonal S.
  """
  inner = jnp.einsum("bkd,bld->bkl", mu, mu, precision="highest")
  of_mean = jnp.einsum("bkl,bk,bl->b", jnp.square(inner), weights, weights)
  second = jnp.einsum("bk,bkd->bd", weights, jnp.square(mu))
  var = jnp.einsum("bk,bkd->bd", weights, sigma2)
  return of_mean + jnp.sum(2 * second * var + jnp.square(var), axis=-1)


class Form(NamedTuple):
  """A form of the term.

  Attributes:
    function: posterior of the batch -> term (nats), mean [d], variance [d].
    images: the smallest batch size.
    unbiased: whether it is, for any batch size.
    all_moments: whether it is 0 for no population but N(0, I). Then points as
      codes do no harm to samples.
  """

  function: Callable[[Posterior], Estimate]
  images: int
  unbiased: bool = False
  all_moments: bool = False


FORMS = {
  "means": Form(means, 2),
  "full": Form(full, 2),
  "debiased": Form(debiased, 4),
  "quadratic": Form(quadratic, 2, unbiased=True),
  "kernel": Form(kernel, 2, unbiased=True, all_moments=True),
}


def check(form: str, batch_size: int) -> None:
  """Checks a form and its batch size.

  Raises:
    UserError: if there is no such form, or the batch is too small for it.
  """
  check_choice("objective.population", form, FORMS)
  if batch_size < FORMS[form].images:
    raise UserError(
      f"data.batch_size={batch_size}: objective.population={form!r} needs a "
      f"global batch of {FORMS[form].images} or more (the published run had "
      "20)."
    )


def population_kl(
  q: Posterior, form: str
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Computes the population term, in nats.

  Args:
    q: the posterior of the global batch.
    form: one of FORMS.

  Returns:
    The term, and metrics: "population/mean" and "population/var", both [d];
    for `means` also "population/kl_excess", the term minus
    `finite_sample_bias`.

  Example:
    Codes far from N(0, I): all posteriors are N(2, 1) in each of 3 latents.

    >>> q = Gaussian(jnp.full((64, 3), 2.0), jnp.zeros((64, 3)))
    >>> term, info = population_kl(q, "full")  # 3 * 2^2 / 2
    >>> f"{term:.3f}", info["population/mean"].tolist()
    ('6.000', [2.0, 2.0, 2.0])
  """
  kl, mean, var = FORMS[form].function(q)
  info: dict[str, Any] = {"population/mean": mean, "population/var": var}
  if form == "means":
    bias = finite_sample_bias(q.mean().shape[0], mean.size)
    info["population/kl_excess"] = kl - bias
  return kl, jax.lax.stop_gradient(info)


def finite_sample_bias(images: int, latent: int) -> float:
  """The expectation of `means`, in nats, for perfect codes mu ~ N(0, I).

  -d/2 ( psi((B-1)/2) + ln(2/B) ), a constant without gradient.
  """
  psi = scipy.special.digamma((images - 1) / 2)
  return float(-latent / 2 * (psi + np.log(2 / images)))

"""AUROC of anomaly scores, and accuracy of classifiers on codes."""

import warnings

import numpy as np
from jaxtyping import Float, Int

from gamix_jax.errors import UserError
from gamix_jax.metrics.distances import NEIGHBOURS, Estimate


def auroc(
  normal: Float[np.ndarray, " n"], anomalous: Float[np.ndarray, " m"]
) -> Estimate:
  """AUROC: the probability that an anomalous score exceeds a normal one.

  The area under the ROC curve (ties count half); 0.5 is guessing, 1 is
  perfect, and under 0.5 the anomalous images score lower than normal ones. The
  error is that of DeLong et al., Biometrics 44(3), 1988: both sets are samples.

  Args:
    normal: scores [n], n 2 or more; larger is more anomalous.
    anomalous: scores [m], m 2 or more.

  Raises:
    UserError: too few scores, or one that is not finite.
  """
  from scipy.stats import rankdata  # noqa: PLC0415  (0.4 s of every start)

  a, b = (np.asarray(v, np.float64) for v in (normal, anomalous))
  n, m = len(a), len(b)
  if min(n, m) < 2:
    raise UserError(f"auroc has {n} and {m} scores; it needs 2 of each.")
  if not (np.isfinite(a).all() and np.isfinite(b).all()):
    raise UserError("auroc got scores that are not finite.")
  ranks = rankdata(np.concatenate([a, b]))
  # Of each score: the share of the other set that it is on the right side of.
  of_a = 1 - (ranks[:n] - rankdata(a)) / m
  of_b = (ranks[n:] - rankdata(b)) / n
  variance = of_a.var(ddof=1) / n + of_b.var(ddof=1) / m
  return Estimate(float(of_b.mean()), float(np.sqrt(variance)))


def linear_probe(
  codes: Float[np.ndarray, "n d"],
  labels: Int[np.ndarray, " n"],
  test_codes: Float[np.ndarray, "m d"],
  test_labels: Int[np.ndarray, " m"],
) -> Estimate:
  """Accuracy of logistic regression on standardised codes.

  scikit-learn's, with its defaults (L2, C = 1) but 1,000 iterations.

  Args:
    codes: [n, d] that it is fitted on, with their labels [n].
    labels: see codes.
    test_codes: [m, d] that it is scored on.
    test_labels: [m].

  Raises:
    UserError: codes of one class only.
  """
  from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415
  from sklearn.linear_model import LogisticRegression  # noqa: PLC0415

  if len(np.unique(labels)) < 2:
    raise UserError("linear_probe needs codes of two classes or more.")
  with warnings.catch_warnings():
    # Not converged in 1,000 iterations is a probe all the same.
    warnings.simplefilter("ignore", ConvergenceWarning)
    return _accuracy(
      LogisticRegression(max_iter=1000), codes, labels, test_codes, test_labels
    )


def knn(
  codes: Float[np.ndarray, "n d"],
  labels: Int[np.ndarray, " n"],
  test_codes: Float[np.ndarray, "m d"],
  test_labels: Int[np.ndarray, " m"],
  neighbours: int = NEIGHBOURS,
) -> Estimate:
  """Accuracy of a nearest-neighbour vote on standardised codes.

  Raises:
    UserError: fewer codes than neighbours.
  """
  from sklearn.neighbors import KNeighborsClassifier  # noqa: PLC0415

  if len(codes) < neighbours:
    raise UserError(f"knn of {neighbours} has {len(codes)} codes.")
  return _accuracy(
    KNeighborsClassifier(neighbours), codes, labels, test_codes, test_labels
  )


def _accuracy(model, codes, labels, test_codes, test_labels) -> Estimate:
  from sklearn.pipeline import make_pipeline  # noqa: PLC0415
  from sklearn.preprocessing import StandardScaler  # noqa: PLC0415
  from threadpoolctl import threadpool_limits  # noqa: PLC0415

  fitted = make_pipeline(StandardScaler(), model)
  # These matrices are small: threads that wait for one another, on a machine
  # that does something else as well, take up to 60 times as long.
  with threadpool_limits(1):
    fitted.fit(np.asarray(codes, np.float64), labels)
    right = fitted.predict(np.asarray(test_codes, np.float64)) == test_labels
  share = float(np.mean(right))
  return Estimate(share, float(np.sqrt(share * (1 - share) / len(right))))

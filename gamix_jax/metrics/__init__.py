"""Metrics: functions from arrays to numbers.

specs       the table of all metrics: labels, units, meanings
images      absolute error, PSNR, SSIM, sharpness
features    features of a fixed random network, or of Inception
classifier  features of a small network that learned the data's own labels
distances   of two sets of features: Frechet, kernel, precision and recall
latent      the pieces of the ELBO, bits per dimension, how the code is used
completions several completions of incomplete images
codes       AUROC of anomaly scores; accuracy of classifiers on the codes
mcc         how well latents are the true sources, where these are known
"""

from gamix_jax.metrics.classifier import classifier_features
from gamix_jax.metrics.codes import auroc, knn, linear_probe
from gamix_jax.metrics.completions import (
  completion_errors,
  diversity,
  effective_number,
)
from gamix_jax.metrics.distances import (
  ENOUGH_IMAGES,
  frechet_distance,
  kernel_distance,
  prdc,
)
from gamix_jax.metrics.features import inception_features, random_features
from gamix_jax.metrics.images import (
  SSIM_WINDOW,
  absolute_error,
  psnr,
  sharpness,
  ssim,
)
from gamix_jax.metrics.latent import (
  ACTIVE_VARIANCE,
  COLLAPSED_VARIANCE,
  KL_FORMS,
  bits_per_dim,
  by_activity,
  latent_report,
  log_population_mss,
  mean_and_error,
  mixture_report,
  mss_weights,
  population_kl_gaussian,
  sparseness,
  surgery,
  total_variance,
)
from gamix_jax.metrics.mcc import mcc_strong, mcc_weak
from gamix_jax.metrics.specs import METRICS, MetricSpec

__all__ = [
  "ACTIVE_VARIANCE",
  "COLLAPSED_VARIANCE",
  "ENOUGH_IMAGES",
  "KL_FORMS",
  "METRICS",
  "SSIM_WINDOW",
  "MetricSpec",
  "absolute_error",
  "auroc",
  "bits_per_dim",
  "by_activity",
  "classifier_features",
  "completion_errors",
  "diversity",
  "effective_number",
  "frechet_distance",
  "inception_features",
  "kernel_distance",
  "knn",
  "latent_report",
  "linear_probe",
  "log_population_mss",
  "mcc_strong",
  "mcc_weak",
  "mean_and_error",
  "mixture_report",
  "mss_weights",
  "population_kl_gaussian",
  "prdc",
  "psnr",
  "random_features",
  "sharpness",
  "sparseness",
  "ssim",
  "surgery",
  "total_variance",
]

"""The table of all metrics: what each number is called, measures and means."""

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

from gamix_jax.metrics.distances import NEIGHBOURS

# A modality, and a pair: what is observed (several are joined by +) and what is
# generated from it; `prior->m0` and `gmm->m0` are of samples.
_ONE = r"(\w+)"
_PAIR = r"([\w+]+->\w+)"

# Sets of images that are compared with held-out ones: other real images, and
# samples by the source of their latents.
SAMPLE_SETS = (
  *("training_images", "prior", "population", "gmm", "two_stage", "vamp"),
)

_SET = rf"({'|'.join(SAMPLE_SETS)})"
_REACH = (
  f"reach is the distance to neighbour {NEIGHBOURS} among images of the same "
  "set, on the same features"
)
_SHARPNESS = "variance of the Laplacian; best is what the images have, not more"


class MetricSpec(NamedTuple):
  r"""One metric, or one that is measured of several sets of images.

  Attributes:
    key: its name in `metrics.json`, `results.json` and `compare.csv`, and
      after `eval/` in `metrics.jsonl`; a regular expression.
    section: of the report.
    label: for people; `\1` is the first group of the key.
    meaning: in a sentence.
    unit: empty if it has none.
    better: "higher", "lower", or empty if neither is.
  """

  key: str
  section: str
  label: str
  meaning: str
  unit: str = ""
  better: str = ""

  @property
  def arrow(self) -> str:
    """An arrow to the better side, if there is one."""
    return {"higher": "↑", "lower": "↓", "": ""}[self.better]

  def title(self, name: str) -> str:
    """The label and the arrow of the metric called `name`."""
    label = re.fullmatch(self.key, name).expand(self.label)
    return f"{label.strip()} {self.arrow}".rstrip()


METRICS = (
  MetricSpec(
    "mae",
    "Reconstructions",
    "absolute error",
    "mean absolute error of what the posterior's mean decodes to, pixels in "
    "[-1, 1]",
    unit="of [-1, 1]",
    better="lower",
  ),
  MetricSpec(
    "psnr",
    "Reconstructions",
    "PSNR",
    "peak signal-to-noise ratio, mean over images",
    unit="dB",
    better="higher",
  ),
  MetricSpec(
    "ssim",
    "Reconstructions",
    "SSIM",
    "structural similarity, 11x11 Gaussian window",
    better="higher",
  ),
  MetricSpec(
    "sharpness_(images|reconstructions)",
    "Reconstructions",
    r"sharpness of \1",
    _SHARPNESS,
    unit="of [0, 1], squared",
  ),
  MetricSpec(
    f"mae/{_ONE}",
    "Reconstructions",
    r"absolute error, \1",
    "mean absolute error of a modality, decoded from the posterior's mean "
    "given all that is observed; of images pixels in [-1, 1]",
    better="lower",
  ),
  MetricSpec(
    f"psnr/{_ONE}",
    "Reconstructions",
    r"PSNR, \1",
    "peak signal-to-noise ratio of a modality, mean over observations",
    unit="dB",
    better="higher",
  ),
  MetricSpec(
    f"accuracy/{_ONE}",
    "Reconstructions",
    r"accuracy, \1",
    "share of the classes that are reconstructed",
    better="higher",
  ),
  MetricSpec(
    f"reconstruction_log_likelihood(?:/{_ONE})?",
    "Reconstructions",
    r"reconstruction log-likelihood \1",
    "ln p(x given z) at the posterior's mean given all that is observed, of a "
    "modality or of all together, mean over observations; only between models "
    "with the same weights of the reconstruction",
    unit="nats",
    better="higher",
  ),
  MetricSpec(
    "((?:fid|fd)(?:_[^/]*)?)_reconstructions",
    "Reconstructions",
    r"\1 of reconstructions",
    "squared Frechet distance of reconstructions to their images; rFID with "
    "the FID's Inception",
    unit="features squared",
    better="lower",
  ),
  MetricSpec(
    f"((?:fid|fd)(?:_[^/]*)?)_{_SET}",
    "Samples",
    r"\1 of samples, \2",
    "squared Frechet distance of samples to images; fid_ with the FID's "
    "Inception, else fd_ and the features' name, never an FID: compare it with "
    "numbers of the same features, data and count only. `training_images` is "
    "what as many real images get",
    unit="features squared",
    better="lower",
  ),
  MetricSpec(
    f"((?:kid|kd)(?:_[^/]*)?)_{_SET}",
    "Samples",
    r"\1 of samples, \2",
    "unbiased squared maximum mean discrepancy, cubic kernel; kid_ with the "
    "FID's Inception. May be below 0",
    better="lower",
  ),
  MetricSpec(
    f"precision_{_SET}",
    "Samples",
    r"precision of samples, \1",
    f"share of samples within the images' reach; {_REACH}",
    better="higher",
  ),
  MetricSpec(
    f"recall_{_SET}",
    "Samples",
    r"recall of samples, \1",
    "share of images within the samples' reach",
    better="higher",
  ),
  MetricSpec(
    f"density_{_SET}",
    "Samples",
    r"density of samples, \1",
    "number of images whose reach a sample is within, mean over samples, "
    f"divided by {NEIGHBOURS}",
    better="higher",
  ),
  MetricSpec(
    f"coverage_{_SET}",
    "Samples",
    r"coverage of samples, \1",
    "share of images with a sample within their reach",
    better="higher",
  ),
  MetricSpec(
    f"sharpness_{_SET}",
    "Samples",
    r"sharpness of samples, \1",
    _SHARPNESS,
    unit="of [0, 1], squared",
  ),
  MetricSpec(
    "coherence_size/(\\d+)",
    "Translations",
    r"coherence given \1",
    "`coherence/...` given so many modalities, mean over these subsets and "
    "over the modalities outside of each",
    better="higher",
  ),
  MetricSpec(
    f"coherence/{_PAIR}",
    "Translations",
    r"coherence, \1",
    "share of the generated modality, decoded from a draw of the posterior "
    "given others, that has the observation's class, by the classifier of that "
    "modality",
    better="higher",
  ),
  MetricSpec(
    "joint_coherence",
    "Translations",
    "coherence of samples",
    "share of the samples whose modalities all have the same class, by the "
    "classifiers; of classes as likely, independent samples would have "
    "classes^(1 - modalities)",
    better="higher",
  ),
  MetricSpec(
    "sample_classes",
    "Translations",
    "classes of samples",
    "exp of the entropy of the classes of the samples' modalities: how many "
    "classes there are among them. With few, coherence is easy",
    better="higher",
  ),
  MetricSpec(
    f"classifier_accuracy/{_ONE}",
    "Translations",
    r"classifier of \1",
    "accuracy of the modality's classifier on held-out observations: about as "
    "much as a coherence can reach",
    better="higher",
  ),
  MetricSpec(
    f"(fd(?:_[^/]*)?)/{_PAIR}",
    "Translations",
    r"\1, \2",
    "squared Frechet distance of the generated modality to held-out ones, on "
    "the features of that modality's classifier; never an FID",
    unit="features squared",
    better="lower",
  ),
  MetricSpec(
    "elbo",
    "Likelihood",
    "ELBO",
    "lower bound of ln p(x), mean over images, of the likelihood that the "
    "reconstruction's weight stands for; none for a family whose densities "
    "give no finite bound",
    unit="nats",
    better="higher",
  ),
  MetricSpec(
    "iwae",
    "Likelihood",
    "IWAE bound",
    "importance-weighted bound of several draws (of a mixture: of each "
    "component), which is tighter",
    unit="nats",
    better="higher",
  ),
  MetricSpec(
    "(elbo|iwae)_bits_per_dim",
    "Likelihood",
    r"\1, bits per dimension",
    "the same, bits for each number of an image at 256 levels; not of a "
    "Bernoulli likelihood",
    unit="bits",
    better="lower",
  ),
  MetricSpec(
    f"conditional_log_likelihood/{_PAIR}",
    "Likelihood",
    r"conditional log-likelihood, \1",
    "ln of the mean of p(modality given z) over draws of q(z given others); it "
    "is ln p(modality given others) only if q is the model's posterior, so it "
    "judges the encoders too",
    unit="nats",
    better="higher",
  ),
  MetricSpec(
    "exact_log_likelihood",
    "Likelihood",
    "exact ln p(x)",
    "of the law that the data were drawn from, of the same observations; no "
    "model has more on average",
    unit="nats",
  ),
  MetricSpec(
    "log_likelihood_gap",
    "Likelihood",
    "gap to the exact ln p(x)",
    "exact ln p(x) minus the importance-weighted bound, mean over observations",
    unit="nats",
    better="lower",
  ),
  MetricSpec(
    "kl",
    "Latents",
    "KL",
    "mean KL(q(z given x) to p): `mutual_information` + `population_kl`",
    unit="nats",
  ),
  MetricSpec(
    "mutual_information",
    "Latents",
    "mutual information",
    "of image and code; at most ln of the images' count: where it is near "
    "that, `population_kl` has what is cut off",
    unit="nats",
  ),
  MetricSpec(
    "active_units",
    "Latents",
    "active units",
    "latents whose posterior mean has a variance over images above 0.01; how "
    "much they tell is `mutual_information`, which may be near 0 with all of "
    "them active",
  ),
  MetricSpec(
    "population_kl",
    "Latents",
    "population KL",
    "KL(q(z) to p), q(z) the population of these images; estimated from one "
    "draw an image, so that noise may take it below 0",
    unit="nats",
    better="lower",
  ),
  MetricSpec(
    "total_correlation",
    "Latents",
    "total correlation",
    "KL of q(z) to its dimensions' product; with `dimension_kl`, "
    "`population_kl`",
    unit="nats",
    better="lower",
  ),
  MetricSpec(
    "dimension_kl",
    "Latents",
    "dimension KL",
    "KL of the dimensions to the prior's, summed",
    unit="nats",
    better="lower",
  ),
  MetricSpec(
    "population_kl_gaussian",
    "Latents",
    "population KL, Gaussian",
    "KL to the prior of the Gaussian with q(z)'s moments",
    unit="nats",
    better="lower",
  ),
  MetricSpec(
    "collapsed_fraction",
    "Latents",
    "collapsed fraction",
    "share of the posteriors' variances below 0.01; of a mixture, of its total "
    "variance",
  ),
  MetricSpec(
    "collapsed_components",
    "Latents",
    "collapsed components",
    "of a mixture: share of the components' variances below 0.01, by weight",
  ),
  MetricSpec(
    "effective_components",
    "Latents",
    "effective components",
    "of a mixture: exp of the entropy of an image's weights, mean over images",
  ),
  MetricSpec(
    "components_in_use",
    "Latents",
    "components in use",
    "of a mixture: exp of the entropy of the weights' mean over images; where "
    "it is above `effective_components`, different images use different ones",
  ),
  MetricSpec(
    "(population|lifetime)_sparseness",
    "Latents",
    r"\1 sparseness",
    "of rates, over the latents of an image and over the images of a latent; "
    "1 where one alone is not 0, 0 where all are equal",
  ),
  MetricSpec(
    "mcc_(weak|strong)",
    "Latents",
    r"MCC, \1",
    "mean correlation coefficient of the posterior means and the true sources: "
    "weak up to an affine map, which is fitted on half of the observations; "
    "strong up to permutation and scale",
    better="higher",
  ),
  MetricSpec(
    "completion_mae",
    "Completions",
    "error of a completion",
    "mean absolute error of a draw, where the encoder sees nothing; pixels in "
    "[-1, 1]",
    unit="of [-1, 1]",
    better="lower",
  ),
  MetricSpec(
    "completion_mae_best",
    "Completions",
    "error of the best completion",
    "the same of the best of an image's draws",
    unit="of [-1, 1]",
    better="lower",
  ),
  MetricSpec(
    "visible_mae",
    "Completions",
    "error where visible",
    "mean absolute error of a draw, where the encoder sees the image",
    unit="of [-1, 1]",
    better="lower",
  ),
  MetricSpec(
    "completion_diversity",
    "Completions",
    "diversity of completions",
    "mean absolute difference of two draws, where the encoder sees nothing",
    unit="of [-1, 1]",
  ),
  MetricSpec(
    "completion_classes",
    "Completions",
    "classes of completions",
    "exp of the entropy of the classes of an image's draws, for the features' "
    "classifier",
  ),
  MetricSpec(
    "completion_right",
    "Completions",
    "right completions",
    "share of the draws that have the image's class for the classifier",
    better="higher",
  ),
  MetricSpec(
    "completion_covers",
    "Completions",
    "class covered",
    "share of the images of which one draw or more has the image's class",
    better="higher",
  ),
  MetricSpec(
    "component_diversity",
    "Completions",
    "diversity of components",
    "of a mixture: mean absolute difference of the decoded means of two "
    "components, by their weights, where the encoder sees nothing",
    unit="of [-1, 1]",
  ),
  MetricSpec(
    "component_classes",
    "Completions",
    "classes of components",
    "of a mixture: exp of the entropy of the classes of the components' "
    "decoded means, by their weights",
  ),
  MetricSpec(
    "auroc_(.*)",
    "Anomalies",
    r"AUROC, \1",
    "chance that an image of a class held out of the training scores higher "
    "than one of the others; 0.5 is guessing",
    better="higher",
  ),
  MetricSpec(
    "linear_probe",
    "Labels",
    "linear probe",
    "accuracy of logistic regression on the codes",
    better="higher",
  ),
  MetricSpec(
    f"linear_probe/{_ONE}",
    "Labels",
    r"linear probe, \1",
    "accuracy of logistic regression on the latents given one modality; of "
    "separate latents on those of that modality",
    better="higher",
  ),
  MetricSpec(
    "linear_probe_size/(\\d+)",
    "Labels",
    r"linear probe given \1",
    "accuracy of logistic regression on the latents given so many modalities, "
    "mean over the subsets; of separate latents the mean over the modalities "
    "of the accuracy on the latents of each",
    better="higher",
  ),
  MetricSpec(
    "knn",
    "Labels",
    "nearest neighbours",
    "accuracy of the nearest codes' vote",
    better="higher",
  ),
  MetricSpec(
    "majority_class",
    "Labels",
    "majority class",
    "accuracy of always predicting the most frequent class",
  ),
  MetricSpec(
    "sec_per_step",
    "Training",
    "seconds per step",
    "median over the training's log without its first row; depends on this "
    "machine and its load, not on the seed",
    unit="s",
    better="lower",
  ),
  MetricSpec(
    "decodes_per_image",
    "Training",
    "decodes per image",
    "draws that a training step decodes for each image, in one batch",
  ),
)
SECTIONS = tuple(dict.fromkeys(spec.section for spec in METRICS))


def by_spec(names: Iterable[str]) -> dict[MetricSpec, list[str]]:
  """The names of each metric, in the order of the table."""
  found: dict[MetricSpec, list[str]] = {}
  for name in sorted(names, key=lambda name: METRICS.index(find(name))):
    found.setdefault(find(name), []).append(name)
  return found


@functools.cache
def find(name: str) -> MetricSpec:
  """The first metric of the table whose key matches a name.

  Raises:
    KeyError: there is none.
  """
  for spec in METRICS:
    if re.fullmatch(spec.key, name):
      return spec
  raise KeyError(name)

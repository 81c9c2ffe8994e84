"""The section `eval` of this command: every key with its default."""

from ml_collections import ConfigDict

from gamix_jax import cli
from gamix_jax.errors import UserError
from gamix_jax.registry import check_choice

FEATURES = ("auto", "classifier", "random", "inception")
POSITIVE = (
  *("images", "train_images", "bound_images", "draws", "completions"),
)
# Steps of a classifier of images, and of each of several modalities: those have
# backgrounds and places to overlook, which takes longer.
STEPS, STEPS_EACH = 400, 2_000
SOURCES = ("prior", "population", "gmm", "two_stage", "vamp")


def base() -> ConfigDict:
  """The keys `--config.eval.*`; locked. They belong to no training run."""
  c = ConfigDict()
  c.eval = ConfigDict()
  e = c.eval
  e.images = 10_000  # held-out images, and samples of each source, at most
  e.train_images = 5_000  # for samplers, classifier, probes; at most
  e.bound_images = 1_000  # of the held-out images, for bounds and AUROC
  e.draws = 32  # of z an image (of a mixture: of each component), for bounds
  e.completions = 16  # draws of z an image, of runs with data.occlude
  e.sources = ("prior", "population", "gmm")  # of samples; two_stage, vamp
  e.features = "auto"  # inception with its file, else classifier with labels,
  #   else random; or one of these
  e.classifier_steps = 0  # of their training; 0: STEPS, or STEPS_EACH
  e.inception_weights = ""  # a file; nothing is downloaded
  e.seed = 0  # which images, draws, samples, fits
  c.data = cli.data_now()
  return c.lock()


def check_multimodal(config: ConfigDict) -> None:
  """Validates the values for a run of several modalities.

  Raises:
    UserError: a key is set that only the evaluation of images reads.
  """
  default = base().eval
  for key in ("sources", "features", "inception_weights"):
    if config.eval[key] != default[key]:
      raise UserError(
        f"eval.{key}={config.eval[key]!r} is for runs of images; this run has "
        "several modalities, each with a classifier of its own, and is sampled "
        f"from its prior, or a fitted mixture. Remove --config.eval.{key}."
      )


def check(config: ConfigDict) -> None:
  """Validates the values.

  Raises:
    UserError: what is wrong, and what there is.
  """
  e = config.eval
  for key in POSITIVE:
    if e[key] < 1:
      raise UserError(f"eval.{key}={e[key]} must be 1 or more.")
  if e.classifier_steps < 0:
    raise UserError(
      f"eval.classifier_steps={e.classifier_steps} must be 0, which chooses, "
      "or more."
    )
  if not 0 <= e.seed < 2**32:
    raise UserError(f"eval.seed={e.seed} must be from 0 to 2^32 - 1.")
  check_choice("eval.features", e.features, FEATURES)
  if not e.sources or set(e.sources) - set(SOURCES):
    raise UserError(
      f"eval.sources={tuple(e.sources)!r} must be a tuple of one or more of "
      f"{', '.join(SOURCES)}."
    )
  if e.features == "inception" and not e.inception_weights:
    raise UserError(
      "eval.features=inception needs --config.eval.inception_weights=FILE."
    )
  if e.inception_weights and e.features not in ("auto", "inception"):
    raise UserError(
      f"eval.inception_weights is set, but eval.features is {e.features!r}."
    )

"""The population bench: python -m benchmarks.population, in a checkout.

--source=idx:/data/mnist      the images, a data.source with labels and a test
                              split
--size=28 --channels=1        of the images
--network=mlp                 the fully connected 784-200-200-200-8 network of
                              arXiv:1805.09235; conv, the preset small; or
                              resnet, the preset base
--latent=N                    instead of the network's number of latents
--reconstruction=bernoulli    or another likelihood, such as l1
--adversarial=none            hinge or bce: with a PatchGAN discriminator in the
                              second half of the steps
--methods=vae,wae_mmd         default: all, or those of the figure over batch
                              sizes; see benchmarks/population/methods.py
--weights=1,30                one of each method, in the order of --methods,
                              instead of a sweep that chooses it
--seeds=5                     final runs of each method
--sweep_seeds=1               runs of the sweep with each weight
--batch=128                   images of a step
--sweep_epochs=5 --epochs=20  passes over the training images of the runs that
                              choose a weight, and of all others
--judged=2000                 held-out images, and samples, that judge a run
--sources=gmm,two_stage       latent sources of the final runs beside the prior
--inception_weights=FILE      a FID of final runs, beside the features of a
                              classifier; see gamix_jax.evaluate
--batches=8,32,128,512        runs of other batch sizes instead, with the
                              weights chosen before and as many images seen
--stack                       the runs of a method side by side in one program:
                              faster on a GPU, for the small network
--out=runs/population         output folder: table.md, runs.csv, figures, and a
                              folder per run; the same command continues
--report                      writes the tables from the folder, trains nothing
--tiny                        built-in digits and seconds, to try the command

Each method's weight is chosen from five on a sixth of the training images,
which no run trains on: the lowest sum of the Frechet distances of
reconstructions and of samples. The test split judges the final runs only.
Several processes with the same command and folder share the work.
"""

import dataclasses
import math
import sys
from collections.abc import Sequence

from absl import flags

from gamix_jax import cli, paths
from gamix_jax.errors import UserError
from gamix_jax.registry import check_choice

TINY = {
  "source": "digits",
  "size": 8,
  "batch": 64,
  "sweep_epochs": 1,
  "epochs": 2,
  "judged": 150,
  "seeds": 2,
}


def define() -> None:
  """Defines the flags."""
  text, number = flags.DEFINE_string, flags.DEFINE_integer
  text("source", None, "")
  number("size", 28, "")
  number("channels", 1, "")
  text("network", "mlp", "")
  number("latent", 0, "", lower_bound=0)
  text("reconstruction", "bernoulli", "")
  text("adversarial", "none", "")
  flags.DEFINE_list("methods", None, "")
  flags.DEFINE_list("weights", None, "")
  number("seeds", 5, "")
  number("sweep_seeds", 1, "")
  number("batch", 128, "")
  number("sweep_epochs", 5, "")
  number("epochs", 20, "")
  number("judged", 2_000, "")
  flags.DEFINE_list("sources", ["gmm", "two_stage"], "")
  text("inception_weights", "", "")
  flags.DEFINE_list("batches", [], "")
  flags.DEFINE_bool("stack", False, "")
  text("out", "runs/population", "")
  flags.DEFINE_bool("report", False, "")
  flags.DEFINE_bool("tiny", False, "")


def main() -> None:
  """Trains, judges and reports as the flags say.

  Raises:
    UserError: if a flag is invalid, or the data cannot be read.
  """
  given = flags.FLAGS
  if given.tiny:
    for key, value in TINY.items():
      if not given[key].present:
        given[key].value = value
  out = paths.resolve(given.out)
  from benchmarks.population import plan, report  # noqa: PLC0415  (JAX)
  from benchmarks.population.methods import (  # noqa: PLC0415
    BATCH_METHODS,
    METHODS,
  )

  if given.report:
    print(report.write(out), flush=True)
    return
  settings = _settings(plan)
  all_methods = BATCH_METHODS if given.batches else METHODS
  names = given.methods or list(all_methods)
  for name in names:
    check_choice("--methods", name, METHODS)
  weights = _weights(names)
  if not all(v.isdecimal() and int(v) >= 2 for v in given.batches):
    raise UserError(
      f"--batches={','.join(given.batches)} must be numbers of 2 or more."
    )
  cli.use_compilation_cache()
  bench = plan.Bench(
    settings, out, given.stack, _say, given.inception_weights, weights
  )
  if given.batches:
    bench.batches(names, list(map(int, given.batches)), given.seeds)
  else:
    bench.methods(names, given.seeds)
  print(report.write(out), flush=True)


def _weights(names: Sequence[str]) -> dict[str, float]:
  """Returns the weights that --weights gives, {method: weight}.

  Raises:
    UserError: if there is not one number for each method.
  """
  given = flags.FLAGS.weights
  if given is None:
    return {}
  try:
    found = [float(v) for v in given]
  except ValueError:
    found = []
  good = all(math.isfinite(v) and v >= 0 for v in found)
  if not good or len(found) != len(names):
    raise UserError(
      f"--weights={','.join(given)} must be a number of 0 or more for each of "
      f"the {len(names)} methods {','.join(names)}."
    )
  return dict(zip(names, found, strict=True))


def _settings(plan):
  """Returns the settings that the flags give.

  Raises:
    UserError: if one is invalid.
  """
  given = flags.FLAGS
  if not given.source:
    raise UserError(
      "--source is missing, such as --source=idx:/data/mnist; --tiny needs "
      "none."
    )
  for key in (
    *("size", "channels", "seeds", "batch"),
    *("sweep_seeds", "sweep_epochs", "epochs", "judged"),
  ):
    if given[key].value < 1:
      raise UserError(f"--{key}={given[key].value} must be 1 or more.")
  for source in given.sources:
    check_choice("--sources", source, ("gmm", "two_stage"))
  from gamix_jax import data  # noqa: PLC0415

  names = [f.name for f in dataclasses.fields(plan.Settings)]
  return plan.Settings(
    **{name: given[name].value for name in names}
    | {
      "source": data.resolve_source(given.source),
      "sources": tuple(given.sources),
    }
  )


def _say(line: str) -> None:
  print(line, flush=True)


if __name__ == "__main__":
  if "--help" in sys.argv:
    print(__doc__)
    sys.exit(0)
  sys.exit(cli.run(main, define=define))

"""Comparisons of many runs, in parts: python -m benchmarks.studies.

--study=occlusion    mixtures where the encoder sees a part of the image:
                     components x objective x half, box, on MNIST and
                     Fashion-MNIST
        anomalies    the AUROC of each class of MNIST that was held out of the
                     training, of GAMIX and of the standard VAE
--list               prints the parts of the study
--part=NAME          trains and judges this part; default: all, one by one
--tables             writes the tables of what is finished, and trains nothing
--out=runs/studies   each part is a folder DIR/<study>/<part>, see
                     `gamix_jax.compare`; tables go to DIR/<study>.md
--mnist=, --fashion= folders of the four idx files
--steps=N            instead of the study's own
--tiny               a few steps on few images, to try it

A part that was stopped continues; finished runs are not repeated. Parts can be
run by several processes at the same time. So that all are judged by the same
classifiers, copy the `classifier-*.npz` of a first part to DIR before the
others start. Tables need the `results.json` of the runs alone.
"""

import dataclasses
import json
import shutil
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from gamix_jax import cli, files
from gamix_jax.errors import UserError
from gamix_jax.registry import check_choice

SEEDS = 3
CLASSES = 10
DRAWS = 8  # of one component, as many as the largest mixture decodes
OBJECTIVES = ("selbo", "siwae", "gamix", "gamix_mixture")
BOUND_DRAWS = 128  # of each image, for bounds, whatever the components
FLOOR = 0.5  # posterior.mixture.min_weight
# population_kl and collapse_penalty of `configs/mnist.py`, and of `kernel` in
# `benchmarks.population`.
WEIGHTS = "@population_kl=10@collapse_penalty=0.3"
WEIGHTS_KERNEL = "@population_kl=10@collapse_penalty=0.03"


@dataclasses.dataclass(frozen=True)
class Part:
  """Runs that one process makes one after another.

  Attributes:
    data: the flag with their images.
    families: see `gamix_jax.compare`.
    keys: differences from the study's config.
    seed: of all of them.
    row: what rows of the tables have in common with those of other seeds.
  """

  data: str
  families: tuple[str, ...]
  keys: Mapping[str, Any]
  seed: int
  row: tuple[str, ...]


def occlusion() -> dict[str, Part]:
  """Half on both data sets with all seeds; box with one."""
  parts: dict[str, Part] = {}
  whole: dict[str, Any] = {}
  floor = {"posterior.mixture.min_weight": FLOOR}
  draws = {"objective.num_samples": DRAWS}
  for seed in range(SEEDS):
    for kind in ("half", "box") if seed == 0 else ("half",):
      for data in ("mnist", "fashion"):
        for end, k, names, keys in (
          ("k1", 1, ("selbo", "siwae", "gamix"), whole),
          ("k4", 4, OBJECTIVES, whole),
          ("k8", 8, OBJECTIVES, whole),
          ("draws", 1, ("siwae", "gamix_mixture"), draws),
          ("floor4", 4, ("selbo", "gamix"), floor),
          ("floor8", 8, ("selbo", "gamix"), floor),
        ):
          row = (f"{key.split('.')[-1]} {v}" for key, v in keys.items())
          # Validation draws from each component.
          shared = {"data.occlude": kind, "eval_draws": BOUND_DRAWS // k}
          parts[f"{data}_{kind}_{end}_s{seed}"] = Part(
            *(data, _mixtures(k, *names), shared | keys, seed),
            (data, kind, *row),
          )
  return parts


def _mixtures(components: int, *objectives: str) -> tuple[str, ...]:
  """Families of `compare`."""
  return tuple(
    f"mixture:{components}/{o}"
    + (f":quadratic{WEIGHTS}" if o.startswith("gamix") else "")
    for o in objectives
  )


def anomalies() -> dict[str, Part]:
  """Every class of MNIST held out once, with all seeds."""
  families = (
    "gaussian/elbo",
    f"gaussian/gamix:quadratic{WEIGHTS}",
    f"gaussian/gamix:kernel{WEIGHTS_KERNEL}",
  )
  return {
    f"class{c}_s{seed}": Part(
      *("mnist", families, {"data.exclude_labels": (c,)}, seed, (str(c),))
    )
    for seed in range(SEEDS)
    for c in range(CLASSES)
  }


STUDIES = {"occlusion": occlusion, "anomalies": anomalies}
# Of the classifier: 400 steps, as `evaluate` has, are right on 4 of 5 digits.
CLASSIFIER_STEPS = 4_000
STEPS = {"occlusion": 4_000, "anomalies": 4_000}
# Columns of the tables: names of metrics.
COLUMNS = {
  "occlusion": (
    *("elbo", "iwae", "completion_mae", "completion_mae_best", "visible_mae"),
    *("completion_diversity", "component_diversity", "completion_classes"),
    *("completion_right", "completion_covers", "component_classes"),
    *("effective_components", "components_in_use", "sec_per_step"),
  ),
  "anomalies": ("auroc_reconstruction", "auroc_elbo", "mae"),
}


def config(study: str, part: Part, folders: Mapping[str, str | None]) -> Any:
  """The config that the runs of a part share.

  Raises:
    UserError: the flag with its images is missing.
  """
  from gamix_jax import config as configs  # noqa: PLC0415  (flags come first)
  from gamix_jax import presets  # noqa: PLC0415

  folder = folders[part.data]
  if folder is None:
    raise UserError(f"--{part.data}=DIR is missing: it has the images.")
  c = configs.base()
  presets.ours(c, "small")
  c.data.source = f"idx:{folder}"
  c.data.image_size, c.data.channels, c.data.flip = 28, 1, False
  c.data.batch_size = 128
  c.data.cache = "memory"
  c.objective.reconstruction = "bernoulli"
  c.steps = STEPS[study]
  c.log_every, c.eval_images, c.track = 200, 2_000, "none"
  c.model.encoder = c.model.decoder = "mlp"
  c.model.encoder_features = c.model.decoder_features = (256, 256)
  c.model.latent = 16
  for key, value in part.keys.items():
    configs.put(c, key, value)
  c.seed = part.seed
  return c


def shorten(c: Any, steps: int | None, tiny: bool) -> Any:
  """The config with other steps; with `tiny` of a few on few images."""
  if tiny:
    c.data.batch_size, c.eval_images, c.eval_draws = 8, 32, 2
    c.steps, c.log_every = 4, 2
  c.steps = steps or c.steps
  c.eval_every = c.checkpoint.every = c.steps
  return c


def run(
  root: Path,
  study: str,
  name: str,
  part: Part,
  change: Callable[[Any], Any],
  folders: Mapping[str, str | None],
) -> None:
  """Trains and judges what is not finished of a part."""
  from gamix_jax.compare.loop import compare  # noqa: PLC0415

  c = change(config(study, part, folders))
  folder = root / study / name
  folder.mkdir(parents=True, exist_ok=True)
  for file in root.glob("classifier-*.npz"):  # one judge for all parts
    shutil.copy(file, folder)
  steps = min(CLASSIFIER_STEPS, 100 * c.steps)
  compare(c, part.families, 1, folder, classifier_steps=steps)


def results(root: Path, study: str) -> dict[tuple[str, ...], list[Any]]:
  """The numbers of the finished runs, {row: [numbers of each seed]}."""
  from gamix_jax.compare.families import folder_name  # noqa: PLC0415

  found: dict[tuple[str, ...], list[Any]] = {}
  for name, part in STUDIES[study]().items():
    for family in part.families:
      folder = root / study / name / folder_name(family) / f"seed{part.seed}"
      path = folder / "results.json"
      if path.is_file():
        numbers = json.loads(path.read_bytes())["numbers"]
        label = family.partition("@")[0]
        found.setdefault((*part.row, label), []).append(numbers)
  return found


def table(found: Mapping[tuple[str, ...], list[Any]], study: str) -> str:
  """A Markdown table: mean ± standard deviation over seeds of each metric.

  Anomalies also have a line for the mean over classes.
  """
  from gamix_jax.compare.report import cell  # noqa: PLC0415
  from gamix_jax.evaluate.report import markdown_table  # noqa: PLC0415

  found = dict(found)
  if study == "anomalies":
    for label in dict.fromkeys(row[-1] for row in found):
      each = [v for row, v in found.items() if row[-1] == label]
      found["mean of classes", label] = [
        {k: statistics.fmean(n[k] for n in of_seed) for k in of_seed[0]}
        for of_seed in zip(*each, strict=False)
      ]
  names = COLUMNS[study]
  lines = [
    [
      ", ".join(row),
      *(cell([n[name] for n in v if name in n]) for name in names),
      str(len(v)),
    ]
    for row, v in sorted(found.items())
  ]
  align = ["---", *["---:"] * (len(names) + 1)]
  return markdown_table(["run", *names, "seeds"], align, lines)


def main() -> None:
  """Runs a study, a part of it, or writes its tables.

  Raises:
    UserError: a flag is wrong, or a run cannot be made.
  """
  given = flags.FLAGS
  check_choice("--study", given.study, STUDIES)
  parts = STUDIES[given.study]()
  if given.list:
    print("\n".join(parts))
    return
  root = Path(given.out).absolute()
  chosen = parts
  if given.part:
    check_choice("--part", given.part, parts)
    chosen = {given.part: parts[given.part]}
  cli.use_compilation_cache()
  folders = {k: given[k].value for k in ("mnist", "fashion")}
  for name, part in {} if given.tables else chosen.items():
    run(
      *(root, given.study, name, part),
      lambda c: shorten(c, given.steps, given.tiny),
      folders,
    )
  if given.part and not given.tables:
    return  # others may be writing theirs
  found = results(root, given.study)
  if not found:
    raise UserError(f"{root / given.study} has no finished run.")
  file = root / f"{given.study}.md"
  files.write_text(file, table(found, given.study))
  print(f"Written: {file}")


if __name__ == "__main__":
  flags.DEFINE_string("study", None, "What to run.")
  flags.DEFINE_bool("list", False, "Print the parts.")
  flags.DEFINE_string("part", None, "The part to run.")
  flags.DEFINE_bool("tables", False, "Only write tables.")
  flags.DEFINE_string("out", "runs/studies", "Output folder.")
  for flag in ("mnist", "fashion"):
    flags.DEFINE_string(flag, None, "A folder of idx files.")
  flags.DEFINE_integer("steps", None, "Of each run.")
  flags.DEFINE_bool("tiny", False, "A few steps.")
  sys.exit(cli.run(main, text=__doc__))

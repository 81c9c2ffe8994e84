"""A comparison as a table, as numbers, and its protocol."""

import csv
import io
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gamix_jax import files, metrics, objective
from gamix_jax.compare import figure
from gamix_jax.config import ConfigDict, image_shape
from gamix_jax.evaluate import settings
from gamix_jax.metrics.distances import NEIGHBOURS

TABLE, NUMBERS, FIGURE = "compare.md", "compare.csv", "compare.png"
FRONT = "front.png"
DIGITS = 4  # of a mean that are shown

Key = tuple[str, int]  # family, seed


class MetricSpec(NamedTuple):
  """A line of the table.

  Attributes:
    key: of it in a run's numbers.
    label: for people, with an arrow to the better side where there is one.
    meaning: in a sentence, with its unit.
    panel: whether the figure has it.
  """

  key: str
  label: str
  meaning: str
  panel: bool = False


def quantities(features: str) -> list[MetricSpec]:
  """All of them, in order; `features` is the extractor's name."""
  fd = f"fd_{features}"
  kind = "a fixed random network's"
  if features.startswith("classifier"):
    kind = "of a small classifier that learned the training images' labels"
  of_fd = (
    f"squared Frechet distance on the features {features}, {kind} (never an "
    "FID; compare with numbers of the same features, data and count only)"
  )
  shares = {
    "precision": "share of prior samples within the held-out images' reach",
    "recall": "share of held-out images within the prior samples' reach",
    "density": "held-out images in whose reach a prior sample is, mean, over "
    f"{NEIGHBOURS}",
    "coverage": "share of held-out images with a prior sample in their reach",
  }
  return [
    MetricSpec(
      "elbo",
      "ELBO ↑",
      "true lower bound of ln p(x), nats an image, for the likelihood that "
      "the reconstruction's weight stands for; none for a family whose "
      "densities give no finite bound",
      True,
    ),
    MetricSpec(
      "iwae",
      "IWAE bound ↑",
      "importance-weighted bound of `eval_draws` draws (of a mixture: of each "
      "component, stratified), nats an image",
      True,
    ),
    MetricSpec(
      "mae",
      "absolute error ↓",
      "of reconstructions from q's mean, pixels in [-1, 1]",
      True,
    ),
    MetricSpec("psnr", "PSNR ↑", "of the same reconstructions, dB"),
    MetricSpec(
      "sharpness_reconstructions",
      "sharpness, reconstructions",
      "variance of the Laplacian, pixels in [0, 1]; best is what held-out "
      "images have, not more",
      True,
    ),
    MetricSpec(
      "sharpness_samples", "sharpness, samples", "the same of prior samples"
    ),
    MetricSpec(
      "sharpness_held_out", "sharpness, held out", "the same of the images"
    ),
    MetricSpec(
      f"{fd}_samples",
      f"{fd}, samples ↓",
      f"prior samples against held-out images, {of_fd}",
      True,
    ),
    MetricSpec(
      f"{fd}_reconstructions",
      f"{fd}, reconstructions ↓",
      "held-out images' reconstructions against those images, as above",
      True,
    ),
    *(
      MetricSpec(
        f"{name}_samples",
        f"{name}, samples ↑",
        f"{meaning}, which is the distance of neighbour {NEIGHBOURS} on the "
        "same features",
      )
      for name, meaning in shares.items()
    ),
    MetricSpec(
      "active_units",
      "active units",
      "latents whose posterior mean varies over images by more than 0.01",
      True,
    ),
    MetricSpec(
      "collapsed_fraction",
      "collapsed share",
      "of the posteriors' variances: those under 0.01",
    ),
    MetricSpec(
      "effective_components",
      "effective components",
      "of a mixture: exp of the mean image's weights' entropy, averaged",
    ),
    MetricSpec(
      "lifetime_sparseness",
      "lifetime sparseness",
      "of rates: 1 of a latent that one image alone uses, 0 of one that all "
      "use alike",
    ),
    MetricSpec(
      "population_sparseness",
      "population sparseness",
      "the same of an image over the latents",
    ),
    MetricSpec(
      "mutual_information",
      "mutual information",
      "of image and code over the images used, nats; at most ln of their "
      "count. Mean KL(q(z|x) || p) is this plus the next",
    ),
    MetricSpec(
      "population_kl",
      "population's KL ↓",
      "KL(q(z) || p), q(z) the population of the images used, nats; estimated "
      "from one draw an image, whose noise may take it under 0",
    ),
    MetricSpec(
      "sec_per_step",
      "seconds a step ↓",
      "median over the training's log without its first row; of this machine "
      "and its load, and no part of what a seed decides",
      True,
    ),
    MetricSpec(
      "decodes_per_image",
      "decoder calls a step",
      "draws that a step decodes for each image, in one batch",
    ),
  ]


# ---------------------------------------------------------- numbers


def spread(values: Sequence[float]) -> tuple[float, float | None]:
  """Mean and sample standard deviation, None of one value alone."""
  if len(values) == 1:
    return values[0], None
  return statistics.fmean(values), statistics.stdev(values)


def cell(values: Sequence[float]) -> str:
  """`mean ± spread` with the mean's digits; `-` of no values."""
  if not values:
    return "-"
  mean, sd = spread(values)
  size = max(abs(mean), sd or 0.0)
  places = DIGITS - 1 - math.floor(math.log10(size)) if size else 0
  if places > 2 * DIGITS:  # so small that zeros would fill the cell
    shown = f".{DIGITS - 1}e"
  else:
    whole = all(float(v).is_integer() for v in values) and not sd
    shown = f".{0 if whole else max(places, 0)}f"
  return f"{mean:{shown}}" + ("" if sd is None else f" ± {sd:{shown}}")


def of_family(done: Mapping[Key, Any], spec: str, key: str) -> list[float]:
  """A quantity's values of the family's finished runs that have it."""
  return [
    result["numbers"][key]
    for (family, _), result in done.items()
    if family == spec and result and key in result["numbers"]
  ]


def to_csv(
  columns: Sequence[MetricSpec],
  done: Mapping[Key, Any],
  families: Sequence[str],
) -> str:
  """A row for each finished run, its raw numbers; empty where there is none."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow(["family", "seed", *(q.key for q in columns)])
  for spec in families:
    for (family, seed), result in done.items():
      if family == spec and result:
        values = [result["numbers"].get(q.key, "") for q in columns]
        writer.writerow([spec, seed, *values])
  return out.getvalue()


def table(
  lines: Sequence[MetricSpec], done: Mapping[Key, Any], families: Sequence[str]
) -> str:
  """Markdown: a line for each quantity, a column for each family."""
  rows = [["", *families], ["---"] + ["---:"] * len(families)]
  for q in lines:
    cells = [cell(of_family(done, spec, q.key)) for spec in families]
    rows.append([q.label, *cells])
  counts = []
  for spec in families:
    of = [result for (family, _), result in done.items() if family == spec]
    counts.append(f"{sum(r is not None for r in of)} of {len(of)}")
  rows.append(["seeds", *counts])
  return "".join(f"| {' | '.join(row)} |\n" for row in rows)


# ---------------------------------------------------------- the protocol


def _protocol(config, families, runs, done) -> Iterator[str]:
  """What all runs share, then what each family has of its own."""
  finished = [r["protocol"] for r in done.values() if r]
  one = finished[0]
  h, w, c = image_shape(config)
  seeds = sorted({seed for _, seed in runs})
  yield (
    f"Data: {config.data.source}, {h}x{w}x{c}; {one['train_images']} images "
    f"to train on, {one['held_out_images']} held out."
  )
  yield (
    f"Every run: {config.steps} steps, batch {config.data.batch_size}, "
    f"{config.dtype}, {config.model.latent} latents, reconstruction "
    f"{config.objective.reconstruction}, adversarial loss "
    f"{config.adversarial.loss}; seeds {', '.join(map(str, seeds))}, each "
    "with its own first weights, batches and noise, the same for all families."
  )
  yield (
    f"Judged: averaged weights on {one['used_images']} held-out images, and "
    f"{one['used_images']} samples of the prior; {config.eval_draws} draws "
    "for the bounds. In the table: mean ± sample standard deviation over "
    "seeds."
  )
  machines = sorted({f"{p['devices']} x {p['device']}" for p in finished})
  versions = [
    f"{name} {', '.join(sorted({p[name] for p in finished}))}"
    for name in ("gamix_jax", "jax", "flax")
  ]
  hashes = {p["features_sha256"] for p in finished} - {None}
  trained = min(one["train_images"], settings.base().eval.train_images)
  learned = f", learned from {trained} training images" if hashes else ""
  weights = f", weights {', '.join(h[:8] for h in sorted(hashes))}"
  yield (
    f"Distances of images as 8 bits, on the features {one['features']}"
    f"{learned}{weights if hashes else ''}: those that "
    "`python -m gamix_jax.evaluate` chooses."
  )
  yield f"On {', '.join(machines)}; {'; '.join(versions)}."
  for spec in families:
    own = next(c for (family, _), (_, c) in runs.items() if family == spec)
    of_vae, of_disc = objective.term_names(
      own.objective.name, own.adversarial.loss
    )
    weights = ", ".join(f"{k} {own.weights[k]:g}" for k in of_vae + of_disc)
    line = f"`{spec}`: weights {weights}"
    if "population_kl" in objective.OBJECTIVES[own.objective.name].terms:
      line += f"; population {own.objective.population}"
    count = next((r for (f, _), r in done.items() if f == spec and r), None)
    if count:
      sizes = count["protocol"]["parameters"]
      line += "; parameters " + ", ".join(
        f"{k} {v:,}" for k, v in sizes.items()
      )
    yield line + "."


def _warnings(config, families, runs, done) -> Iterator[str]:
  """What a reader should not overlook."""
  used = min(r["protocol"]["used_images"] for r in done.values() if r)
  if used <= NEIGHBOURS:
    yield (
      f"Not defined: precision, recall, density and coverage need "
      f"{NEIGHBOURS + 1} images or more, and {used} were used."
    )
  if used < 2:
    yield "Not defined: the Frechet distances need 2 images or more."
  elif used < metrics.ENOUGH_IMAGES:
    yield (
      f"Warning: the Frechet distances are of {used} images, under "
      f"{metrics.ENOUGH_IMAGES}: biased upwards, to be compared with one "
      "another only."
    )
  goals = {c.objective.name for _, c in runs.values()}
  if "evae" in goals:
    yield (
      "The loss of `evae` is not a bound of ln p(x), and its KL is infinite: "
      "it has no ELBO and no IWAE bound here."
    )
  hashes = {r["protocol"]["features_sha256"] for r in done.values() if r}
  if len(hashes) > 1:
    yield (
      "Warning: the features' classifier was not the same for all runs, so "
      "their distances cannot be compared: remove every results.json, and the "
      "same command judges all again."
    )
  missing = sum(r is None for r in done.values())
  if missing:
    yield f"Not finished: {missing} of {len(done)} runs are to come."


# ---------------------------------------------------------- the front


def front(
  runs: Mapping[Key, tuple[Path, ConfigDict]],
  done: Mapping[Key, Any],
  families: Sequence[str],
  fd: str,
) -> list[figure.Point]:
  """Families as points: reconstruction against samples, as `figure.front`.

  Families of one posterior, objective and population are one line. Its name
  has the terms whose weights differ on it (of a point alone: all but the
  reconstruction's), and a point's label has these weights in that order.

  Args:
    runs: see `write`.
    done: see `write`.
    families: see `write`.
    fd: key of the samples' distance.
  """
  configs = {spec: c for (spec, _), (_, c) in runs.items()}
  lines: dict[tuple[str, str], list[str]] = {}
  for spec in families:
    if of_family(done, spec, "mae") and of_family(done, spec, fd):
      lines.setdefault(_form(configs[spec]), []).append(spec)
  posteriors = {posterior for posterior, _ in lines}
  points = []
  for (posterior, goal), specs in lines.items():
    one = configs[specs[0]]
    of_vae, of_disc = objective.term_names(
      one.objective.name, one.adversarial.loss
    )
    terms = [
      t
      for t in of_vae + of_disc
      if len({configs[spec].weights[t] for spec in specs}) > 1
    ] or [t for t in objective.OBJECTIVES[one.objective.name].terms[1:]]
    name = goal if len(posteriors) == 1 else f"{posterior}/{goal}"
    for spec in specs:
      weights = ", ".join(f"{configs[spec].weights[t]:g}" for t in terms)
      points.append(
        figure.Point(
          f"{name}, weights of {', '.join(terms)}",
          weights,
          of_family(done, spec, "mae"),
          of_family(done, spec, fd),
        )
      )
  return points


def _form(config: ConfigDict) -> tuple[str, str]:
  """posterior[:components], objective[:population]."""
  posterior, goal = config.posterior.name, config.objective.name
  if config.posterior.components > 1:
    posterior += f":{config.posterior.components}"
  if "population_kl" in objective.OBJECTIVES[goal].terms:
    goal += f":{config.objective.population}"
  return posterior, goal


# ---------------------------------------------------------- files


def write(
  root: Path,
  config: ConfigDict,
  families: Sequence[str],
  runs: Mapping[Key, tuple[Path, ConfigDict]],
  done: Mapping[Key, Any],
) -> None:
  """Writes the table, the CSV and the figures, each whole or not at all.

  The front is drawn once there are two families to be set against each other.

  Args:
    root: the folder to write to.
    config: what all runs share, complete.
    families: in the order of the columns.
    runs: see `loop.planned`.
    done: what `judge.run` returned of each of them, None of what is to come;
      one at least is there.

  Raises:
    UserError: a file cannot be written.
  """
  features = next(r["protocol"]["features"] for r in done.values() if r)
  points = front(runs, done, families, f"fd_{features}_samples")
  lines = [
    q
    for q in quantities(features)
    if any(of_family(done, spec, q.key) for spec in families)
  ]
  meanings = [f"{q.label} (`{q.key}`): {q.meaning}." for q in lines]
  parts = {
    "": list(_warnings(config, families, runs, done)),
    "Protocol": list(_protocol(config, families, runs, done)),
    "What the lines are": meanings,
  }
  text = f"# Comparison\n\n{table(lines, done, families)}"
  text += f"\n![]({FIGURE})\n"
  if len(points) > 1:
    text += (
      "\nReconstruction against samples: lower and further left is better, and "
      "a family is better than another where it is both.\n"
      f"\n![]({FRONT})\n"
    )
  for title, sentences in parts.items():
    head = f"\n## {title}\n\n" if title else "\n"
    text += head + "".join(f"- {s}\n" for s in sentences) if sentences else ""
  files.write_text(root / TABLE, text)
  files.write_text(root / NUMBERS, to_csv(lines, done, families))
  panels = {
    q.label: {spec: of_family(done, spec, q.key) for spec in families}
    for q in lines
    if q.panel
  }
  held_out = of_family(done, families[0], "sharpness_held_out") or [None]
  folders = {
    spec: next(
      (runs[k][0] for k, r in done.items() if k[0] == spec and r), None
    )
    for spec in families
  }
  lines_at = {"sharpness, reconstructions": held_out[0]}
  if len(points) > 1:
    with files.writing(root / FRONT):
      figure.front(root / FRONT, points, f"fd_{features}, samples")
  with files.writing(root / FIGURE):
    figure.save(root / FIGURE, panels, folders, lines_at)

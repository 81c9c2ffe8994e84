"""The report of a comparison: a table, its protocol, a CSV and figures."""

import csv
import io
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gamix_jax import files, objectives, plots
from gamix_jax.compare.evaluate_run import ORIGINALS, STRIP
from gamix_jax.config import ConfigDict, image_shape
from gamix_jax.evaluate import settings
from gamix_jax.evaluate.report import markdown_table
from gamix_jax.evaluate.run_metrics import few_images
from gamix_jax.metrics.distances import NEIGHBOURS
from gamix_jax.metrics.specs import MetricSpec, by_spec, find

TABLE, NUMBERS, FIGURE = "compare.md", "compare.csv", "compare.png"
FRONT = "front.png"
DIGITS = 4  # of a mean that are shown
OF_RECONSTRUCTIONS = "sharpness_reconstructions"
OF_IMAGES = "sharpness_images"  # a line in the panel of that
# Metrics that have a panel in the figure, besides the Frechet distances.
PANELS = (
  *("mae", OF_RECONSTRUCTIONS, "elbo", "iwae", "active_units"),
  "sec_per_step",
)

Key = tuple[str, int]  # family, seed


# ---------------------------------------------------------- numbers


def spread(values: Sequence[float]) -> tuple[float, float | None]:
  """Mean and sample standard deviation, None of one value alone."""
  if len(values) == 1:
    return values[0], None
  return statistics.fmean(values), statistics.stdev(values)


def cell(values: Sequence[float]) -> str:
  """`mean ± deviation` with the mean's digits; `-` of no values."""
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


def values_of(done: Mapping[Key, Any], spec: str, name: str) -> list[float]:
  """A metric's values, of the family's finished runs that have it."""
  return [
    result["numbers"][name]
    for (family, _), result in done.items()
    if family == spec and result and name in result["numbers"]
  ]


def to_csv(
  names: Sequence[str], done: Mapping[Key, Any], families: Sequence[str]
) -> str:
  """A row for each finished run; a metric that it does not have is empty."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow(["family", "seed", *names])
  for spec in families:
    for (family, seed), result in done.items():
      if family == spec and result:
        values = [result["numbers"].get(name, "") for name in names]
        writer.writerow([spec, seed, *values])
  return out.getvalue()


def table(
  names: Sequence[str], done: Mapping[Key, Any], families: Sequence[str]
) -> str:
  """Markdown: a line for each metric, a column for each family."""
  rows = []
  for name in names:
    cells = [cell(values_of(done, spec, name)) for spec in families]
    rows.append([find(name).title(name), *cells])
  counts = []
  for spec in families:
    of = [result for (family, _), result in done.items() if family == spec]
    counts.append(f"{sum(r is not None for r in of)} of {len(of)}")
  rows.append(["seeds", *counts])
  return markdown_table(
    ["", *families], ["---", *["---:"] * len(families)], rows
  )


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
    of_vae, of_disc = objectives.term_names(
      own.objective.name, own.adversarial.loss
    )
    weights = ", ".join(f"{k} {own.weights[k]:g}" for k in of_vae + of_disc)
    line = f"`{spec}`: weights {weights}"
    if "population_kl" in objectives.OBJECTIVES[own.objective.name].terms:
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
  yield from (f"Warning: {line}" for line in few_images(used))
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
) -> list[plots.Point]:
  """Families as points: reconstruction against samples, as `plots.front`.

  Families of one posterior, objective and population are one line. Its name
  has the terms whose weights differ on it (of a point alone: all but the
  reconstruction's), and a point's label has these weights in that order.

  Args:
    runs: see `write`.
    done: see `write`.
    families: see `write`.
    fd: name of the samples' distance.
  """
  configs = {spec: c for (spec, _), (_, c) in runs.items()}
  lines: dict[tuple[str, str], list[str]] = {}
  for spec in families:
    if values_of(done, spec, "mae") and values_of(done, spec, fd):
      lines.setdefault(_form(configs[spec]), []).append(spec)
  posteriors = {posterior for posterior, _ in lines}
  points = []
  for (posterior, goal), specs in lines.items():
    one = configs[specs[0]]
    of_vae, of_disc = objectives.term_names(
      one.objective.name, one.adversarial.loss
    )
    terms = [
      t
      for t in of_vae + of_disc
      if len({configs[spec].weights[t] for spec in specs}) > 1
    ] or [t for t in objectives.OBJECTIVES[one.objective.name].terms[1:]]
    name = goal if len(posteriors) == 1 else f"{posterior}/{goal}"
    for spec in specs:
      weights = ", ".join(f"{configs[spec].weights[t]:g}" for t in terms)
      points.append(
        plots.Point(
          f"{name}, weights of {', '.join(terms)}",
          weights,
          values_of(done, spec, "mae"),
          values_of(done, spec, fd),
        )
      )
  return points


def _form(config: ConfigDict) -> tuple[str, str]:
  """posterior[:components], objective[:population]."""
  posterior, goal = config.posterior.name, config.objective.name
  if config.posterior.components > 1:
    posterior += f":{config.posterior.components}"
  if "population_kl" in objectives.OBJECTIVES[goal].terms:
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
    done: what `evaluate_run.run` returned for each of them, None of a run
      that is not finished; one at least is.

  Raises:
    UserError: a file cannot be written.
  """
  features = next(r["protocol"]["features"] for r in done.values() if r)
  fd = f"fd_{features}"
  points = front(runs, done, families, f"{fd}_prior")
  specs = by_spec({k for r in done.values() if r for k in r["numbers"]})
  names = [name for own in specs.values() for name in sorted(own)]
  parts = {
    "": list(_warnings(config, families, runs, done)),
    "Protocol": list(_protocol(config, families, runs, done)),
    "Metrics": [_meaning(*item) for item in specs.items()],
  }
  text = f"# Comparison\n\n{table(names, done, families)}"
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
  files.write_text(root / NUMBERS, to_csv(names, done, families))
  shown = (*PANELS, f"{fd}_prior", f"{fd}_reconstructions")
  panels = {
    find(name).title(name): {
      spec: values_of(done, spec, name) for spec in families
    }
    for name in names
    if name in shown
  }
  of_images = [v for f in families for v in values_of(done, f, OF_IMAGES)]
  title = find(OF_RECONSTRUCTIONS).title(OF_RECONSTRUCTIONS)
  lines_at = {title: of_images[0]} if of_images else {}
  if len(points) > 1:
    with files.writing(root / FRONT):
      plots.front(root / FRONT, points, f"{fd}, samples")
  with files.writing(root / FIGURE):
    plots.comparison(
      root / FIGURE, families, panels, _images(runs, done, families), lines_at
    )


def _meaning(spec: MetricSpec, names: Sequence[str]) -> str:
  """A sentence about a metric; `names` are those that were measured of it."""
  shown = ", ".join(f"{spec.title(k)} (`{k}`)" for k in sorted(names))
  unit = f", {spec.unit}" if spec.unit else ""
  return f"{shown}{unit}: {spec.meaning}."


def _images(runs, done, families) -> dict[str, Path]:
  """Files of held-out images, and of each family's that has a finished run."""
  folders = {
    spec: next(
      (runs[k][0] for k, r in done.items() if k[0] == spec and r), None
    )
    for spec in families
  }
  folders = {spec: folder for spec, folder in folders.items() if folder}
  first = next(iter(folders.values()))
  strips = {spec: folder / STRIP for spec, folder in folders.items()}
  return {"held out": first / ORIGINALS} | strips

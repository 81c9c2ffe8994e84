"""Writes the report of a comparison: table, protocol, CSV and figures."""

import csv
import io
import itertools
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
from gamix_jax.evaluate.run_metrics import few_images, noisy_samples
from gamix_jax.inference.fitting import FITTED
from gamix_jax.metrics.distances import NEIGHBOURS
from gamix_jax.metrics.specs import MetricSpec, by_spec, find

TABLE, CSV, FIGURE = "compare.md", "compare.csv", "compare.png"
FRONT = "front.png"
CAPTION = (
  "held-out images; below, their reconstructions (left) and samples from the "
  "prior (right)"
)
DIGITS = 4  # significant digits of a mean in the table
RECONSTRUCTION_SHARPNESS = "sharpness_reconstructions"
IMAGE_SHARPNESS = "sharpness_images"  # a reference line in the panel above
# Metrics with a panel in the figure, in addition to the Frechet distances.
PANELS = (
  *("mae", RECONSTRUCTION_SHARPNESS, "elbo", "iwae", "active_units"),
  "sec_per_step",
)

Key = tuple[str, int]  # family, seed


# ---------------------------------------------------------- the table


def spread(values: Sequence[float]) -> tuple[float, float | None]:
  """Returns mean and sample standard deviation (None for a single value)."""
  if len(values) == 1:
    return values[0], None
  return statistics.fmean(values), statistics.stdev(values)


def cell(values: Sequence[float]) -> str:
  """Formats values as `mean ± standard deviation`, or `-` if there are none."""
  if not values:
    return "-"
  mean, sd = spread(values)
  size = max(abs(mean), sd or 0.0)
  places = DIGITS - 1 - math.floor(math.log10(size)) if size else 0
  if places > 2 * DIGITS:  # very small: avoid a cell full of zeros
    form = f".{DIGITS - 1}e"
  else:
    integer = all(float(v).is_integer() for v in values) and not sd
    form = f".{0 if integer else max(places, 0)}f"
  return f"{mean:{form}}" + ("" if sd is None else f" ± {sd:{form}}")


def values_of(done: Mapping[Key, Any], spec: str, name: str) -> list[float]:
  """Returns a metric's values over the finished runs of a family."""
  return [
    result["numbers"][name]
    for (family, _), result in done.items()
    if family == spec and result and name in result["numbers"]
  ]


def to_csv(
  names: Sequence[str], done: Mapping[Key, Any], families: Sequence[str]
) -> str:
  """Formats one row per finished run; missing metrics are empty."""
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
  """Formats a Markdown table: a row per metric, a column per family."""
  rows = []
  for name in names:
    cells = [cell(values_of(done, spec, name)) for spec in families]
    rows.append([find(name).title(name), *cells])
  counts = []
  for spec in families:
    own = [result for (family, _), result in done.items() if family == spec]
    counts.append(f"{sum(r is not None for r in own)} of {len(own)}")
  rows.append(["seeds", *counts])
  return markdown_table(
    ["", *families], ["---", *["---:"] * len(families)], rows
  )


# ---------------------------------------------------------- the protocol


def _protocol(config, families, runs, done) -> Iterator[str]:
  """Yields what all runs share, then the settings of each family."""
  protocols = [r["protocol"] for r in done.values() if r]
  first = protocols[0]
  h, w, c = image_shape(config)
  seeds = sorted({seed for _, seed in runs})
  yield (
    f"Data: {config.data.source}, {h}x{w}x{c}; {first['train_images']} "
    f"training images, {first['held_out_images']} held-out images."
  )
  yield (
    f"Every run: {config.steps} steps, batch {config.data.batch_size}, "
    f"{config.dtype}, {config.model.latent} latents, reconstruction "
    f"{config.objective.reconstruction}, adversarial loss "
    f"{config.adversarial.loss}; seeds {', '.join(map(str, seeds))}. A seed "
    "determines initial weights, batches and noise, equally for all families."
  )
  yield (
    f"Evaluation: averaged weights, {first['used_images']} held-out images "
    "at even distances in the split, "
    f"{first['used_images']} samples from the prior. ELBO and IWAE bound: of "
    "the first held-out images, from the run's last validation, with "
    f"{config.eval_draws} draws. The table has mean ± sample standard "
    "deviation over seeds."
  )
  hashes = {p["features_sha256"] for p in protocols} - {None}
  trained = min(first["train_images"], settings.base().eval.train_images)
  learned = f", learned from {trained} training images" if hashes else ""
  weights = f", weights {', '.join(h[:8] for h in sorted(hashes))}"
  yield (
    f"Distances: 8-bit images, features {first['features']}"
    f"{learned}{weights if hashes else ''}, which "
    "`python -m gamix_jax.evaluate` uses by default."
  )
  yield environment(protocols)
  for spec in families:
    own = next(c for (family, _), (_, c) in runs.items() if family == spec)
    population = ""
    if "population_kl" in objectives.OBJECTIVES[own.objective.name].terms:
      population = f"; population {own.objective.population}"
    yield family_line(spec, own, population, done)


def environment(protocols: Sequence[Mapping[str, Any]]) -> str:
  """Returns a sentence about devices and versions."""
  machines = sorted({f"{p['devices']} x {p['device']}" for p in protocols})
  versions = [
    f"{name} {', '.join(sorted({p[name] for p in protocols}))}"
    for name in ("gamix_jax", "jax", "flax")
  ]
  return f"Environment: {', '.join(machines)}; {'; '.join(versions)}."


def family_line(
  spec: str, config: ConfigDict, settings: str, done: Mapping[Key, Any]
) -> str:
  """Returns a sentence about a family: weights, settings, parameters."""
  vae_terms, disc_terms = objectives.term_names(
    config.objective.name, config.adversarial.loss
  )
  terms = vae_terms + disc_terms
  weights = ", ".join(f"{k} {config.weights[k]:g}" for k in terms)
  line = f"`{spec}`: weights {weights}{settings}"
  result = next((r for (f, _), r in done.items() if f == spec and r), None)
  if result:
    sizes = result["protocol"]["parameters"]
    line += "; parameters " + ", ".join(f"{k} {v:,}" for k, v in sizes.items())
  return line + "."


def _warnings(config, families, runs, done) -> Iterator[str]:
  """Yields warnings about undefined, imprecise or missing results."""
  used = min(r["protocol"]["used_images"] for r in done.values() if r)
  if used <= NEIGHBOURS:
    yield (
      f"Not defined: precision, recall, density and coverage need at least "
      f"{NEIGHBOURS + 1} images, and {used} were used."
    )
  if used < 2:
    yield "Not defined: the Frechet distances need at least 2 images."
  yield from (f"Warning: {line}" for line in few_images(used))
  yield from noisy_families(families, done)
  objective_names = {c.objective.name for _, c in runs.values()}
  if "evae" in objective_names:
    yield (
      "The loss of `evae` is not a bound of ln p(x), and its KL is infinite, "
      "so it has no ELBO and no IWAE bound."
    )
  hashes = {r["protocol"]["features_sha256"] for r in done.values() if r}
  if len(hashes) > 1:
    yield (
      "Warning: the features' classifier differs between runs, so their "
      "distances cannot be compared; remove every results.json and run the "
      "same command again to evaluate all."
    )
  yield from not_finished(done)


def noisy_families(
  families: Sequence[str], done: Mapping[Key, Any]
) -> Iterator[str]:
  """Yields a warning for each family and source whose samples seem noise."""
  for family, source in itertools.product(families, ("prior", *FITTED)):
    images = values_of(done, family, IMAGE_SHARPNESS)
    samples = values_of(done, family, f"sharpness_{source}")
    if images and samples:
      means = statistics.fmean(samples), statistics.fmean(images)
      for line in noisy_samples(source, *means):
        yield f"Warning: `{family}`: {line}"


def not_finished(done: Mapping[Key, Any]) -> Iterator[str]:
  """Yields how many runs are not finished, if any."""
  missing = sum(r is None for r in done.values())
  if missing:
    yield f"Not finished: {missing} of {len(done)} runs."


# ---------------------------------------------------------- the front


def front(
  runs: Mapping[Key, tuple[Path, ConfigDict]],
  done: Mapping[Key, Any],
  families: Sequence[str],
  fd: str,
) -> list[plots.Point]:
  """Returns the families as points for `plots.front`.

  Families with the same posterior, objective and population form a line. Its
  name lists the terms whose weights differ between them (for a single family:
  all but the reconstruction's); the label of a point has these weights in that
  order.

  Args:
    runs: see `write`.
    done: see `write`.
    families: see `write`.
    fd: name of the metric for the distance of samples.
  """
  configs = {spec: c for (spec, _), (_, c) in runs.items()}
  lines: dict[tuple[str, str], list[str]] = {}
  for spec in families:
    if values_of(done, spec, "mae") and values_of(done, spec, fd):
      lines.setdefault(_line_key(configs[spec]), []).append(spec)
  posteriors = {posterior for posterior, _ in lines}
  points = []
  for (posterior, objective), specs in lines.items():
    first = configs[specs[0]]
    vae_terms, disc_terms = objectives.term_names(
      first.objective.name, first.adversarial.loss
    )
    terms = [
      t
      for t in vae_terms + disc_terms
      if len({configs[spec].weights[t] for spec in specs}) > 1
    ] or [t for t in objectives.OBJECTIVES[first.objective.name].terms[1:]]
    name = objective if len(posteriors) == 1 else f"{posterior}/{objective}"
    label = f"{name}, weights of {', '.join(terms)}" if terms else name
    for spec in specs:
      weights = ", ".join(f"{configs[spec].weights[t]:g}" for t in terms)
      points.append(
        plots.Point(
          label,
          weights,
          values_of(done, spec, "mae"),
          values_of(done, spec, fd),
        )
      )
  return points


def _line_key(config: ConfigDict) -> tuple[str, str]:
  """Returns posterior[:components] and objective[:population]."""
  posterior, objective = config.posterior.name, config.objective.name
  if config.posterior.components > 1:
    posterior += f":{config.posterior.components}"
  if "population_kl" in objectives.OBJECTIVES[objective].terms:
    objective += f":{config.objective.population}"
  return posterior, objective


# ---------------------------------------------------------- files


def write(
  root: Path,
  config: ConfigDict,
  families: Sequence[str],
  runs: Mapping[Key, tuple[Path, ConfigDict]],
  done: Mapping[Key, Any],
) -> None:
  """Writes the table, the CSV and the figures, each atomically.

  The front is drawn if at least two families have results.

  Args:
    root: the output folder.
    config: the complete config that all runs share.
    families: in the order of the columns.
    runs: see `loop.planned`.
    done: results of `evaluate_run.run` for each run, None if it is not
      finished; at least one is.

  Raises:
    UserError: if a file cannot be written.
  """
  features = next(r["protocol"]["features"] for r in done.values() if r)
  fd = f"fd_{features}"
  points = front(runs, done, families, f"{fd}_prior")
  names = write_tables(
    root,
    families,
    done,
    list(_warnings(config, families, runs, done)),
    list(_protocol(config, families, runs, done)),
    "Reconstruction against samples: lower and further left is better; a "
    "family is better than another only if it is both."
    if len(points) > 1
    else "",
  )
  panel_names = (*PANELS, f"{fd}_prior", f"{fd}_reconstructions")
  panels = {
    find(name).title(name): {
      spec: values_of(done, spec, name) for spec in families
    }
    for name in names
    if name in panel_names
  }
  sharpness = [v for f in families for v in values_of(done, f, IMAGE_SHARPNESS)]
  title = find(RECONSTRUCTION_SHARPNESS).title(RECONSTRUCTION_SHARPNESS)
  lines_at = {title: sharpness[0]} if sharpness else {}
  if len(points) > 1:
    with files.writing(root / FRONT):
      plots.front(root / FRONT, points, f"{fd}, samples")
  with files.writing(root / FIGURE):
    plots.comparison(
      root / FIGURE,
      families,
      panels,
      strips(runs, done, families),
      lines_at,
      CAPTION,
    )


def write_tables(
  root: Path,
  families: Sequence[str],
  done: Mapping[Key, Any],
  warnings: Sequence[str],
  protocol: Sequence[str],
  front_caption: str,
) -> list[str]:
  """Writes the table and the CSV; returns the metrics, in their order.

  Args:
    root: see `write`.
    families: see `write`.
    done: see `write`.
    warnings: below the figures.
    protocol: sentences.
    front_caption: above the figure of the front; empty if there is none.
  """
  specs = by_spec({k for r in done.values() if r for k in r["numbers"]})
  names = [name for own in specs.values() for name in sorted(own)]
  sections = {
    "": warnings,
    "Protocol": protocol,
    "Metrics": [meaning(*item) for item in specs.items()],
  }
  text = f"# Comparison\n\n{table(names, done, families)}"
  text += f"\n![]({FIGURE})\n"
  if front_caption:
    text += f"\n{front_caption}\n\n![]({FRONT})\n"
  for title, sentences in sections.items():
    head = f"\n## {title}\n\n" if title else "\n"
    text += head + "".join(f"- {s}\n" for s in sentences) if sentences else ""
  files.write_text(root / TABLE, text)
  files.write_text(root / CSV, to_csv(names, done, families))
  return names


def meaning(spec: MetricSpec, names: Sequence[str]) -> str:
  """Describes a metric; `names` are its variants in the table."""
  titles = ", ".join(f"{spec.title(k)} (`{k}`)" for k in sorted(names))
  unit = f", {spec.unit}" if spec.unit else ""
  return f"{titles}{unit}: {spec.meaning}."


def strips(
  runs: Mapping[Key, tuple[Path, ConfigDict]],
  done: Mapping[Key, Any],
  families: Sequence[str],
) -> dict[str, Path]:
  """Returns picture files: held-out images, and one per finished family."""
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

"""Writes the report of a comparison of models of several modalities."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gamix_jax import files, plots
from gamix_jax.compare import multimodal_run, report
from gamix_jax.compare.multimodal_families import BETA, SUBSET_BETA, variant_of
from gamix_jax.compare.report import FIGURE, FRONT, Key
from gamix_jax.config import ConfigDict
from gamix_jax.data.modalities import parse
from gamix_jax.evaluate import settings
from gamix_jax.metrics.specs import find
from gamix_jax.objectives import OBJECTIVES

CAPTION = (
  "held-out images; below, translations of these observations from another "
  "modality (left) and samples (right)"
)
MOST_PANELS = 12
_BETAS = re.compile(rf"@(?:{BETA}|{SUBSET_BETA})=[^@]+")


def write(
  root: Path,
  config: ConfigDict,
  families: Sequence[str],
  runs: Mapping[Key, tuple[Path, ConfigDict]],
  done: Mapping[Key, Any],
) -> None:
  """Writes the table, the CSV and the figures; see `report.write`."""
  fronts, xlabel = front_panels(config, runs, done, families)
  names = report.write_tables(
    root,
    families,
    done,
    list(report.not_finished(done)),
    list(_protocol(config, families, runs, done)),
    "Reconstruction against the other metrics, as in arXiv:2403.05300; a "
    "family is better than another only if it is better in both. Points of a "
    "line differ in beta, which is written beside them."
    if fronts
    else "",
  )
  panels = {
    find(name).title(name): {
      spec: report.values_of(done, spec, name) for spec in families
    }
    for name in [n for n in names if _has_panel(n)][:MOST_PANELS]
  }
  if fronts:
    with files.writing(root / FRONT):
      plots.fronts(root / FRONT, fronts, xlabel)
  finished = [r for r in done.values() if r]
  pictured = all(r["pictures"] for r in finished)
  strips = report.strips(runs, done, families) if pictured else {}
  with files.writing(root / FIGURE):
    plots.comparison(root / FIGURE, families, panels, strips, {}, CAPTION)


def _has_panel(name: str) -> bool:
  """Whether a metric has a panel in the figure."""
  if name.startswith(("linear_probe_size/", "coherence_size/", "mcc_")):
    return True
  return name in (
    *("mae", "reconstruction_log_likelihood", "joint_coherence", "iwae"),
    *("log_likelihood_gap", "sec_per_step"),
  )


def front_panels(
  config: ConfigDict,
  runs: Mapping[Key, tuple[Path, ConfigDict]],
  done: Mapping[Key, Any],
  families: Sequence[str],
) -> tuple[dict[str, list[plots.Point]], str]:
  """Returns {what y is: points} for `plots.fronts`, and what x is.

  y is the accuracy of the probe given one modality and given all, the
  coherence given one modality, and that of samples. x is the absolute error if
  all modalities are images, else the log-likelihood of the reconstruction.
  Families that differ in beta only form a line. Metrics that less than two
  families have are left out.
  """
  specs = parse(config.data.modalities)
  x = "reconstruction_log_likelihood"
  if all(spec.is_image for spec in specs):
    x = "mae"
  metrics = {
    "linear_probe_size/1": "linear probe of the latents given one modality",
    f"linear_probe_size/{len(specs)}": "linear probe given all modalities",
    "coherence_size/1": "coherence of translations from one modality",
    "joint_coherence": "coherence of samples",
  }
  configs = {spec: c for (spec, _), (_, c) in runs.items()}
  panels = {}
  for name, title in metrics.items():
    points = []
    for spec in families:
      at = [report.values_of(done, spec, k) for k in (x, name)]
      if all(at):
        points.append(plots.Point(line_of(spec), beta_of(configs[spec]), *at))
    if len(points) > 1:
      panels[f"{title} {find(name).arrow}"] = points
  label = {
    "mae": "mean absolute error of reconstructions (less is better)",
    "reconstruction_log_likelihood": (
      "log-likelihood of reconstructions, nats (more is better)"
    ),
  }[x]
  return panels, label


def line_of(spec: str) -> str:
  """Returns a family's spec without its betas."""
  return _BETAS.sub("", spec)


def beta_of(config: ConfigDict) -> str:
  """Returns the beta of a complete config, as a label; two if they differ."""
  betas = [config.weights[k] for k in (BETA, SUBSET_BETA)]
  shown = dict.fromkeys(f"{b:g}" for b in betas if b is not None)
  return ", ".join(shown)


def _protocol(config, families, runs, done) -> Iterator[str]:
  """Yields what all runs share, then the settings of each family."""
  protocols = [r["protocol"] for r in done.values() if r]
  first, section = protocols[0], settings.base().eval
  seeds = ", ".join(map(str, sorted({seed for _, seed in runs})))
  missing = ""
  if config.data.missing or config.data.missing_test:
    missing = (
      f"; missing: {config.data.missing:g} of the training modalities, "
      f"{config.data.missing_test:g} of the held-out ones, by "
      f"{config.data.missing_by}"
    )
  yield (
    f"Data: {config.data.source}; modalities "
    f"{', '.join(config.data.modalities)}; {first['train_rows']:,} training "
    f"and {first['held_out_rows']:,} held-out observations{missing}."
  )
  yield (
    f"Every run: {config.steps} steps, batch {config.data.batch_size}, "
    f"{config.dtype}, {config.model.latent} latents (separate: a modality); "
    f"seeds {seeds}. A seed determines initial weights, batches and noise, "
    "equally for all families."
  )
  yield (
    f"Evaluation: averaged weights, {first['used_rows']} held-out observations "
    "at even distances in the split. The table has mean ± sample standard "
    "deviation over seeds."
  )
  yield (
    f"Probes: logistic regression on standardised posterior means of "
    f"{first['probe_rows']:,} training observations, accuracy on held-out "
    f"ones; at most {multimodal_run.SUBSETS} subsets of a size."
  )
  yield from _classifiers(protocols)
  yield (
    f"Bounds: {multimodal_run.BOUND_ROWS} observations at most, "
    f"{multimodal_run.DRAWS} draws, seed {section.seed}."
  )
  yield report.environment(protocols)
  for spec in families:
    own = next(c for (family, _), (_, c) in runs.items() if family == spec)
    yield report.family_line(spec, own, _settings(own, spec, done), done)


def _classifiers(protocols: Sequence[Mapping[str, Any]]) -> Iterator[str]:
  first = protocols[0]
  if not first["accuracies"]:
    return
  names = ", ".join(first["classifiers"]) or "the most likely class"
  accuracies = ", ".join(f"{k} {v:.4f}" for k, v in first["accuracies"].items())
  yield (
    f"Coherence: generated from a draw of the posterior; classifiers {names}, "
    f"with held-out accuracy {accuracies}."
  )
  if len({str(p["classifiers_sha256"]) for p in protocols}) > 1:
    yield (
      "Warning: the classifiers differ between runs, so their coherences "
      "cannot be compared; remove every results.json and run the same command "
      "again to evaluate all."
    )


def _settings(config: ConfigDict, spec: str, done: Mapping[Key, Any]) -> str:
  """What a family's sentence says besides its weights."""
  parts = []
  objective = OBJECTIVES[config.objective.name]
  variant = variant_of(config)
  if variant:
    parts.append(variant)
  if "mmvm" in config.objective.name:
    section = config.objective.mmvm
    parts.append(
      f"alpha {section.alpha:g}, reached after {section.alpha_steps} steps"
    )
  if objective.subsets and config.multimodal.private:
    parts.append(f"{config.multimodal.private} private latents a modality")
  samplers = {
    r["protocol"]["sampler"] for (f, _), r in done.items() if f == spec and r
  } - {None}
  if samplers:
    parts.append(f"samples from {', '.join(sorted(samplers))}")
  return "".join(f"; {part}" for part in parts)

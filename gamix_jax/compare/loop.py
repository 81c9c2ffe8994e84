"""Trains and evaluates all runs of a comparison, one after another."""

from collections.abc import Sequence
from pathlib import Path

from gamix_jax import data, metrics, presets
from gamix_jax.checkpoint import Preemption
from gamix_jax.compare import evaluate_run, multimodal_report, report
from gamix_jax.compare.families import family_config, folder_name
from gamix_jax.config import ConfigDict, image_shape
from gamix_jax.errors import UserError
from gamix_jax.files import Lock
from gamix_jax.inference.fitting import FITTED
from gamix_jax.posterior import POSTERIORS
from gamix_jax.registry import check_choice
from gamix_jax.training import workdir

Runs = dict[tuple[str, int], tuple[Path, ConfigDict]]


def planned(
  config: ConfigDict, families: Sequence[str], seeds: int, root: Path
) -> Runs:
  """Returns {(family, seed): (folder, config)}; writes nothing.

  Args:
    config: shared by all runs; its seed is the first. Values that its preset
      chooses may differ between families.
    families: see `family_config`.
    seeds: number of runs per family.
    root: folder of the comparison.

  Raises:
    UserError: as `family_config`, if a family is repeated, or if the images are
      too small for the features.
  """
  if not config.data.modalities:
    metrics.random_features(image_shape(config))  # raises for small images
  runs: Runs = {}
  for k in range(seeds):  # all families once before any family twice
    fingerprint = _fingerprint(config.data, config.seed + k)
    for spec in families:
      own = config.copy_and_resolve_references()
      own.seed = config.seed + k
      own = family_config(own, spec)
      own.data.fingerprint = fingerprint
      if (spec, own.seed) in runs:
        raise UserError(f"--families has {spec} twice; remove one.")
      folder = root / folder_name(spec) / f"seed{own.seed}"
      runs[spec, own.seed] = folder, own
  return runs


def compare(
  config: ConfigDict,
  families: Sequence[str],
  seeds: int,
  root: Path,
  sources: Sequence[str] = (),
  classifier_steps: int = 0,
) -> None:
  """Trains and evaluates all unfinished runs; writes the report.

  The report is written after every run. A signal stops the comparison; the
  same call continues it.

  Args:
    config: see `planned`.
    families: see `planned`.
    seeds: see `planned`.
    root: see `planned`.
    sources: of `FITTED`, beside the prior, that samples are judged from.
    classifier_steps: of training the classifier of images whose features
      judge; 0: as many as `evaluate` does.

  Raises:
    UserError: as `planned` and `training.loop.train`, or, before any training,
      if a folder holds a run with another config, or if a family has no such
      source.
  """
  runs = planned(config, families, seeds, root)
  _check_sources(sources, runs)
  for folder, run_config in runs.values():
    if (folder / "config.json").is_file():
      workdir.check(folder, run_config)
  with Lock(root) as lock:
    root.mkdir(parents=True, exist_ok=True)
    lock.acquire()
    _run_all(config, families, runs, root, tuple(sources), classifier_steps)


def _check_sources(sources: Sequence[str], runs: Runs) -> None:
  """Checks that all families have these sources of latents.

  Raises:
    UserError: if not.
  """
  for source in sources:
    check_choice("--sources", source, FITTED)
    for (spec, _), (_, config) in runs.items():
      if config.data.modalities:
        raise UserError("--sources is for runs of images; remove it.")
      family = POSTERIORS[config.posterior.name].family
      if family.discrete and source != "population":
        raise UserError(
          f"--sources={source}: {spec} has counts for latents, of which there "
          "is none; use --sources=population or leave the family out."
        )


def _fingerprint(section: ConfigDict, seed: int) -> str:
  """Returns the fingerprint of the images that all runs of a seed must use."""
  if section.fingerprint == data.ANY_FINGERPRINT:
    return data.ANY_FINGERPRINT
  section = dict(section, cache="none")  # no image is decoded
  return data.fingerprint(
    *(data.open_dataset(section, split, seed) for split in ("train", "test"))
  )


def _run_all(
  config: ConfigDict,
  families: Sequence[str],
  runs: Runs,
  root: Path,
  sources: tuple[str, ...],
  classifier_steps: int,
) -> None:
  done = {k: evaluate_run.finished(*run, sources) for k, run in runs.items()}
  shared = presets.complete(config.copy_and_resolve_references())
  write = multimodal_report.write if config.data.modalities else report.write
  features = None
  if not all(done.values()):
    features = evaluate_run.features(shared, root, classifier_steps)
  for i, ((spec, seed), run) in enumerate(runs.items(), 1):
    if done[spec, seed]:
      continue
    print(f"[{i}/{len(runs)}] {spec}, seed {seed}", flush=True)
    done[spec, seed] = evaluate_run.run(*run, features, sources)
    with Preemption() as preemption:  # finish writing the report
      if done[spec, seed]:
        write(root, shared, families, runs, done)
    if preemption.requested or not done[spec, seed]:
      print("Stopped; run the same command again to continue the comparison.")
      return
  with Preemption():
    write(root, shared, families, runs, done)
  print(f"Compared: {root / report.TABLE}, {report.CSV}, {report.FIGURE}.")

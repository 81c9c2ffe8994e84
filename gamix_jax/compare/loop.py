"""All runs of a comparison, one after another."""

from collections.abc import Sequence
from pathlib import Path

from gamix_jax import data, metrics, presets
from gamix_jax.checkpoint import Preemption
from gamix_jax.compare import evaluate_run, report
from gamix_jax.compare.families import family_config, folder_name
from gamix_jax.config import ConfigDict, image_shape
from gamix_jax.errors import UserError
from gamix_jax.files import Lock
from gamix_jax.training import workdir

Runs = dict[tuple[str, int], tuple[Path, ConfigDict]]


def planned(
  config: ConfigDict, families: Sequence[str], seeds: int, root: Path
) -> Runs:
  """{(family, seed): (folder, config)}; writes nothing.

  Args:
    config: what all share; its seed is the first. What a preset leaves open
      is each family's own.
    families: see `family_config`.
    seeds: how many.
    root: the comparison's folder.

  Raises:
    UserError: a family that there is not, or one given twice; images too
      small for the features.
  """
  metrics.random_features(image_shape(config))  # refuses small images
  runs: Runs = {}
  for k in range(seeds):  # all families once before any of them twice
    fingerprint = _fingerprint(config.data, config.seed + k)
    for spec in families:
      one = config.copy_and_resolve_references()
      one.seed = config.seed + k
      one = family_config(one, spec)
      one.data.fingerprint = fingerprint
      if (spec, one.seed) in runs:
        raise UserError(f"--families has {spec} twice.")
      folder = root / folder_name(spec) / f"seed{one.seed}"
      runs[spec, one.seed] = folder, one
  return runs


def compare(
  config: ConfigDict, families: Sequence[str], seeds: int, root: Path
) -> None:
  """Trains and judges the runs that are not done yet; writes the report.

  The report is written after every run. A signal ends the comparison; the
  same call continues it.

  Args:
    config: see `planned`.
    families: see `planned`.
    seeds: see `planned`.
    root: see `planned`.

  Raises:
    UserError: as `planned`, or as `training.loop.train`; folders of another
      comparison are refused before any training.
  """
  runs = planned(config, families, seeds, root)
  for folder, one in runs.values():
    if (folder / "config.json").is_file():
      workdir.check(folder, one)
  with Lock(root) as lock:
    root.mkdir(parents=True, exist_ok=True)
    lock.acquire()
    _run_all(config, families, runs, root)


def _fingerprint(section: ConfigDict, seed: int) -> str:
  """The fingerprint of the images that all runs of a seed must have."""
  if section.fingerprint == data.ANY_FINGERPRINT:
    return data.ANY_FINGERPRINT
  section = dict(section, cache="none")  # nothing is decoded for it
  return data.fingerprint(
    *(data.open_dataset(section, split, seed) for split in ("train", "test"))
  )


def _run_all(
  config: ConfigDict, families: Sequence[str], runs: Runs, root: Path
) -> None:
  done = {k: evaluate_run.finished(*run) for k, run in runs.items()}
  shared = presets.complete(config.copy_and_resolve_references())
  features = None if all(done.values()) else evaluate_run.features(shared, root)
  for i, ((spec, seed), run) in enumerate(runs.items(), 1):
    if done[spec, seed]:
      continue
    print(f"[{i}/{len(runs)}] {spec}, seed {seed}", flush=True)
    done[spec, seed] = evaluate_run.run(*run, features)
    with Preemption() as preemption:  # a report is written whole
      if done[spec, seed]:
        report.write(root, shared, families, runs, done)
    if preemption.requested or not done[spec, seed]:
      print("Asked to stop: the same command continues the comparison.")
      return
  with Preemption():
    report.write(root, shared, families, runs, done)
  print(f"Compared: {root / report.TABLE}, {report.NUMBERS}, {report.FIGURE}.")

"""Judges a run of several modalities in a comparison, in seconds."""

from pathlib import Path
from typing import Any

import numpy as np

from gamix_jax import data, inference, pictures
from gamix_jax.config import ConfigDict
from gamix_jax.evaluate import multimodal_inputs, observations, settings
from gamix_jax.evaluate.classifiers import Classifiers
from gamix_jax.evaluate.multimodal import MultimodalRun
from gamix_jax.evaluate.multimodal_inputs import MultimodalInputs

# A part of what `evaluate` measures, so that a run is judged in seconds.
TRAIN_ROWS = 5_000  # for probes and samplers
SUBSETS = 3  # of a size from 2 on
BOUND_ROWS = 512
DRAWS = 16

STRIP = "strip.png"  # translations, then samples, of one modality
ORIGINALS = "originals.png"  # the same observations of that modality
PROTOCOL = {
  *("train_rows", "held_out_rows", "used_rows", "probe_rows"),
  *("classifiers", "classifiers_sha256", "accuracies", "sampler"),
}


def classifiers(config: ConfigDict, cache: Path) -> Classifiers:
  """Classifiers of the modalities, the same for all runs.

  Args:
    config: of any run; all have the same data.
    cache: the folder where trained classifiers are kept.
  """
  section = _settings(config)
  found = multimodal_inputs.train_classifiers(config, section, cache)
  found.judge(_test(config)[1])
  return found


def measure(
  folder: Path, config: ConfigDict, found: Classifiers
) -> tuple[dict[str, float], dict[str, Any], inference.MultimodalModel]:
  """Returns the numbers of a run, its protocol, and the model.

  Args:
    folder: of the run; pictures are written to it.
    config: of the run.
    found: see `classifiers`.
  """
  model = inference.load(folder)
  dataset, test = _test(config)
  section = _settings(config)
  train_set = data.open_dataset(config.data, "train", config.seed)
  train = observations.chosen(train_set, section.train_images, section.seed)
  sources = multimodal_inputs.true_sources(dataset, test)
  inputs = MultimodalInputs(model, section, found, test, train, sources=sources)
  run = MultimodalRun(inputs, subsets=SUBSETS)
  run.reconstructions()
  run.probes()
  run.translations(each=False, distances=False)
  run.samples(distances=False)
  run.bounds()
  run.true_sources()
  _write_pictures(folder, run)
  joint = run.numbers.found["joint_coherence"]["protocol"]
  protocol = {
    "train_rows": len(train_set),
    "held_out_rows": test.total,
    "used_rows": len(test),
    "probe_rows": len(train),
    "classifiers": sorted({c.name for c in found.of.values() if c.name}),
    "classifiers_sha256": {
      k: c.protocol["features, sha256"] for k, c in found.of.items() if c.name
    },
    "accuracies": {k: round(c.accuracy, 4) for k, c in found.of.items()},
    "sampler": joint.get("sampler"),
  }
  return run.numbers.values, protocol, model


def _settings(config: ConfigDict) -> ConfigDict:
  """The section `eval` of a comparison."""
  section = settings.base().eval.copy_and_resolve_references()
  section.images = config.eval_images
  section.train_images = TRAIN_ROWS
  section.bound_images = BOUND_ROWS
  section.draws = DRAWS
  return section


def _test(
  config: ConfigDict,
) -> tuple[data.MultimodalDataset, observations.Observations]:
  dataset = data.open_dataset(config.data, "test", config.seed)
  return dataset, observations.spread(dataset, config.eval_images)


def _write_pictures(folder: Path, run: MultimodalRun) -> None:
  """Held-out images; their translations, beside samples."""
  shown = run.strip()
  if not shown:
    return
  originals = shown.pop("originals")
  made = np.concatenate(list(shown.values()))
  for name, strip in ((ORIGINALS, originals), (STRIP, made)):
    pictures.save_png(folder / name, pictures.grid(strip, len(strip)))

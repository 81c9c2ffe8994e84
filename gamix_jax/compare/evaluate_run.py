"""Trains or continues one run of a comparison, and evaluates it."""

import importlib.metadata
import json
import math
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

import gamix_jax
from gamix_jax import config as configs
from gamix_jax import data, inference, pictures, step
from gamix_jax.compare import multimodal_run
from gamix_jax.compare.multimodal_run import ORIGINALS, STRIP
from gamix_jax.config import ConfigDict
from gamix_jax.evaluate import eval_inputs, settings
from gamix_jax.evaluate.classifiers import Classifiers
from gamix_jax.evaluate.eval_inputs import EvalInputs, Features
from gamix_jax.evaluate.run_metrics import EvalRun
from gamix_jax.files import write_text
from gamix_jax.inference.fitting import ensure_fitted
from gamix_jax.training import loop, workdir
from gamix_jax.training.writer import rows

RESULTS = "results.json"
FORMAT = 4  # of that file; runs with another format are evaluated again
EXAMPLES = 8
BOUNDS = ("elbo", "iwae")  # taken from the last validation of the training
SAMPLES_KEY = 20  # the same for every family and seed
SURGERY_KEY = 21

COMMON = {"parameters", "jax", "flax", "gamix_jax", "device", "devices"}
PROTOCOL = COMMON | {
  *("train_images", "held_out_images", "used_images"),
  *("features", "features_sha256"),
}

Result = dict[str, Any]


def finished(
  folder: Path, config: ConfigDict, sources: Collection[str] = ()
) -> Result | None:
  """Returns the result of a run if it is finished with this config, or None.

  It must have samples of these sources.
  """
  path = folder / RESULTS
  if not path.is_file():
    return None
  try:
    result = json.loads(path.read_bytes())
    if result["format"] != FORMAT:
      return None
    if not set(sources) <= set(result.get("sources", ())):
      return None
    # Read like a saved config: newer keys get their defaults.
    saved = configs.from_json(json.dumps(result["config"]), str(path))
    values = {k: float(v) for k, v in result["numbers"].items()}
    if not np.isfinite(list(values.values())).all():
      raise ValueError("a value is not finite")
    several = bool(config.data.modalities)
    wanted = COMMON | multimodal_run.PROTOCOL if several else PROTOCOL
    if result["protocol"].keys() != wanted:
      raise ValueError("another protocol")
    for name in result["pictures"] if several else (STRIP, ORIGINALS):
      with Image.open(folder / name) as image:
        image.load()
  # Another version or a damaged file, which raises many kinds of errors.
  except Exception:
    return None
  if workdir.changed(saved, config):
    return None
  return result | {"numbers": values}


def features(
  config: ConfigDict, cache: Path, classifier_steps: int = 0
) -> Features | Classifiers:
  """Returns the image features that `evaluate` uses by default.

  Of several modalities, their classifiers.

  Args:
    config: the config of any run; all have the same data.
    cache: the folder where a trained classifier is saved.
    classifier_steps: see `eval.classifier_steps`; of images only.

  Raises:
    UserError: as `data.open_dataset`.
  """
  if config.data.modalities:
    return multimodal_run.classifiers(config, cache)
  eval_config = settings.base().eval
  eval_config.classifier_steps = classifier_steps
  train_set = data.open_dataset(config.data, "train", config.seed)
  images = eval_inputs.random_images(
    train_set, eval_config.train_images, eval_config.seed
  )
  return eval_inputs.choose_features(eval_config, images, cache)


def run(
  folder: Path,
  config: ConfigDict,
  features: Features | Classifiers,
  sources: Collection[str] = (),
) -> Result | None:
  """Trains the remaining steps of a run and evaluates it.

  Args:
    folder: workdir of the run, as for `python -m gamix_jax.main`.
    config: a validated config.
    features: the same for all runs, see the function `features`.
    sources: of images, that samples are judged from besides the prior.

  Returns:
    The contents of its `results.json`: config, numbers, protocol. None if a
    signal stopped the training, which can be continued.

  Raises:
    UserError: as `loop.train`.
  """
  trained = loop.train(config, str(folder))
  if not trained:
    return None
  several = bool(config.data.modalities)
  if several:
    values, protocol, model = multimodal_run.measure(folder, config, features)
  else:
    values, protocol, model = _judge(folder, config, features, sources)
  if not several:
    bounds = {k: trained.get(f"eval/{k}") for k in BOUNDS}
    values = {k: v for k, v in bounds.items() if v is not None} | values
  values["sec_per_step"] = _seconds_per_step(folder, config.data.batch_size)
  result = {
    "format": FORMAT,
    "config": json.loads(configs.to_json(config)),
    "numbers": {k: float(v) for k, v in values.items() if np.isfinite(v)},
    "protocol": protocol | _common_protocol(model),
    "sources": sorted(sources),
  }
  if several:
    names = (STRIP, ORIGINALS)
    result["pictures"] = [k for k in names if (folder / k).is_file()]
  write_text(folder / RESULTS, json.dumps(result, indent=1) + "\n")
  jax.clear_caches()  # compiled functions of this run only
  return result


def _judge(
  folder: Path,
  config: ConfigDict,
  features: Features,
  sources: Collection[str],
) -> tuple[dict[str, float], dict[str, Any], inference.Model]:
  """Returns the numbers of a run of images, its protocol, and the model."""
  eval_config = settings.base().eval
  train_set = data.open_dataset(config.data, "train", config.seed)
  test_set = data.open_dataset(config.data, "test", config.seed)
  known, unseen = eval_inputs.known_and_unseen(test_set)
  images = eval_inputs.spread_images(test_set, config.eval_images, known)
  model = inference.load(folder)
  inputs = EvalInputs(
    model,
    eval_config,
    features,
    images,
    train=eval_inputs.random_images(
      train_set, eval_config.train_images, eval_config.seed
    ),
    unseen=eval_inputs.spread_images(test_set, config.eval_images, unseen)
    if len(unseen)
    else None,
    excluded=eval_inputs.excluded_names(test_set),
  )
  values = _measure(inputs, folder, sources)
  protocol = {
    "train_images": len(train_set),
    "held_out_images": images.total,
    "used_images": len(images),
    "features": features.protocol["features"],
    "features_sha256": features.protocol.get("features, sha256"),
  }
  return values, protocol, model


def _measure(
  inputs: EvalInputs, folder: Path, sources: Collection[str]
) -> dict[str, float]:
  """Computes metrics like `evaluate`; also writes two pictures."""
  model, n = inputs.model, len(inputs.images)
  measured = EvalRun(inputs)
  measured.reconstructions()
  z = model.draw_latents(jax.random.key(SAMPLES_KEY), n)
  measured.samples("prior", z)
  # The second VAE first: its fit includes the others.
  for source in sorted(sources, reverse=True):
    ensure_fitted(model, source)
    z = model.draw_latents(jax.random.key(SAMPLES_KEY), n, source=source)
    measured.samples(source, z)
  measured.latents(jax.random.key(SURGERY_KEY), at_most=None)
  measured.completions()
  measured.anomalies()
  measured.probes()
  examples = {k: x[:EXAMPLES] for k, x in measured.shown.items()}
  strip = np.concatenate([examples["reconstructions"], examples["prior"]])
  pictures.save_png(folder / STRIP, pictures.grid(strip, len(strip)))
  originals = pictures.grid(examples["originals"], EXAMPLES)
  pictures.save_png(folder / ORIGINALS, originals)
  q = model.encode(inputs.images.x[:1])
  z, _ = q.sample(jax.random.key(0), model.config.objective.num_samples)
  return measured.numbers.values | {"decodes_per_image": len(z)}


def _seconds_per_step(folder: Path, batch_size: int) -> float:
  """Returns the median over the log, except the first row (compilation)."""
  speed = [
    row["speed/images_per_second"]
    for row in rows(folder / "metrics.jsonl")
    if row.get("speed/images_per_second")
  ]
  return batch_size / float(np.median(speed[1:] or speed or math.nan))


def _common_protocol(model: Any) -> dict[str, Any]:
  """Returns network sizes, versions and devices."""
  state = jax.eval_shape(partial(step.init, model.spec))
  parts = dict(state.vae.params)
  if not model.spec.multimodal:
    parts |= {"discriminator": state.disc.params}
  sizes: dict[str, int] = {}
  for name, part in parts.items():
    # Of several modalities they are encoders_m0, encoders_m1, ...
    key = name.split("_")[0] if model.spec.multimodal else name
    leaves = sum(leaf.size for leaf in jax.tree.leaves(part))
    sizes[key] = sizes.get(key, 0) + leaves
  return {
    "parameters": sizes,
    "jax": jax.__version__,
    "flax": importlib.metadata.version("flax"),
    "gamix_jax": gamix_jax.__version__,
    "device": jax.devices()[0].device_kind,
    "devices": jax.device_count(),
  }

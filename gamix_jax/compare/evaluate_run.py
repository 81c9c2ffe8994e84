"""One run of a comparison: trained, or continued, and measured."""

import importlib.metadata
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

import gamix_jax
from gamix_jax import config as configs
from gamix_jax import data, inference, pictures, step
from gamix_jax.config import ConfigDict
from gamix_jax.evaluate import eval_inputs, settings
from gamix_jax.evaluate.eval_inputs import EvalInputs, Features, Images
from gamix_jax.evaluate.run_metrics import EvalRun
from gamix_jax.files import write_text
from gamix_jax.training import loop, workdir
from gamix_jax.training.writer import rows

RESULTS = "results.json"
FORMAT = 2  # of that file; the runs of another one are judged again
STRIP = "strip.png"  # SHOWN reconstructions, then SHOWN samples
ORIGINALS = "originals.png"  # the images of these reconstructions
SHOWN = 8
BOUNDS = ("elbo", "iwae")  # as the training's last validation found them
SAMPLES_KEY = 20  # the same for every family and seed
SURGERY_KEY = 21

PROTOCOL = {
  *("train_images", "held_out_images", "used_images", "parameters"),
  *("jax", "flax", "gamix_jax", "device", "devices"),
  *("features", "features_sha256"),
}

Result = dict[str, Any]


def finished(folder: Path, config: ConfigDict) -> Result | None:
  """The result of a run that is finished, by this very config; else None."""
  path = folder / RESULTS
  if not path.is_file():
    return None
  try:
    result = json.loads(path.read_bytes())
    if result["format"] != FORMAT:
      return None
    # As a saved config is read: a key that is newer has its default.
    was = configs.from_json(json.dumps(result["config"]), str(path))
    numbers = {k: float(v) for k, v in result["numbers"].items()}
    if not np.isfinite(list(numbers.values())).all():
      raise ValueError("a number that is not finite")
    if result["protocol"].keys() != PROTOCOL:
      raise ValueError("another protocol")
    for name in (STRIP, ORIGINALS):
      with Image.open(folder / name) as image:
        image.load()
  # Of another version, or damaged, which raises all kinds of errors.
  except Exception:
    return None
  if workdir.changed(was, config):
    return None
  return result | {"numbers": numbers}


def features(config: ConfigDict, cache: Path) -> Features:
  """The features of images that `evaluate` chooses by default.

  Args:
    config: of any of the runs; all have the same data.
    cache: a folder where a trained classifier is kept.

  Raises:
    UserError: as `data.open_dataset`.
  """
  own = settings.base().eval
  train_set = data.open_dataset(config.data, "train", config.seed)
  images = eval_inputs.random_images(train_set, own.train_images, own.seed)
  return eval_inputs.choose_features(own, images, cache)


def run(folder: Path, config: ConfigDict, features: Features) -> Result | None:
  """Trains what is left to train, and judges it.

  Args:
    folder: the run's workdir, as of `python -m gamix_jax.main`.
    config: checked.
    features: the same for all runs, see the function `features`.

  Returns:
    What is in its `results.json` from then on: config, numbers, protocol.
    None if a signal ended the training; it can be continued.

  Raises:
    UserError: as `loop.train`.
  """
  trained = loop.train(config, str(folder))
  if not trained:
    return None
  test_set = data.open_dataset(config.data, "test", config.seed)
  images = eval_inputs.first_images(test_set, config.eval_images)
  model = inference.load(folder)
  bounds = {k: trained.get(f"eval/{k}") for k in BOUNDS}
  numbers = {k: v for k, v in bounds.items() if v is not None}
  numbers |= _measure(
    EvalInputs(model, settings.base().eval, features, images), folder
  )
  numbers["sec_per_step"] = _seconds_per_step(folder, config.data.batch_size)
  result = {
    "format": FORMAT,
    "config": json.loads(configs.to_json(config)),
    "numbers": {k: float(v) for k, v in numbers.items() if np.isfinite(v)},
    "protocol": _protocol(config, model, images)
    | {
      "features": features.protocol["features"],
      "features_sha256": features.protocol.get("features, sha256"),
    },
  }
  write_text(folder / RESULTS, json.dumps(result, indent=1) + "\n")
  jax.clear_caches()  # of programs that no other run has
  return result


def _measure(inputs: EvalInputs, folder: Path) -> dict[str, float]:
  """Measures as `evaluate` does; also writes two pictures."""
  model, n = inputs.model, len(inputs.images)
  measured = EvalRun(inputs)
  measured.reconstructions()
  z = model.draw_latents(jax.random.key(SAMPLES_KEY), n)
  measured.samples("prior", z)
  measured.latents(jax.random.key(SURGERY_KEY), at_most=None)
  first = {k: x[:SHOWN] for k, x in measured.shown.items()}
  made = np.concatenate([first["reconstructions"], first["prior"]])
  pictures.save_png(folder / STRIP, pictures.grid(made, len(made)))
  originals = pictures.grid(first["originals"], SHOWN)
  pictures.save_png(folder / ORIGINALS, originals)
  one = model.encode(inputs.images.x[:1])
  z, _ = one.sample(jax.random.key(0), model.config.objective.num_samples)
  return measured.numbers.values | {"decodes_per_image": len(z)}


def _seconds_per_step(folder: Path, batch_size: int) -> float:
  """The median over the log's rows but the first, which has compilation."""
  speed = [
    row["speed/images_per_second"]
    for row in rows(folder / "metrics.jsonl")
    if row.get("speed/images_per_second")
  ]
  return batch_size / float(np.median(speed[1:] or speed or math.nan))


def _protocol(
  config: ConfigDict, model: inference.Model, images: Images
) -> dict[str, Any]:
  """The data, the networks' sizes, the versions and the devices."""
  state = jax.eval_shape(partial(step.init, model.spec))
  parts = dict(state.vae.params) | {"discriminator": state.disc.params}
  section = config.data.copy_and_resolve_references()
  section.cache = "none"  # only counted
  return {
    "train_images": len(data.open_dataset(section, "train", config.seed)),
    "held_out_images": images.total,
    "used_images": len(images),
    "parameters": {
      k: sum(leaf.size for leaf in jax.tree.leaves(v)) for k, v in parts.items()
    },
    "jax": jax.__version__,
    "flax": importlib.metadata.version("flax"),
    "gamix_jax": gamix_jax.__version__,
    "device": jax.devices()[0].device_kind,
    "devices": jax.device_count(),
  }

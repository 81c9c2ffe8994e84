"""One run of a comparison: trained or gone on with, and its numbers."""

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
from gamix_jax import (
  data,
  inference,
  metrics,
  pictures,
  step,
  train,
  train_metrics,
  workdir,
)
from gamix_jax.config import ConfigDict
from gamix_jax.evaluate import eval_inputs, settings
from gamix_jax.files import write_text
from gamix_jax.inference.fitting import read_images
from gamix_jax.metrics.distances import NEIGHBOURS
from gamix_jax.writer import rows

RESULTS = "results.json"
STRIP = "strip.png"  # reconstructions of SHOWN held-out images, SHOWN samples
ORIGINALS = "originals.png"  # those images
SHOWN = 8
TRAINED = ("elbo", "iwae", "mae", "psnr")  # as the training's evaluation says
HEALTH = ("active_units", "collapsed_fraction", "effective_components")
KEY = 20  # of the samples; the same for every family and seed

PROTOCOL = {
  *("train_images", "held_out_images", "used_images", "parameters"),
  *("jax", "flax", "gamix_jax", "device", "devices"),
  *("features", "features_sha256"),
}

Result = dict[str, Any]


def finished(folder: Path, config: ConfigDict) -> Result | None:
  """What `run` came to, if it did and with this very config."""
  path = folder / RESULTS
  if not path.is_file():
    return None
  try:
    result = json.loads(path.read_bytes())
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
  # Of another version, or damaged, which comes out in many ways.
  except Exception:
    return None
  if workdir.changed(was, config):
    return None
  return result | {"numbers": numbers}


def extractor(config: ConfigDict, cache: Path) -> Any:
  """The features of images that `evaluate` chooses by itself: its very ones.

  Args:
    config: of any of the runs; all have the same data.
    cache: a folder where a trained classifier is kept.

  Raises:
    UserError: as `data.open`; images too small.
  """
  own = settings.base().eval
  train_set = data.open(config.data, "train", config.seed)
  images = eval_inputs.some_images(train_set, own.train_images, own.seed)
  return eval_inputs.extractor("auto", images, own.seed, cache)


def run(folder: Path, config: ConfigDict, features: Any) -> Result | None:
  """Trains what is left to train, and judges it.

  Args:
    folder: the run's workdir, as of `python -m gamix_jax.main`.
    config: checked.
    features: of `extractor`; the same for all runs.

  Returns:
    What is in its `results.json` from then on: config, numbers, protocol.
    None if a signal ended the training; it can be continued.

  Raises:
    UserError: as `train.train`.
  """
  trained = train.train(config, str(folder))
  if not trained:
    return None
  test_set = data.open(config.data, "test", config.seed)
  n = min(config.eval_images, len(test_set))
  images, _ = read_images(test_set, range(n))
  model = inference.load(folder)
  numbers = {k: trained.get(f"eval/{k}") for k in TRAINED}
  numbers |= _judge(model, images, folder, features)
  numbers["sec_per_step"] = _seconds_a_step(folder, config.data.batch_size)
  result = {
    "config": json.loads(configs.to_json(config)),
    "numbers": {
      k: float(v)
      for k, v in numbers.items()
      if v is not None and np.isfinite(v)
    },
    "protocol": _protocol(config, model, n, len(test_set))
    | {
      "features": features.name,
      "features_sha256": getattr(features, "sha256", None),
    },
  }
  write_text(folder / RESULTS, json.dumps(result, indent=1) + "\n")
  jax.clear_caches()  # of programs that no other run has
  return result


def _judge(
  model: inference.Model, images: np.ndarray, folder: Path, features: Any
) -> dict[str, float]:
  """Numbers of held-out images, uint8 [n, h, w, c]; two pictures."""
  n, config = len(images), model.config
  q = model.encode(images)
  latents = {
    "reconstructions": np.asarray(q.mean()),
    "samples": model.draw_latents(jax.random.key(KEY), n),
  }
  seen = {"held_out": eval_inputs.look(images, features)}
  for kind, z in latents.items():
    source = n, lambda rows, z=z: model.decode(z[rows])
    seen[kind] = eval_inputs.look(source, features)
  first = np.concatenate([seen[kind].shown[:SHOWN] for kind in latents])
  pictures.save_png(folder / STRIP, pictures.grid(first, len(first)))
  originals = seen["held_out"].shown[:SHOWN]
  pictures.save_png(folder / ORIGINALS, pictures.grid(originals, SHOWN))

  numbers = {f"sharpness_{k}": np.mean(v.sharpness) for k, v in seen.items()}
  real = seen["held_out"].features
  if n > 1:
    for kind in latents:
      numbers[f"fd_{features.name}_{kind}"] = metrics.frechet_distance(
        real, seen[kind].features
      )
  if n > NEIGHBOURS:
    shares = metrics.prdc(real, seen["samples"].features, NEIGHBOURS)
    numbers |= {f"{k}_samples": v for k, v in shares.items()}
  health = train_metrics.posterior(q)
  numbers |= {k: health.get(f"posterior/{k}") for k in HEALTH}
  if q.has_finite_elbo:
    pieces = metrics.surgery(
      q,
      jax.random.key(KEY + 1),
      log_prior=model._device.with_prior(q).log_prior,
    )
    for name in ("mutual_information", "population_kl"):
      numbers[name] = pieces[name]
  if config.posterior.name == "poisson":
    numbers |= metrics.sparseness(q.mean())
  one = model.encode(images[:1])
  z, _ = one.sample(jax.random.key(0), config.objective.num_samples)
  numbers["decodes_per_image"] = len(z)
  return numbers


def _seconds_a_step(folder: Path, batch_size: int) -> float:
  """The median over the log's rows, of which the first has the compiling."""
  speed = [
    row["speed/images_per_second"]
    for row in rows(folder / "metrics.jsonl")
    if row.get("speed/images_per_second")
  ]
  return batch_size / float(np.median(speed[1:] or speed or math.nan))


def _protocol(config, model, used, held_out) -> dict[str, Any]:
  """What the numbers were made on and with."""
  state = jax.eval_shape(partial(step.init, model.recipe))
  parts = dict(state.vae.params) | {"discriminator": state.disc.params}
  section = config.data.copy_and_resolve_references()
  section.cache = "none"  # only counted
  return {
    "train_images": len(data.open(section, "train", config.seed)),
    "held_out_images": held_out,
    "used_images": used,
    "parameters": {
      k: sum(leaf.size for leaf in jax.tree.leaves(v)) for k, v in parts.items()
    },
    "jax": jax.__version__,
    "flax": importlib.metadata.version("flax"),
    "gamix_jax": gamix_jax.__version__,
    "device": jax.devices()[0].device_kind,
    "devices": jax.device_count(),
  }

"""One run of a comparison: trained or gone on with, and its numbers."""

import importlib.metadata
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gamix_jax
from gamix_jax import config as configs
from gamix_jax import data, diagnose, inference, metrics, pictures, step, train
from gamix_jax.config import ConfigDict, image_shape
from gamix_jax.errors import UserError
from gamix_jax.inference.fitting import read_images
from gamix_jax.workdir import write_text

RESULTS = "results.json"
STRIP = "strip.png"  # reconstructions of SHOWN held-out images, SHOWN samples
ORIGINALS = "originals.png"  # those images
SHOWN = 8
TRAINED = ("elbo", "iwae", "mae", "psnr")  # as the training's evaluation says
HEALTH = ("active_units", "collapsed_share", "effective_components")
KEY = 20  # of the samples; the same for every family and seed

Result = dict[str, Any]


def finished(folder: Path, config: ConfigDict) -> Result | None:
  """What `run` came to, if it did and with this very config."""
  path = folder / RESULTS
  if not path.is_file():
    return None
  try:
    result = json.loads(path.read_text())
    # As a saved config is read: a key that is newer has its default.
    was = configs.from_json(json.dumps(result["config"]), str(path))
  except (json.JSONDecodeError, KeyError, UserError):  # of another version
    return None
  return None if configs.differences(was, config) else result


def run(folder: Path, config: ConfigDict) -> Result | None:
  """Trains what is left to train, and judges it.

  Args:
    folder: the run's workdir, as of `python -m gamix_jax.main`.
    config: checked.

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
  numbers |= _judge(model, images, folder)
  numbers["seconds_a_step"] = _seconds_a_step(folder, config.data.batch_size)
  result = {
    "config": configs.flat(config),
    "numbers": {
      k: float(v)
      for k, v in numbers.items()
      if v is not None and np.isfinite(v)
    },
    "protocol": _protocol(config, model, n, len(test_set)),
  }
  write_text(folder / RESULTS, json.dumps(result, indent=1) + "\n")
  jax.clear_caches()  # of programs that no other run has
  return result


def _judge(
  model: inference.Model, images: np.ndarray, folder: Path
) -> dict[str, float]:
  """Numbers of held-out images, uint8 [n, h, w, c]; two pictures."""
  n, config = len(images), model.config
  x = np.asarray(step.pixels(jnp.asarray(images)))
  q = model.encode(images)
  made = {
    "reconstructions": model.decode(q.mean()),
    "samples": model.sample(jax.random.key(KEY), n),
  }
  first = np.concatenate([v[:SHOWN] for v in made.values()])
  pictures.save_png(folder / STRIP, pictures.grid(first, len(first)))
  pictures.save_png(folder / ORIGINALS, pictures.grid(x[:SHOWN], SHOWN))

  numbers = {"sharpness_held_out": jnp.mean(metrics.sharpness(x))}
  features = metrics.random_features(image_shape(config))
  real = features(x)
  for kind, shown in made.items():
    numbers[f"sharpness_{kind}"] = jnp.mean(metrics.sharpness(shown))
    if n > 1:
      numbers[f"fd_{features.name}_{kind}"] = metrics.frechet_distance(
        real, features(shown)
      )
  health = diagnose.posterior(q)
  numbers |= {k: health.get(f"posterior/{k}") for k in HEALTH}
  if q.bounded:
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
  z, _ = one.draws(jax.random.key(0), config.objective.draws)
  numbers["draws_decoded"] = len(z)
  return numbers


def _seconds_a_step(folder: Path, batch_size: int) -> float:
  """The median over the log's rows, of which the first has the compiling."""
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  name = "speed/images_per_second"
  speed = [row[name] for row in map(json.loads, lines) if name in row]
  return batch_size / float(np.median(speed[1:] or speed))


def _protocol(config, model, used, held_out) -> dict[str, Any]:
  """What the numbers were made on and with."""
  state = jax.eval_shape(partial(step.init, model.recipe))
  parts = dict(state.vae.params) | {"discriminator": state.disc.params}
  settings = config.data.copy_and_resolve_references()
  settings.cache = "none"  # only counted
  return {
    "train_images": len(data.open(settings, "train", config.seed)),
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

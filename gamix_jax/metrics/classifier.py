"""Features of a small network that learned the data's own labels."""

import hashlib
import logging
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from gamix_jax import files, pictures
from gamix_jax.errors import UserError
from gamix_jax.metrics.features import FEATURE_BATCH

log = logging.getLogger(__name__)

VERSION = 1  # of what is not in the numbers below: raise it when that changes
STEPS = 400
BATCH = 64
LEARNING_RATE = 2e-3
WIDTHS = (16, 32, 64)
WIDTH = 64  # of the features
SCALE_IMAGES = 1_024  # images that the features' scale is taken from


class _Network(nn.Module):
  """3x3 convolutions with stride 2, their mean over space, two layers."""

  classes: int

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Images [b, h, w, c] in [-1, 1] -> features [b, f], logits."""
    for width in WIDTHS:
      x = nn.relu(nn.Conv(width, (3, 3), strides=2, precision="highest")(x))
    x = jnp.mean(x, axis=(1, 2))
    features = nn.relu(nn.Dense(WIDTH, precision="highest")(x))
    return features, nn.Dense(self.classes, precision="highest")(features)


class classifier_features:
  """Features from the last hidden layer of a small classifier.

  For images with labels. 400 steps of Adam, or as many as are asked for (batch
  64, 2e-3, cosine), on the training images; all is a function of the images,
  the labels, the seed and the steps.
  They are divided by their root mean square over the first training images.
  A `frechet_distance` of these is called `fd_<name>`; it is not an FID.

  Attributes:
    name: of the network, without its weights.
    sha256: of its weights.
    width: f.
  """

  def __init__(
    self,
    images: np.ndarray,
    labels: np.ndarray,
    seed: int = 0,
    cache: Path | None = None,
    steps: int = STEPS,
  ):
    """Trains the classifier, or loads it from a folder.

    Args:
      images: uint8 [n, h, w, c].
      labels: int [n], 0 or more.
      seed: of first weights and batches.
      cache: a folder where the trained weights are kept; None: not kept.
      steps: of training.

    Raises:
      UserError: fewer than two classes, a label under 0.
    """
    labels = np.asarray(labels, np.int32)
    if len(np.unique(labels)) < 2 or labels.min() < 0:
      raise UserError(
        "A classifier needs a label for every image, and two classes or more."
      )
    self.shape, self.width = tuple(images.shape[1:]), WIDTH
    self.name = f"classifier_f{WIDTH}_s{seed}"
    self._network = _Network(int(labels.max()) + 1)
    start = self._network.init(
      jax.random.key(seed), jnp.zeros((1, *self.shape))
    )
    settings = VERSION, steps, BATCH, LEARNING_RATE, WIDTHS, WIDTH
    made_from = repr((*settings, seed, images.shape)).encode()
    made_from = hashlib.sha256(made_from)
    made_from.update(np.ascontiguousarray(images))
    made_from.update(labels)
    name = f"classifier-{made_from.hexdigest()[:16]}.npz"
    file = cache / name if cache else None
    self._params = _read(file, start) if file else None
    if self._params is None:
      self._params = _trained(self._network, start, images, labels, seed, steps)
      if file:
        _write(file, self._params)
    parts = jax.tree.leaves(jax.device_get(self._params))
    self.sha256 = hashlib.sha256(b"".join(p.tobytes() for p in parts))
    self.sha256 = self.sha256.hexdigest()
    self._apply = jax.jit(self._network.apply)
    x = pictures.to_float(images[:SCALE_IMAGES])
    self._scale = float(np.sqrt(np.mean(np.square(self._run(x)[0])))) or 1.0

  def __call__(self, x: np.ndarray) -> np.ndarray:
    """Images [b, h, w, c] in [-1, 1] -> float32 features [b, f]."""
    return self._run(x)[0] / np.float32(self._scale)

  def accuracy(self, x: np.ndarray, labels: np.ndarray) -> float:
    """Share of images [b, h, w, c] in [-1, 1] that it classifies correctly."""
    return float(np.mean(self.with_classes(x)[1] == labels))

  def with_classes(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features [b, f] as of a call, and the most likely classes, int [b]."""
    features, logits = self._run(x)
    return features / np.float32(self._scale), logits.argmax(axis=1)

  def _run(self, x):
    if x.ndim != 4 or tuple(x.shape[1:]) != self.shape:
      raise UserError(
        f"{self.name} was made for images {self.shape}, not {x.shape[1:]}."
      )
    parts = []
    for start in range(0, len(x), FEATURE_BATCH):
      part = np.asarray(x[start : start + FEATURE_BATCH], np.float32)
      # Filled up, so that one program serves all.
      missing = [(0, FEATURE_BATCH - len(part))] + [(0, 0)] * 3
      out = jax.device_get(self._apply(self._params, np.pad(part, missing)))
      parts.append([v[: len(part)] for v in out])
    return [np.concatenate(v) for v in zip(*parts, strict=True)]


def _trained(network, params, images, labels, seed, steps):
  optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))

  @partial(jax.jit, donate_argnums=(0, 1))
  def step(params, slots, images, labels):
    def loss(params):
      _, logits = network.apply(params, pictures.to_float(images))
      each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return jnp.mean(each)

    updates, slots = optimizer.update(jax.grad(loss)(params), slots, params)
    return optax.apply_updates(params, updates), slots

  rng = np.random.Generator(np.random.PCG64(seed))
  slots = optimizer.init(params)
  for _ in range(steps):
    rows = rng.integers(0, len(images), BATCH)
    params, slots = step(params, slots, images[rows], labels[rows])
  return params


def _write(file: Path, params) -> None:
  leaves = jax.tree.leaves(jax.device_get(params))
  file.parent.mkdir(parents=True, exist_ok=True)
  with files.atomic(file) as temporary:
    np.savez(temporary, *leaves)


def _read(file: Path, like):
  """What `_write` wrote; None where there is none, or it is damaged."""
  leaves, structure = jax.tree.flatten(like)
  try:
    with file.open("rb") as f, np.load(f) as arrays:
      found = [arrays[f"arr_{i}"] for i in range(len(leaves))]
    if [f.shape for f in found] != [leaf.shape for leaf in leaves]:
      raise ValueError("its arrays are of another network")
  except FileNotFoundError:
    return None
  except Exception as e:  # a damaged zip fails in many ways
    log.warning("%s is damaged (%s); making it again.", file, e)
    return None
  return jax.tree.unflatten(structure, found)

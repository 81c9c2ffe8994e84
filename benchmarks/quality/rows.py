"""The rows of the benchmark: data, budgets, and the images of both sides."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gamix_jax import data
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError

MAX_JUDGED = 2_000  # maximum number of held-out images, and of samples


@dataclasses.dataclass(frozen=True)
class Task:
  """A data set and its settings for both sides.

  Attributes:
    config: file in configs/ that ours is trained with.
    source: prefix that turns a plain path into a data.source.
    size: height and width.
    latent: latent size of both sides.
    loss: the peer's reconstruction loss.
    batch: the peer's batch size.
    features: the features for distances: "classifier", trained on the data's
      labels, and "random", of a fixed random network.
    more: overrides of our config.
  """

  config: str
  source: str
  size: int
  latent: int
  loss: str
  batch: int
  features: tuple[str, ...]
  more: tuple[str, ...] = ()


TASKS = {
  "mnist": Task("mnist.py", "idx", 28, 16, "bce", 128, ("classifier",)),
  "fashion_mnist": Task(
    "fashion_mnist.py", "idx", 28, 16, "bce", 128, ("classifier",)
  ),
  "faces": Task(
    "folder.py", "folder", 64, 64, "mse", 64, ("random", "classifier")
  ),
}
ROWS = ("mnist_120", "mnist_600", "fashion_mnist_600", "faces_600")
ROWS += ("faces_1800",)

# Replaces TASKS with --tiny: no files, networks that compile quickly.
TINY_TASKS = {
  "digits": Task(
    *("digits.py", "", 8, 4, "bce", 64, ("random", "classifier")),
    more=(
      "model.encoder=mlp",
      "model.decoder=mlp",
      "model.encoder_features=(16,)",
      "model.decoder_features=(16,)",
      "objective.population=means",
      "adversarial.loss=none",
      "weights.adversarial=None",
      "weights.real=None",
      "weights.fake=None",
    ),
  )
}
TINY_ROWS = ("digits_12",)


def parse(
  names: Sequence[str] | None, sources: dict[str, str | None], tiny: bool
) -> dict[str, list[int]]:
  """Parses row names, `<task>_<CPU-seconds>`, to {task: seconds, ascending}.

  Args:
    names: of the rows; None: those of ROWS whose data were given.
    sources: {task: data.source or None}.
    tiny: whether to use the tiny tasks.

  Raises:
    UserError: if a row does not exist, or has no data.
  """
  tasks = TINY_TASKS if tiny else TASKS
  if names is None:
    names = [r for r in ROWS if sources[r.rpartition("_")[0]]]
    names = TINY_ROWS if tiny else names
  if not names:
    raise UserError(
      "There is nothing to train on: give --mnist, --fashion or --faces (or "
      "--tiny, which needs no files)."
    )
  found: dict[str, list[int]] = {}
  for name in names:
    task, _, seconds = name.rpartition("_")
    if task not in tasks or not seconds.isdecimal() or int(seconds) < 1:
      raise UserError(
        f"--rows={name} must be <task>_<CPU-seconds>, and the tasks are "
        f"{', '.join(tasks)}; for instance {ROWS[0]}."
      )
    if not tiny and not sources[task]:
      flag = task.removesuffix("_mnist") if task != "mnist" else task
      raise UserError(f"--rows={name} has no data: give --{flag}=...")
    found.setdefault(task, []).append(int(seconds))
  return {task: sorted(set(seconds)) for task, seconds in found.items()}


def source(task: Task, given: str | None) -> str:
  """Returns the data.source of a flag: a path, or a data.source itself."""
  if not given:
    return "digits"
  name, colon, _ = given.partition(":")
  if colon and name in data.SOURCES:
    return given
  if given.endswith(".npz"):
    return f"npz:{given}"
  return f"{task.source}:{given}"


@dataclasses.dataclass(frozen=True)
class Images:
  """The images that both sides are trained and evaluated on.

  Attributes:
    train: uint8 [n, h, w, c].
    train_labels: int [n], -1 if unlabelled.
    test: uint8 [m, h, w, c], m at most JUDGED.
    test_labels: int [m].
    sha256: hash of all arrays.
  """

  train: np.ndarray
  train_labels: np.ndarray
  test: np.ndarray
  test_labels: np.ndarray
  sha256: str

  def save(self, path: Path) -> None:
    """Saves the images for the peer's process."""
    np.savez(path, train=self.train, test=self.test)


def read(config: ConfigDict) -> Images:
  """Reads the images as the trainer does.

  The first JUDGED images of the test split are held out. A folder's images are
  sorted by class, so there as many are taken at even distances.

  Raises:
    UserError: as `data.open_dataset`.
  """
  arrays = []
  for split, most in (("train", None), ("test", MAX_JUDGED)):
    dataset = data.open_dataset(config.data, split, config.seed)
    n = len(dataset)
    rows = np.arange(min(n, most or n))
    if len(rows) < n and config.data.source.startswith("folder:"):
      rows = np.linspace(0, n - 1, len(rows)).astype(int)
    batch = dataset.load_batch(rows)
    arrays += [batch["image"], batch["label"]]
  digest = hashlib.sha256()
  for a in arrays:
    digest.update(repr(a.shape).encode())
    digest.update(np.ascontiguousarray(a))
  return Images(*arrays, digest.hexdigest())

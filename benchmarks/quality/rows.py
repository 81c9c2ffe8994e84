"""The rows: which data, how long, and which images both sides see."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gamix_jax import data
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError

JUDGED = 2_000  # held-out images at most, and as many samples


@dataclasses.dataclass(frozen=True)
class Task:
  """Data with what goes with them on both sides.

  Attributes:
    config: of configs/, that ours is trained with.
    source: what stands before a plain path to make it a data.source.
    size: height and width.
    latent: of both.
    loss: the peer's reconstruction loss.
    batch: the peer's.
    features: that distances are taken between: "classifier", of the data's own
      labels, and "random", of a fixed random network.
    more: overrides of the config that ours has here.
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

# What --tiny has instead: no files, networks that compile in a moment.
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
  """Rows by name, `<task>_<CPU-seconds>`, as {task: seconds, ascending}.

  Args:
    names: of the rows; None: of ROWS, those whose data were given.
    sources: {task: data.source or None}.
    tiny: whether the tiny tasks are meant.

  Raises:
    UserError: no such row, or no data for it.
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
        f"--rows={name}: a row is called <task>_<CPU-seconds>, and the tasks "
        f"are {', '.join(tasks)}; for instance {ROWS[0]}."
      )
    if not tiny and not sources[task]:
      flag = task.removesuffix("_mnist") if task != "mnist" else task
      raise UserError(f"--rows={name} has no data: give --{flag}=...")
    found.setdefault(task, []).append(int(seconds))
  return {task: sorted(set(seconds)) for task, seconds in found.items()}


def source(task: Task, given: str | None) -> str:
  """The data.source of what a flag says: a path, or a data.source itself."""
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
  """What both sides are trained and judged on.

  Attributes:
    train: uint8 [n, h, w, c].
    train_labels: int [n], -1 where there is none.
    test: uint8 [m, h, w, c], m at most JUDGED.
    test_labels: int [m].
    sha256: of all of it.
  """

  train: np.ndarray
  train_labels: np.ndarray
  test: np.ndarray
  test_labels: np.ndarray
  sha256: str

  def save(self, path: Path) -> None:
    """For the peer's process."""
    np.savez(path, train=self.train, test=self.test)


def read(config: ConfigDict) -> Images:
  """The images as the trainer itself reads them.

  Held out are the first JUDGED of the test split. Of a folder, whose images
  are sorted by class, as many that are spread evenly over it.

  Raises:
    UserError: as `data.open_dataset`.
  """
  arrays = []
  for split, most in (("train", None), ("test", JUDGED)):
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

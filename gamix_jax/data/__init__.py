"""Images in, batches out.

Read in this order:

  settings            the section `data` of the configuration
  sources             where images come from: a table; digits, synthetic
  folder, idx,
  npz, tfds           the other sources
  levels              which of an array's numbers are black and white
  labels              what a class is: a number, and a name
  notes               names in messages
  decode              one image: decode, crop, convert, resize
  dataset             images by index, and the rule for broken ones
  cache               decode once
  order               the batch of step t: which rows, which of them mirrored
  batches             those rows, made ahead by a thread or by processes

In use:

  dataset = data.open(config.data, "train", config.seed)
  for batch in data.batches(dataset, batch_size=64, seed=0, start=step):
    batch["image"]  # uint8 [b, h, w, c]; on the device: / 127.5 - 1
"""

from gamix_jax.data.batches import Batches, batches, eval_batches
from gamix_jax.data.dataset import ANY, Dataset, fingerprint, other_images
from gamix_jax.data.dataset import open_dataset as open
from gamix_jax.data.settings import Settings
from gamix_jax.data.sources import SOURCES, Source, absolute

__all__ = [
  "ANY",
  "SOURCES",
  "Batches",
  "Dataset",
  "Settings",
  "Source",
  "absolute",
  "batches",
  "eval_batches",
  "fingerprint",
  "open",
  "other_images",
]

"""Images in, batches out.

    dataset = data.open_dataset(config.data, "train", config.seed)
    for batch in data.batches(dataset, batch_size=64, seed=0, start=step):
      batch["image"]  # uint8 [b, h, w, c]; on the device: / 127.5 - 1

Read in this order; each module imports only earlier ones:

  formatting          file names in messages
  settings            the section `data` of the configuration, and its checks
  source              the base class of sources; test split; classes left out
  levels, labels      arrays of any range and labels of any kind, as this
                      package has them
  builtin, folder,
  idx, npz, tfds      the sources
  decode              one image: decode, crop, convert, resize
  dataset             images by index; broken files
  cache               decode once
  pipeline            the table of sources; open_dataset
  index_sampler       which images are the batch of step t, and which of them
                      are mirrored
  batches             these batches, prepared by threads or processes

`source` shows how to write and register a source of your own.
"""

from gamix_jax.data.batches import Batches, batches, eval_batches
from gamix_jax.data.dataset import Dataset
from gamix_jax.data.modalities import ModalitySpec
from gamix_jax.data.multimodal import MultimodalArrays, MultimodalSource
from gamix_jax.data.pipeline import (
  ANY_FINGERPRINT,
  SOURCES,
  fingerprint,
  fingerprint_error,
  open_dataset,
  resolve_source,
)
from gamix_jax.data.settings import Settings
from gamix_jax.data.source import ArraySource, Source

__all__ = [
  "ANY_FINGERPRINT",
  "SOURCES",
  "ArraySource",
  "Batches",
  "Dataset",
  "ModalitySpec",
  "MultimodalArrays",
  "MultimodalSource",
  "Settings",
  "Source",
  "batches",
  "eval_batches",
  "fingerprint",
  "fingerprint_error",
  "open_dataset",
  "resolve_source",
]

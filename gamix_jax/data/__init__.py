"""Images in, batches out.

    dataset = data.open_dataset(config.data, "train", config.seed)
    for batch in data.batches(dataset, batch_size=64, seed=0, start=step):
      batch["image"]  # uint8 [b, h, w, c]; on the device: / 127.5 - 1

Read in this order; each module imports only earlier ones:

  formatting          file names in messages
  modalities          the entries of `data.modalities`
  settings            the section `data` of the configuration, and its checks
  source              the base class of sources; test split; classes left out
  multimodal          the base class of sources with several modalities
  levels, labels      arrays of any range and labels of any kind, as this
                      package has them
  archive             NumPy files, read safely
  image_files         files that are images: their heads, splits and labels
  packed              such files in archives, read at random
  options             of a source, after a question mark
  builtin, folder,
  zip_file, tar, idx,
  npz, huggingface,
  tfds                the sources
  folder_multimodal,
  npz_multimodal      the same with several modalities
  decode              one image: decode, crop, convert, resize
  dataset             images by index; broken files
  binary              images whose pixels are black or white
  prepare, missing    arrays of modalities, and which of them are missing
  multimodal_dataset  observations of several modalities by index
  cache               decode once
  backgrounds,
  pairing, mnist      what the digits of several views are made of
  polydigits, polymnist,
  mnist_label,
  linear_gaussian,
  ivae                sources of several modalities
  pipeline            the table of sources; open_dataset
  index_sampler       which images are the batch of step t, and which of them
                      are mirrored
  batches             these batches, prepared by threads or processes

`source` shows how to write and register a source of your own.
"""

from gamix_jax.data.batches import Batches, batches, eval_batches, spread_rows
from gamix_jax.data.dataset import Dataset
from gamix_jax.data.modalities import ModalitySpec
from gamix_jax.data.multimodal import MultimodalArrays, MultimodalSource
from gamix_jax.data.multimodal_dataset import MultimodalDataset
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
  "MultimodalDataset",
  "MultimodalSource",
  "Settings",
  "Source",
  "batches",
  "eval_batches",
  "fingerprint",
  "fingerprint_error",
  "open_dataset",
  "resolve_source",
  "spread_rows",
]

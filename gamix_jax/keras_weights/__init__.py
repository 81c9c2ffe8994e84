"""Converts the reference's Keras weights to a workdir.

  python -m gamix_jax.keras_weights --weights=FILE.h5 --config=FILE \
    --workdir=DIR

DIR can be used like any workdir: `gamix_jax.load` opens it and `gamix_jax.main`
continues the training. The file does not contain strides, loss or data; these
come from the config. Written from files of the reference and a description of
its networks, without its code.

Reading order: `names` (maps weights in the file to those in `TrainState`),
`file` (reads and validates a file), `state` (converts it to a `TrainState` and
a workdir), `__main__` (the command).
"""

from gamix_jax.keras_weights.file import Adam, Weights, read
from gamix_jax.keras_weights.names import datasets, locate
from gamix_jax.keras_weights.state import import_weights, to_state

__all__ = [
  "Adam",
  "Weights",
  "datasets",
  "import_weights",
  "locate",
  "read",
  "to_state",
]

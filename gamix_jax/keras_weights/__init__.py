"""The reference's weights in, a workdir out.

  python -m gamix_jax.keras_weights --weights=FILE.h5 --config=FILE \
    --workdir=DIR

DIR is then as if it had been trained here: `gamix_jax.load` opens it and
`gamix_jax.main` continues it. The file does not hold strides, loss or data:
those come from the config. Made from files of the reference and a description
of its networks, without its code.

Reading order: `names` (where a weight is in the file and where here), `file`
(what a file holds, and whether it is this model), `state` (a run's state of
it), `__main__` (the command).
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

"""Checkpoints, and stopping with a last one on SIGTERM.

store        `Checkpoints`: save, restore and list a run's steps
leaves       a state as a dictionary of named arrays
integrity    whether a saved step is complete and unchanged
preemption   SIGTERM and SIGINT
"""

from gamix_jax.checkpoint.preemption import Preemption
from gamix_jax.checkpoint.store import Checkpoints

__all__ = ["Checkpoints", "Preemption"]

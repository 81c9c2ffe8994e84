"""What survives a run: checkpoints, and the signal that asks for a last one.

Reading order: `sums` (is a saved step what was written?), `leaves` (a state
as names and arrays, and back), `reader` (what there is, restore), `store`
(`Checkpoints`: that, and save) with its helpers `hosts` and `failure`,
`preemption` (SIGTERM).
"""

from gamix_jax.checkpoint.preemption import Preemption
from gamix_jax.checkpoint.store import Checkpoints

__all__ = ["Checkpoints", "Preemption"]

"""How good images are at equal time: ours and a peer's VAE, judged alike.

In this order: `rows` (what is trained on what), `ours` and `peer` (the two
trainings), `judge`, `report`; `__main__` has the flags.
"""

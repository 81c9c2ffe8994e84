"""Compares image quality at equal time: ours and a peer's VAE, same evaluation.

Reading order: `rows` (data and budgets), `ours` and `peer` (the two trainings),
`judge`, `report`; `__main__` has the flags.
"""

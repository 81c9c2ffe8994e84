"""Trains several families and objectives alike, and judges them alike.

families       what a name such as mixture:4/gamix:quadratic stands for
evaluate_run   one run: trained, or continued, and measured as by `evaluate`
loop           all runs, one after another
report         the table, its protocol, a CSV and figures
"""

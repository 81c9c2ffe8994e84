"""Trains and evaluates several families and objectives under equal conditions.

families       parses names such as mixture:4/gamix:quadratic
evaluate_run   trains or continues one run and evaluates it like `evaluate`
loop           all runs, one after another
report         writes the table, its protocol, a CSV and figures
"""

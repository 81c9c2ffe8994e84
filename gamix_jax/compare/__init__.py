"""Trains and evaluates several families and objectives under equal conditions.

weights               of the terms of an objective
families              parses names such as mixture:4/gamix:quadratic
multimodal_families   parses names such as separate/mmvm:surrogate
evaluate_run          trains or continues one run and evaluates it like
                      `evaluate`
multimodal_run        what it evaluates of several modalities
loop                  all runs, one after another
report                writes the table, its protocol, a CSV and figures
multimodal_report     the same of several modalities
"""

"""Families and objectives trained alike and judged alike.

families   what a name such as mixture:4/gamix:quadratic stands for
judge      one run: trained, or gone on with, and its numbers
loop       all runs, one after the other
report     the table, its numbers as CSV, the protocol
figure     the same as a picture
"""

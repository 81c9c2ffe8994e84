"""A run from its config to its last checkpoint. Read `loop` first.

loop        the steps, and when what else is done
workdir     the run's folder: new, or continued
validation  numbers and pictures of held-out images
monitor     warnings in plain words
progress    what is printed
writer      metrics.jsonl, TensorBoard, pictures
profiling   a trace of some steps
"""

"""Judges a trained model: numbers, each with its protocol, and a report.

settings      the keys --config.eval.*
results       the numbers of one model: values, or the reason for none
eval_inputs   the model, the images, the features they are compared on
run_metrics   the measurements; `compare` takes some of them
report        numbers and pictures in Markdown

Of several modalities:

observations         rows of a split with their masks; subsets of modalities
classifiers          of single modalities, which say what was generated
multimodal_inputs    the model, the observations, the classifiers
multimodal           the measurements
multimodal_pictures  for the report
"""

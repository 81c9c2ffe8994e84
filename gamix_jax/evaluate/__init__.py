"""A trained model judged: numbers, each with its protocol, and a report.

settings   what can be asked for: the keys --config.eval.*
numbers    one file of numbers: a value or the reason why there is none
subject    the model and the images that it is judged on
measure    what is measured
figure     the pictures
report     numbers and pictures, to be read
"""

"""The population bench: every way to pull q(z) to the prior, on equal terms.

methods    the methods, the weights that are tried for each, the networks
images     training, validation and test images, and the judge's classifier
training   a method's runs in one compiled program
judge      what is measured of a trained model
plan       which runs there are, who does them, which weight is chosen
report     the tables and figures, from the folders of the runs
"""

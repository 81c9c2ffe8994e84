"""Exports a trained model for other programs: python -m gamix_jax.export.

signatures    the encoder and the decoder, each as a function of one array
serialize     converts such a function to bytes, and runs these bytes
card          the model card that goes with the weights
write         exports, compares with the model, and writes atomically
"""

from gamix_jax.export.card import Facts
from gamix_jax.export.write import check, export

__all__ = ["Facts", "check", "export"]

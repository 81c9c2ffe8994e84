"""A trained model for other programs: python -m gamix_jax.export.

functions     the encoder and the decoder, each as a function of one array
artifact      such a function as bytes, and bytes run again
write         exported, checked against the model, written whole or not at all
"""

from gamix_jax.export.write import check, export

__all__ = ["check", "export"]

"""A Gradio demo of a trained model: python -m gamix_jax.explore.

view     computes the pictures of the page from images and latents
app      the Gradio page and its server
"""

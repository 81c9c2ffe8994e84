"""A page to touch a trained model on: python -m gamix_jax.explore.

view     what the page shows: images and latents in, pictures out
page     the same in Gradio, and the server
"""

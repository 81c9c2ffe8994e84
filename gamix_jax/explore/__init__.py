"""A Gradio demo of a trained model: python -m gamix_jax.explore.

view              computes the pictures of the page from images and latents
multimodal_view   the same of several modalities
components        Gradio, and messages of errors
multimodal_page   the page of several modalities
app               the page of images, and the server
"""

"""Renders pictures from a trained model.

select_images   loads the input images: held-out images, or files
renderers       one function per kind of picture
animation       writes frames as GIF or MP4
folder          writes raw images for other tools
"""

"""Renders pictures from a trained model.

select_images   loads the input images: held-out images, or files
options         values of flags
renderers       one function per kind of picture
multimodal      the same of several modalities
output          one figure, or a folder
animation       writes frames as GIF or MP4
folder          writes raw images for other tools
"""

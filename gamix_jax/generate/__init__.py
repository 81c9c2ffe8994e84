"""Pictures of a trained model.

select_images   the images that a picture is of: held-out ones, or files
renderers       the kinds of pictures
animation       frames as GIF or MP4
folder          raw images for other tools
"""

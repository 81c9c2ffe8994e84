"""Pictures of a trained model.

chosen     the images that a picture is of: held-out ones, or files
content    what each kind of picture shows: a table
figure     it as a PNG with a title and axes
film       frames as GIF or MP4
folder     raw images for other tools
"""

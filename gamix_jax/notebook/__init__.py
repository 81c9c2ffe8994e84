"""Support for the notebooks in launch/: training, pictures, sliders.

    from gamix_jax import notebook
    print(notebook.machine())
    notebook.train("configs/digits.py", "runs/digits", {"steps": 600})

Training runs `python -m gamix_jax.main` in a separate process, so that the
notebook's process leaves the accelerator free (a TPU accepts one process only).
Interrupting the cell saves a checkpoint, like a signal on the command line.

  device_info   describes the devices; unpacks a zip of images
  run           starts, watches and stops a training
  panels        draws the progress of a run as one picture
  display       shows images and sliders in a cell
"""

from gamix_jax.notebook.device_info import Machine, machine, unpack
from gamix_jax.notebook.display import show, sliders
from gamix_jax.notebook.run import Run, train

__all__ = [
  "Machine",
  "Run",
  "machine",
  "show",
  "sliders",
  "train",
  "unpack",
]

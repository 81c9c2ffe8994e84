"""What the notebooks of launch/ stand on: a run watched, pictures, sliders.

    from gamix_jax import notebook
    print(notebook.machine())
    notebook.train("configs/digits.py", "runs/digits", {"steps": 600})

Training is the program's own, `python -m gamix_jax.main` in a process of its
own: the notebook's process holds no accelerator meanwhile (a TPU has room for
one), and interrupting the cell saves as a signal on the command line does.

  machine   what there is to train on; a zip, unpacked
  run       a training started, watched and stopped
  panels    how far a workdir is, as one picture
  look      images and sliders in a cell
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

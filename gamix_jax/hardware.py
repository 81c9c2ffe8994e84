"""The accelerators of this machine, found without starting JAX."""

import glob
from importlib.metadata import entry_points
from importlib.util import find_spec


def has_tpu() -> bool:
  """Whether there are TPU chips, and libtpu, through which JAX uses them."""
  chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
  return bool(chips) and find_spec("libtpu") is not None


def only_cpu() -> bool:
  """Whether JAX can find nothing but the CPU.

  JAX finds other platforms as plugins (entry points or the namespace package
  jax_plugins), and TPUs through libtpu. libtpu alone is no TPU: it is also
  installed to compile programs for one.
  """
  plugins = entry_points(group="jax_plugins") or find_spec("jax_plugins")
  return not plugins and not has_tpu()

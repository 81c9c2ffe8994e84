"""Describes the devices, and unpacks a zip of images."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import tqdm

from gamix_jax import files, paths
from gamix_jax.errors import UserError

# Run in a separate process that ends: JAX in this process would withhold the
# memory of a GPU, or a complete TPU, from the training.
_QUERY = """
import json, jax
d = jax.local_devices()
stats = d[0].memory_stats() or {}
print(json.dumps({
  "platform": d[0].platform, "kind": d[0].device_kind, "count": len(d),
  "memory": stats.get("bytes_limit"),
  "capability": getattr(d[0], "compute_capability", None),
}))
"""
_BFLOAT16_CAPABILITY = 8.0  # least compute capability for fast bfloat16


@dataclasses.dataclass(frozen=True)
class Machine:
  """This machine's devices, as JAX sees them.

  Attributes:
    platform: "cpu", "gpu" or "tpu".
    kind: the vendor's name of the device.
    count: number of devices.
    memory: bytes that JAX may use per device; None if unknown.
    dtype: "bfloat16" if matrix products are fast in it, else "float32".
  """

  platform: str
  kind: str
  count: int
  memory: int | None
  dtype: str

  def __str__(self) -> str:
    """Returns one line, or two if a GPU is not used."""
    memory = f", {self.memory / 2**30:.0f} GiB" if self.memory else ""
    line = f"{self.count} x {self.kind} ({self.platform}{memory})"
    if self.platform == "cpu" and shutil.which("nvidia-smi"):
      line += (
        "\nAn NVIDIA driver is installed, but JAX finds no GPU: choose a GPU "
        "runtime and install gamix_jax[cuda]."
      )
    return line


def machine() -> Machine:
  """Queries JAX for the devices without occupying them.

  Raises:
    RuntimeError: if JAX does not start; the message has its stderr.
  """
  result = subprocess.run(
    [sys.executable, "-c", _QUERY], capture_output=True, text=True, check=False
  )
  if result.returncode:
    raise RuntimeError(f"JAX does not start here:\n{result.stderr[-2000:]}")
  info = json.loads(result.stdout.splitlines()[-1])
  capability = info.pop("capability")
  fast_bfloat16 = info["platform"] == "tpu" or (
    info["platform"] == "gpu" and float(capability or 0) >= _BFLOAT16_CAPABILITY
  )
  return Machine(**info, dtype="bfloat16" if fast_bfloat16 else "float32")


def unpack(
  archive: str | os.PathLike[str], folder: str | os.PathLike[str]
) -> Path:
  """Unpacks a zip atomically, unless the folder exists.

  Use a local disk: a mounted Drive is slow with many files.

  Args:
    archive: the zip.
    folder: the folder to create.

  Returns:
    The absolute path of the folder.

  Raises:
    UserError: if the zip is missing or damaged, the disk is full, or the folder
      cannot be written.
  """
  archive, folder = paths.resolve(archive), paths.resolve(folder)
  if folder.is_dir():
    return folder
  if not archive.is_file():
    raise UserError(f"{archive}: there is no such zip.")
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic(folder) as part, zipfile.ZipFile(archive) as file:
      part.mkdir()
      entries = file.infolist()
      needed = sum(e.file_size for e in entries)
      free = shutil.disk_usage(part).free
      if needed > free:
        raise UserError(
          f"{archive} unpacks to {needed / 1e9:.1f} GB, but {folder.parent} "
          f"has only {free / 1e9:.1f} GB free; use another folder."
        )
      for entry in tqdm.tqdm(entries, "unpacking", unit="file", mininterval=1):
        file.extract(entry, part)
  except zipfile.BadZipFile as e:
    raise UserError(f"{archive} is damaged ({e}); download it again.") from e
  except OSError as e:
    raise UserError(f"{e.strerror or e} while unpacking to {folder}.") from e
  return folder

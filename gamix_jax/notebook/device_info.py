"""What there is to train on, and images from a zip."""

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

# Asked in a process of its own, that ends: JAX in this one would keep the
# memory of a GPU, or the whole of a TPU, from the training.
_ASK = """
import json, jax
d = jax.local_devices()
stats = d[0].memory_stats() or {}
print(json.dumps({
  "platform": d[0].platform, "kind": d[0].device_kind, "count": len(d),
  "memory": stats.get("bytes_limit"),
  "capability": getattr(d[0], "compute_capability", None),
}))
"""
_BFLOAT16 = 8.0  # compute capability from which a GPU multiplies bfloat16


@dataclasses.dataclass(frozen=True)
class Machine:
  """This machine's devices, as JAX sees them.

  Attributes:
    platform: "cpu", "gpu" or "tpu".
    kind: as the maker calls one of them.
    count: how many.
    memory: bytes that JAX may use of one; None where it does not say.
    dtype: "bfloat16" where products are fast in it, else "float32".
  """

  platform: str
  kind: str
  count: int
  memory: int | None
  dtype: str

  def __str__(self) -> str:
    """One line, two where a GPU is not used."""
    memory = f", {self.memory / 2**30:.0f} GiB" if self.memory else ""
    line = f"{self.count} x {self.kind} ({self.platform}{memory})"
    if self.platform == "cpu" and shutil.which("nvidia-smi"):
      line += (
        "\nThere is an NVIDIA driver, but JAX sees no GPU: choose a GPU "
        "runtime, and install gamix_jax[cuda]."
      )
    return line


def machine() -> Machine:
  """Asks JAX for the devices, without taking them.

  Raises:
    RuntimeError: JAX does not start; what it said.
  """
  ran = subprocess.run(
    [sys.executable, "-c", _ASK], capture_output=True, text=True, check=False
  )
  if ran.returncode:
    raise RuntimeError(f"JAX does not start here:\n{ran.stderr[-2000:]}")
  found = json.loads(ran.stdout.splitlines()[-1])
  capability = found.pop("capability")
  fast = found["platform"] == "tpu" or (
    found["platform"] == "gpu" and float(capability or 0) >= _BFLOAT16
  )
  return Machine(**found, dtype="bfloat16" if fast else "float32")


def unpack(
  archive: str | os.PathLike[str], folder: str | os.PathLike[str]
) -> Path:
  """Unpacks a zip, completely or not at all, unless the folder exists.

  Unpack to the machine's own disk: a mounted Drive is slow with many files.

  Args:
    archive: the zip.
    folder: the folder to make.

  Returns:
    The folder, absolute.

  Raises:
    UserError: the zip is missing or damaged, the disk is full, or the folder
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
      wanted = sum(e.file_size for e in entries)
      free = shutil.disk_usage(part).free
      if wanted > free:
        raise UserError(
          f"{archive} unpacks to {wanted / 1e9:.1f} GB, and {folder.parent} "
          f"has {free / 1e9:.1f} GB free."
        )
      for entry in tqdm.tqdm(entries, "unpacking", unit="file", mininterval=1):
        file.extract(entry, part)
  except zipfile.BadZipFile as e:
    raise UserError(f"{archive} is damaged ({e}); download it again.") from e
  except OSError as e:
    raise UserError(f"{e.strerror or e} while unpacking to {folder}.") from e
  return folder

"""Whether a saved step is complete and unchanged.

Orbax reads an array file with a flipped bit without an error, so every step has
a file `SHA256SUMS` over all its other files, in the format of the command of
that name: `cd checkpoints/30 && sha256sum -c SHA256SUMS`. It is written while
the step still has its temporary name, so that one rename makes the step and its
checksums appear together. Two small files, from which nothing is restored, get
their final content in that rename. `finalize_checksums` adds them afterwards; a
step that was killed before that is complete without them.

Checksums cover the files that existed when they were computed. So
`verify_arrays` also compares the stored arrays with the list of arrays in the
step's metadata.
"""

import hashlib
import json
import os
import re
from typing import Any

import tensorstore
from etils import epath

CHECKSUMS = "SHA256SUMS"
FORMAT = 1  # raise it when an older program could not read the files
STATE, METADATA = "state", "about/metadata"
_TEMPORARY = CHECKSUMS + ".tmp"
_LATE = ("_CHECKPOINT_METADATA", "commit_success.txt")
_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)\n")
_CHUNK = 1 << 20


def verify(directory: epath.Path) -> str | None:
  """Reads a whole step and looks for damage.

  Args:
    directory: the step's directory.

  Returns:
    None if the step is complete and unchanged, else a few words that name the
    first fault.
  """
  return verify_files(directory) or verify_arrays(directory)


# --- files and their checksums ---


def write_checksums(directory: epath.Path) -> None:
  """Writes the checksum file of a step that is about to be committed.

  Args:
    directory: the step's directory; every file of the state is finished.

  Raises:
    OSError: a file cannot be read, or the checksum file cannot be written.
  """
  files = _files(directory)
  _write(directory, {n: _digest(p) for n, p in files.items() if n not in _LATE})


def finalize_checksums(directory: epath.Path) -> None:
  """Adds the checksums of the files that the commit itself wrote.

  It also deletes what an interrupted call left behind. A call for a step that
  is finalized already changes nothing.

  Args:
    directory: the step's directory, committed.

  Raises:
    OSError: as `write_checksums`.
  """
  sums = _read(directory)
  if sums is None:
    return  # damaged since the commit: `verify` will report it
  files = _files(directory)
  late = {n: _digest(files[n]) for n in _LATE if n in files and n not in sums}
  if late:
    _write(directory, sums | late)
  (directory / _TEMPORARY).unlink(missing_ok=True)


def verify_files(directory: epath.Path) -> str | None:
  """Compares every file of a step with its checksum.

  Args:
    directory: the step's directory.

  Returns:
    None if every file is as it was written, else a few words that name the
    first file that is missing, changed, unknown or unreadable.
  """
  try:
    sums = _read(directory)
    if sums is None:
      return f"{CHECKSUMS} is damaged"
    return _first_difference(_files(directory), sums)
  except FileNotFoundError as error:
    return f"{error.filename or CHECKSUMS} is missing"
  except OSError as error:
    return f"{error.filename or directory} cannot be read ({error.strerror})"


def file_sizes(directory: epath.Path) -> dict[str, int]:
  """The bytes of each of a step's files; {} if they cannot be listed."""
  try:
    return {n: p.stat().length for n, p in _files(directory).items()}
  except OSError:  # for instance, deleted while they were counted
    return {}


def saved_bytes(directory: epath.Path) -> int:
  """The bytes of all of a step's files on disk."""
  paths = [directory / CHECKSUMS, *_files(directory).values()]
  return sum(path.stat().length for path in paths)


def _files(directory: epath.Path, prefix: str = "") -> dict[str, epath.Path]:
  """All files but the checksums, by their path from the step's directory."""
  found = {}
  for path in directory.iterdir():
    name = prefix + path.name
    if path.is_dir():
      found |= _files(path, name + "/")
    elif name not in (CHECKSUMS, _TEMPORARY):
      found[name] = path
  return found


def _digest(path: epath.Path) -> str:
  digest = hashlib.sha256()
  with path.open("rb") as file:
    while chunk := file.read(_CHUNK):
      digest.update(chunk)
  return digest.hexdigest()


def _write(directory: epath.Path, sums: dict[str, str]) -> None:
  # Not `files.atomic`: the directory may be in a bucket.
  temporary = directory / _TEMPORARY
  with temporary.open("w") as file:
    file.write(_text(sums))
    file.flush()
    if "://" not in str(directory):
      os.fsync(file.fileno())
  temporary.replace(directory / CHECKSUMS)


def _read(directory: epath.Path) -> dict[str, str] | None:
  """{file: checksum}; None if the text is not exactly what `_write` writes."""
  text = (directory / CHECKSUMS).read_bytes().decode("ascii", "replace")
  sums = {match[2]: match[1] for match in _LINE.finditer(text)}
  return sums if sums and _text(sums) == text else None


def _text(sums: dict[str, str]) -> str:
  return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))


def _first_difference(
  files: dict[str, epath.Path], sums: dict[str, str]
) -> str | None:
  for name in sorted(sums.keys() | files.keys()):
    if name not in files:
      return f"{name} is missing"
    if name not in sums and name not in _LATE:
      return f"{name} is not in {CHECKSUMS}"
    if name in sums and _digest(files[name]) != sums[name]:
      return f"{name} has changed since it was written"
  return None


# --- arrays ---


def verify_arrays(directory: epath.Path) -> str | None:
  """Checks that every array in the step's metadata is stored in full.

  It reads the stores' indexes and the last byte of each value.

  Args:
    directory: the step's directory, under its final or temporary name.

  Returns:
    None if all is there, else a few words that name what is missing.
  """
  try:
    metadata = json.loads((directory / METADATA).read_text())
    if metadata["format"] > FORMAT:
      return None  # unknown here; `Checkpoints.metadata` reports it
    # An array without elements is not stored.
    leaves = metadata["leaves"].items()
    names = [name for name, (shape, _) in leaves if 0 not in shape]
  except FileNotFoundError:
    return f"{METADATA} is missing"
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    return f"{METADATA} cannot be read ({first_sentence(error)})"
  try:
    return _first_missing(_store_spec(directory / STATE), names)
  # tensorstore raises ValueError, OSError, RuntimeError and others.
  except Exception as error:
    return f"{STATE} cannot be read ({first_sentence(error)})"


def _store_spec(state: epath.Path) -> dict[str, Any]:
  """The tensorstore spec of the store that holds the arrays."""
  base: Any = str(state)
  if "://" not in base:  # as a path: in a URL, characters need escapes
    base = {"driver": "file", "path": base + "/"}
  return {"driver": "ocdbt", "base": base}


def _first_missing(spec: dict[str, Any], names: list[str]) -> str | None:
  store = tensorstore.KvStore.open(spec).result()
  # All requests first, then their answers: each may have to wait.
  arrays = {
    name: tensorstore.open(
      {"driver": "zarr", "kvstore": {**spec, "path": name + "/"}},
      open=True,
      read=True,
    )
    for name in names
  }
  stored = {}
  for name, array in arrays.items():
    try:
      stored[name] = array.result()
    except ValueError:  # "not found", in a store that exists
      return f"the array {name} is missing"
  counts = {
    name: array.storage_statistics(query_fully_stored=True)
    for name, array in stored.items()
  }
  for name, count in counts.items():
    if not count.result().fully_stored:
      return f"a part of the array {name} is missing"
  last = slice(-1, None)
  reads = {
    key: store.read(key, byte_range=last) for key in store.list().result()
  }
  for key, read in reads.items():
    try:
      value = read.result().value  # empty where the file is missing
    except (ValueError, IndexError, OSError):
      value = None
    if not value:
      return f"the file with {key.decode(errors='replace')} is missing or cut"
  return None


def first_sentence(error: BaseException) -> str:
  """The first sentence of an error's message, or the name of its class."""
  text = (str(error).strip() or type(error).__name__).splitlines()[0]
  return text.partition(". ")[0][:200]

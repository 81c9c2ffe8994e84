"""Checksums of a step.

Orbax reads an array file with a flipped bit without a word, so every step
carries a file `SHA256SUMS` over all its other files, in the form of the
command of that name: `cd checkpoints/30 && sha256sum -c SHA256SUMS`.

It is written while the step is still under its temporary name (`write`), so
that one rename makes the step and its sums appear together. Two small files of
Orbax, which nothing is restored from, get their last form in that very moment;
their sums are added afterwards (`finalize`), and a step killed before that is
complete without them.
"""

import hashlib
import os
import re

from etils import epath

NAME = "SHA256SUMS"
_TEMPORARY = NAME + ".tmp"
_LATE = ("_CHECKPOINT_METADATA", "commit_success.txt")
_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)\n")
_CHUNK = 1 << 20


def _files(directory: epath.Path, prefix: str = "") -> dict[str, epath.Path]:
  found = {}
  for path in directory.iterdir():
    name = prefix + path.name
    if path.is_dir():
      found |= _files(path, name + "/")
    elif name not in (NAME, _TEMPORARY):
      found[name] = path
  return found


def _digest(path: epath.Path) -> str:
  digest = hashlib.sha256()
  with path.open("rb") as file:
    while chunk := file.read(_CHUNK):
      digest.update(chunk)
  return digest.hexdigest()


def write(directory: epath.Path) -> None:
  """Writes the checksum file of a step that is about to be committed.

  Args:
    directory: the step's directory; every file of the state is finished.

  Raises:
    OSError: a file cannot be read, or the checksum file cannot be written.
  """
  files = _files(directory)
  _put(directory, {n: _digest(p) for n, p in files.items() if n not in _LATE})


def finalize(directory: epath.Path) -> None:
  """Adds the sums of the files that the commit itself wrote.

  Args:
    directory: the step's directory, committed.

  Raises:
    OSError: as `write`.
  """
  sums = _read(directory)
  if sums is None:
    return  # damaged since the commit: `verify` is to find it so
  files = _files(directory)
  late = {n: _digest(files[n]) for n in _LATE if n in files and n not in sums}
  if late:
    _put(directory, sums | late)


def _put(directory: epath.Path, sums: dict[str, str]) -> None:
  temporary = directory / _TEMPORARY
  with temporary.open("w") as file:
    file.write(_text(sums))
    file.flush()
    if "://" not in str(directory):
      os.fsync(file.fileno())
  temporary.replace(directory / NAME)


def _read(directory: epath.Path) -> dict[str, str] | None:
  """The sums by file; None if the text is not exactly what `_put` writes."""
  text = (directory / NAME).read_bytes().decode("ascii", "replace")
  sums = {match[2]: match[1] for match in _LINE.finditer(text)}
  return sums if sums and _text(sums) == text else None


def _text(sums: dict[str, str]) -> str:
  return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))


def verify(directory: epath.Path) -> str | None:
  """Says what is wrong with a step's files, by reading every one of them.

  Args:
    directory: the step's directory.

  Returns:
    None if every file is what was written, otherwise a few words that name the
    first file that is not: missing, changed, unknown or unreadable.
  """
  try:
    sums = _read(directory)
    if sums is None:
      return f"{NAME} is damaged"
    return _first_fault(_files(directory), sums)
  except FileNotFoundError as error:
    return f"{error.filename or NAME} is missing"
  except OSError as error:
    return f"{error.filename or directory} cannot be read ({error.strerror})"


def _first_fault(
  files: dict[str, epath.Path], sums: dict[str, str]
) -> str | None:
  for name in sorted(sums.keys() | files.keys()):
    if name not in files:
      return f"{name} is missing"
    if name not in sums and name not in _LATE:
      return f"{name} is not in {NAME}"
    if name in sums and _digest(files[name]) != sums[name]:
      return f"{name} has changed since it was written"
  return None


def listing(directory: epath.Path) -> dict[str, int]:
  """The bytes of each of a step's files; none where they cannot be listed."""
  try:
    return {n: p.stat().length for n, p in _files(directory).items()}
  except OSError:  # deleted while they were counted, for instance
    return {}


def size(directory: epath.Path) -> int:
  """The bytes of a step's files on disk."""
  paths = [directory / NAME, *_files(directory).values()]
  return sum(path.stat().length for path in paths)

"""Whether a step's files hold every array that the step says it has.

Checksums alone cannot tell: they are of the files that were there when they
were written. The file `about` names every array, so it says what must exist.
"""

import json
from typing import Any

import tensorstore
from etils import epath

FORMAT = 1  # raise it when an older program could not read the files
STATE, ABOUT = "state", "about/metadata"


def verify(directory: epath.Path) -> str | None:
  """Says what is missing, from the stores' indexes and each value's last byte.

  Args:
    directory: the step's directory, under its last or its temporary name.

  Returns:
    None if all is there, otherwise a few words that name what is not.
  """
  try:
    about = json.loads((directory / ABOUT).read_text())
    if about["format"] > FORMAT:
      return None  # not known here; who reads it is told so
    # An array without elements is not stored.
    names = [n for n, (shape, _) in about["leaves"].items() if 0 not in shape]
  except FileNotFoundError:
    return f"{ABOUT} is missing"
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    return f"{ABOUT} cannot be read ({short(error)})"
  try:
    return _first_missing(_spec(directory / STATE), names)
  # tensorstore's own, of whatever it meets: ValueError, OSError, RuntimeError.
  except Exception as error:
    return f"{STATE} cannot be read ({short(error)})"


def _spec(state: epath.Path) -> dict[str, Any]:
  """Of the store that holds the arrays."""
  where: Any = str(state)
  if "://" not in where:  # not as an address, which would need its escapes
    where = {"driver": "file", "path": where + "/"}
  return {"driver": "ocdbt", "base": where}


def _first_missing(spec: dict[str, Any], names: list[str]) -> str | None:
  store = tensorstore.KvStore.open(spec).result()
  # All requests first, then their answers: each may be a wait.
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
    except ValueError:  # "not found", of a store that is there
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
      there = read.result().value  # empty where the file is missing
    except (ValueError, IndexError, OSError):
      there = None
    if not there:
      return f"the file with {key.decode(errors='replace')} is missing or cut"
  return None


def short(error: BaseException) -> str:
  """The first sentence of what an error says, or its kind."""
  text = (str(error).strip() or type(error).__name__).splitlines()[0]
  return text.partition(". ")[0][:200]

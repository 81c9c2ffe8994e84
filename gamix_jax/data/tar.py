"""`tar:<pattern>`: image files in tar files, such as WebDataset's shards.

`<pattern>` is a tar file, a folder of them, or names with `*`, `{a,b}` or a
range: `tar:/data/train-{000000..000146}.tar`. All files that a range or a list
names must be there.

Labels. In WebDataset's convention the files of one image have one name up to
the first dot, and what follows says what they are: `000017.jpg`, `000017.cls`.
The label is the number or word in `.cls` or, without such files, the entry
`label` of `.json`. Without both it is the innermost folder of the image, as of
`folder:`.

Options, after a question mark:

  label   `cls`, another suffix of a text file, or `json.<entry>`, with more
          dots for entries of entries
  image   suffix of the images, where the files of one image have several

Splits. The files whose names contain the words train (or training) and test
(or testing, val, valid, validation), in any case, as in `train-0001.tar`, are
the splits. Otherwise they are as of `folder:`, by folders in the tar files or
by a hash of names, which do not contain those of the tar files. So neither the
split nor the fingerprint changes when shards are packed in another way. Where
several tar files have members of the same name, names contain those of the tar
files.

Images are in the order of their names. See `packed` for how they are read.
"""

import functools
import glob
import itertools
import json
import logging
import re
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from gamix_jax.data import options
from gamix_jax.data.formatting import listed, printable
from gamix_jax.data.image_files import (
  TEST_FOLDERS,
  TRAIN_FOLDERS,
  Head,
  is_hidden,
  users_files,
)
from gamix_jax.data.packed import (
  Listing,
  PackedSource,
  Place,
  head_at,
  is_image_member,
  listing_of,
  progress,
  read_at,
  unreadable,
  unwrapped,
)
from gamix_jax.data.settings import Settings
from gamix_jax.errors import UserError
from gamix_jax.paths import resolve

log = logging.getLogger(__name__)

_OPTIONS = {"image": options.Word(), "label": options.Word()}
_HELP = (
  "Give a tar file, a folder of tar files or a pattern:"
  " --config.data.source='tar:/path/to/train-*.tar'"
)
_COMPRESSED = {
  b"\x1f\x8b": "gunzip",
  b"BZh": "bunzip2",
  b"\xfd7zXZ": "unxz",
  b"\x28\xb5\x2f\xfd": "unzstd",
}
_LONGEST_LABEL = 1 << 10  # bytes of a text file with a label
_LONGEST_JSON = 1 << 24
_DEFAULT_ENTRY = "label"


class Tar(PackedSource):
  """Image files of one split, in the order of their names."""

  @classmethod
  def resolve_rest(cls, rest: str) -> str:
    """The pattern with an absolute path, and the options as they are."""
    where, _ = options.split(rest)
    if not where or _is_address(where):
      return rest
    return f"{resolve(where)}{rest[len(where) :]}"

  def __init__(self, rest: str, split: str, settings: Settings, seed: int):
    """Lists the tar files, unless that was done, and takes one split.

    Raises:
      UserError: the pattern names no file, one of them is no tar file, or they
        hold no images.
    """
    del seed
    super().__init__()
    where, given = options.split(rest)
    chosen = options.parse("tar", given, _OPTIONS)
    self._archives = _find(where)
    build = functools.partial(_list, label=chosen["label"])
    kind = f"tar {chosen['label']}"
    found = [listing_of(path, kind, build) for path in self._archives]
    names = _names(self._archives, found)
    places: dict[str, tuple[int, Place]] = {}
    heads: dict[str, Head] = {}
    labels: dict[str, int | str] = {}
    samples: dict[tuple[int, str], list[str]] = {}
    for at, (listing, new) in enumerate(zip(found, names, strict=True)):
      for member, (place, head) in listing.images.items():
        if chosen["image"] in (None, _suffix(member)):
          places[new[member]] = at, place
          heads[new[member]] = head
          if (key := _key(member)) in listing.labels:
            labels[new[member]] = listing.labels[key]
            samples.setdefault((at, key), []).append(member)
    shown = printable(where)
    own = users_files(
      shown,
      dict(sorted(heads.items())),
      [
        name
        for listing in found
        for name in listing.others
        if not (labels and _may_be_label(name, chosen["label"]))
      ],
    )
    if not own:
      raise UserError(_no_images(shown, found, chosen["image"]))
    if chosen["label"] is not None and not labels:
      raise UserError(_no_labels(shown, found, chosen["label"]))
    _check_one_each(shown, samples.values())
    self._take(shown, own, split, settings, usage=_HELP, labels=labels or None)
    self._places = {file: places[file] for file in self._files}

  @staticmethod
  def _unpack(f: IO[bytes], place: Place) -> bytes:
    return read_at(f, place.offset, place.size)


def _key(name: str) -> str:
  """The name of a sample: a member's up to the first dot after its folders."""
  folder, slash, last = name.rpartition("/")
  return folder + slash + last.partition(".")[0]


def _suffix(name: str) -> str:
  """What follows that dot, in lower case."""
  return name.rpartition("/")[2].partition(".")[2].lower()


def _check_one_each(where: str, samples: Iterable[Sequence[str]]) -> None:
  """Checks that every label is of one image.

  Raises:
    UserError: it is of several.
  """
  for members in samples:
    if len(members) > 1:
      a, b = sorted(members)[:2]
      raise UserError(
        f"{where}: {printable(a)} and {printable(b)} are images of one sample."
        f" Choose one: ?image={_suffix(a)} or ?image={_suffix(b)}."
      )


def _no_labels(where: str, found: Sequence[Listing], label: str) -> str:
  suffixes = {_suffix(n) for of in found for n in of.others} - {""}
  return (
    f"{where}: no image has a label in {label!r}; the other files end in"
    f" {listed(sorted(suffixes)) or 'nothing'}. Give a suffix of a text file or"
    " json.<entry>, or leave ?label= out."
  )


def _no_images(where: str, found: Sequence[Listing], image: str | None) -> str:
  suffixes = {_suffix(n) for of in found for n in (*of.images, *of.others)}
  there = listed(sorted(suffixes - {""})) or "nothing"
  if image is None:
    return f"{where} holds no image files; its files end in {there}. {_HELP}"
  return (
    f"{where} holds no images that end in .{image}; its files end in {there}."
    " Give one of these: ?image=<suffix>"
  )


# ------------------------------------------------------------------- the files


def _find(where: str) -> tuple[Path, ...]:
  """The tar files that a pattern names, sorted by their paths.

  Raises:
    UserError: there are none, or one of a list is missing.
  """
  if not where:
    raise UserError(f"data.source=tar: names no file. {_HELP}")
  if _is_address(where):
    raise UserError(
      f"data.source=tar:{where} is an address, but images are read at random,"
      " so the files must be on a disk. Copy them, or mount the storage, and"
      " use the path."
    )
  path = resolve(where)
  try:
    if path.is_dir():
      found = sorted(p for p in path.glob("*.tar") if not is_hidden(p.name))
      if not found:
        raise UserError(
          f"The folder {printable(path)} has no .tar files. {_HELP}"
        )
      return tuple(found)
    if path.exists():
      return (path,)
    each = {name: _matching(name) for name in _braces(str(path))}
  except (OSError, ValueError) as e:  # a name too long, a NUL in it
    raise UserError(f"{printable(path)} is no path ({e}). {_HELP}") from e
  missing = [name for name, files in each.items() if not files]
  if missing:
    what = (
      f"{len(missing)} of {len(each)} are missing"
      if len(each) > 1
      else ("it matches no file" if "*" in where else "it does not exist")
    )
    raise UserError(
      f"data.source=tar:{printable(where)}: {what}: {listed(missing, 3)}."
      f" {_HELP}"
    )
  return tuple(sorted({p for files in each.values() for p in files}))


def _is_address(where: str) -> bool:
  return "://" in where or where.startswith("pipe:")


def _matching(name: str) -> list[Path]:
  """The files of a name, in which only `*` has a meaning."""
  pattern = "*".join(glob.escape(part) for part in name.split("*"))
  return [Path(p) for p in glob.glob(pattern) if not Path(p).is_dir()]


def _braces(pattern: str) -> list[str]:
  """The names that a pattern with `{a,b}` and `{000..123}` stands for."""
  parts = re.split(r"\{([^{}]*)\}", pattern)
  each = []
  for i, part in enumerate(parts):
    if i % 2 == 0:
      each.append([part])
    elif match := re.fullmatch(r"(\d+)\.\.(\d+)", part):
      first, last = match.groups()
      digits = len(first) if first.startswith("0") else 0
      numbers = range(int(first), int(last) + 1)
      each.append([f"{n:0{digits}d}" for n in numbers])
    else:
      each.append(part.split(",") if "," in part else [f"{{{part}}}"])
  return ["".join(words) for words in itertools.product(*each)]


def _names(
  archives: Sequence[Path], found: Sequence[Listing]
) -> list[dict[str, str]]:
  """The names of images among all files, by their names in each tar file."""
  parts = [_part(path.name) or _part(path.parent.name) for path in archives]
  if not {"train", "test"} <= set(parts):
    parts = [""] * len(archives)
  everything = [n for of in found for n in (*of.images, *of.others)]
  top = unwrapped(everything)
  several = len({n for of in found for n in of.images}) < sum(
    len(of.images) for of in found
  )
  out = []
  for path, part, listing in zip(archives, parts, found, strict=True):
    names = {}
    for member in listing.images:
      folder, slash, last = member[top:].rpartition("/")
      if several:
        last = f"{path.name}:{last}"
      names[member] = (f"{part}/" if part else "") + folder + slash + last
    out.append(names)
  return out


def _part(name: str) -> str:
  """The split that a tar file's name says: train, test or neither."""
  words = set(re.split("[^a-z]+", name.lower()))
  if words & set(TRAIN_FOLDERS):
    return "train"
  return "test" if words & set(TEST_FOLDERS) else ""


# -------------------------------------------------------------------- the list


def _list(file: Path, label: str | None) -> Listing:
  """The members of a tar file.

  Raises:
    UserError: it is no tar file, or compressed; or a label is none.
  """
  listing = Listing()
  try:
    with file.open("rb", buffering=0) as f:
      _check_format(f.read(8), file)
      with tarfile.open(file, "r:") as archive:
        for member in progress(archive, file):
          _add(listing, f, member, label, file)
          archive.members = []  # tarfile would keep all of them
        f.seek(archive.offset)
        _check_end(f.read(tarfile.BLOCKSIZE), archive.offset, file)
  except tarfile.TarError as e:
    raise UserError(
      f"{printable(file)} is not a tar file, or not a whole one ({e}). Get it"
      f" again. {_HELP}"
    ) from e
  except OSError as e:
    raise unreadable(file, e) from e
  return listing


def _check_format(head: bytes, file: Path) -> None:
  for magic, command in _COMPRESSED.items():
    if head.startswith(magic):
      raise UserError(
        f"{printable(file)} is compressed, so its images cannot be read at"
        f" random. Decompress it: {command} {printable(file.name)}"
      )


def _check_end(block: bytes, offset: int, file: Path) -> None:
  """Checks that the list ends where the file does.

  tarfile ends the list at the first header that is damaged.

  Raises:
    UserError: there is something after the last member.
  """
  if block.strip(b"\0"):
    raise UserError(
      f"{printable(file)} is damaged at byte {offset:,}: there is no member."
      " Get it again."
    )
  if not block:
    log.warning(
      "%s has no end mark. If it was cut short, get it again.", printable(file)
    )


def _add(
  listing: Listing,
  f: IO[bytes],
  member: tarfile.TarInfo,
  label: str | None,
  file: Path,
) -> None:
  """Adds a member to the listing."""
  name = member.name.removeprefix("./")
  if member.isdir():
    return
  place = Place(member.offset_data, member.size, -1)
  if not is_image_member(name):
    listing.others.append(name)
    if member.isreg():
      _add_label(listing, f, name, place, label, file)
  elif not member.isreg() or member.issparse():
    kind = "a sparse file" if member.issparse() else "a link or a device"
    listing.add(name, place, Head(special=kind))
  else:
    try:
      head = head_at(f, *place[:2])
    except OSError as e:
      head = Head(f"cannot be read ({e.strerror})")
    listing.add(name, place, head)


def _may_be_label(name: str, label: str | None) -> bool:
  """Whether a file of this name may have the label that is asked for."""
  if label is None:
    return _suffix(name) in ("cls", "json")
  if label == "json" or label.startswith("json."):
    return _suffix(name) == "json"
  return _suffix(name) == label


def _add_label(
  listing: Listing,
  f: IO[bytes],
  name: str,
  place: Place,
  label: str | None,
  file: Path,
) -> None:
  """Adds the label in a text or JSON file, if it is asked for.

  Raises:
    UserError: the file is none, or too long.
  """
  if not _may_be_label(name, label):
    return
  key, from_json = _key(name), _suffix(name) == "json"
  entry = (label or "").partition(".")[2]
  where = f"{printable(name)} in {printable(file)}"
  if place.size > (_LONGEST_JSON if from_json else _LONGEST_LABEL):
    raise UserError(f"{where} is too long for a label: {place.size:,} bytes.")
  text = read_at(f, place.offset, place.size)
  if not from_json:
    found = _number_or_word(text.decode("utf-8", "replace"))
  elif label is None:
    # Not asked for, so a JSON file without a label is no mistake.
    try:
      found = _entry(text, _DEFAULT_ENTRY, where)
    except UserError:
      return
    if key in listing.labels:  # of `.cls`, which comes first
      return
  else:
    found = _entry(text, entry or _DEFAULT_ENTRY, where)
  if found not in (None, ""):
    listing.labels[key] = found


def _number_or_word(text: str) -> int | str:
  text = text.strip()
  return int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) else _word(text)


def _word(text: str) -> str:
  """As the cache can keep it: UTF-8 without NUL."""
  text = text.replace("\0", "")
  return text.encode("utf-8", "backslashreplace").decode()


def _entry(text: bytes, entry: str, where: str) -> int | str | None:
  """An entry of a JSON object; None if it is not there.

  Raises:
    UserError: the text is no JSON object, or the entry no number or word.
  """
  try:
    value: Any = json.loads(text)
  except (ValueError, RecursionError) as e:
    raise UserError(f"{where} is not JSON: {e}.") from e
  for key in entry.split("."):
    value = value.get(key) if isinstance(value, dict) else None
  if type(value) is str:
    return _word(value)
  if value is None:
    return None
  if type(value) is int and abs(value) < 1 << 53:
    return value
  raise UserError(
    f"{where}: {entry} is {str(value)[:40]}, but a label is a whole number or"
    " a word. Choose another entry: ?label=json.<entry>"
  )

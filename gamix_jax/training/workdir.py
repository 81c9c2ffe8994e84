"""The workdir of a run: created with its config, and checked when it goes on.

config.json      every key
parameters.txt   every parameter's name and shape
metrics.jsonl    one JSON object per line: step and scalars
tensorboard/     the same, with images and histograms
checkpoints/     see `checkpoint`
images/          *.png
profile/         a trace of some steps, if `config.profile` asks for one
.lock            the process that trains here now, see `files.Lock`
"""

from pathlib import Path

from gamix_jax import config as configs
from gamix_jax import data, files
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.files import Lock

# Keys that a run may be continued with a new value of. They change what is
# shown and kept or how fast it goes, but no number of the training.
RESUMABLE_KEYS = (
  "log_every",
  "eval_every",
  "eval_images",
  "eval_draws",
  "checkpoint.every",
  "checkpoint.keep",
  "checkpoint.keep_best",
  "data.cache",
  "data.workers",
  "guard.max_nonfinite",
  "mesh.fsdp",
  "mesh.fsdp_min_size",
  "profile",
)
_SHOWN = 8  # differing keys named in a message


def changed(old: ConfigDict, new: ConfigDict) -> dict[str, tuple]:
  """The keys that differ between two configs of a run.

  Data that were moved to another place do not differ if both fingerprints are
  known and equal. If `new` accepts any data, no data differ.

  Returns:
    {key: (old value, new value)}.
  """
  differing = configs.differences(old, new)
  was, now = old.data.fingerprint, new.data.fingerprint
  if now == data.ANY_FINGERPRINT or not (was and now):
    differing.pop("data.fingerprint", None)
  same = data.resolve_source(old.data.source) == data.resolve_source(
    new.data.source
  )
  if same or now == data.ANY_FINGERPRINT or (was and was == now):
    differing.pop("data.source", None)
  return differing


def _not_resumable(old: ConfigDict, new: ConfigDict) -> dict:
  """The differing keys that a run cannot be continued with."""
  differing = changed(old, new)
  resumable = set(RESUMABLE_KEYS)
  # With constant rates the first steps of a longer run are the same.
  if all(new.optim[net].schedule == "constant" for net in new.optim):
    resumable.add("steps")
  return {k: v for k, v in differing.items() if k not in resumable}


def prepare(
  path: Path, config: ConfigDict, lock: Lock, fingerprint: str
) -> None:
  """Creates and locks the workdir, or checks that a run may go on in it.

  Args:
    path: the workdir.
    config: complete; its data.fingerprint is set here.
    lock: of that folder; acquired here, before anything is written.
    fingerprint: of the images of this run.

  Raises:
    UserError: the folder cannot be written to, is in use, holds something
      else, or was trained on other images or with another config; the message
      lists the keys that differ.
  """
  if config.data.fingerprint != data.ANY_FINGERPRINT:
    config.data.fingerprint = fingerprint
  check(path, config)
  probe = path / ".probe"  # a fixed name: killed runs leave at most one
  try:
    path.mkdir(parents=True, exist_ok=True)
    lock.acquire()
    for folder in (path, path / "images"):
      files.delete_parts(folder)
    probe.write_text("")
    probe.unlink(missing_ok=True)
  except OSError as e:
    raise UserError(
      f"--workdir={path} cannot be written to ({e.strerror}); "
      "give another one, or fix its permissions."
    ) from e
  check(path, config)  # another run may have begun it in between
  config.data.fingerprint = fingerprint
  (path / "images").mkdir(exist_ok=True)
  files.write_text(path / "config.json", configs.to_json(config))


def check(path: Path, config: ConfigDict) -> None:
  """Checks that a run with this config may go on in a folder; writes nothing.

  A folder that is missing or holds no run passes.

  Raises:
    UserError: the folder holds checkpoints without a config.json, or was
      trained on other images or with another config.
  """
  saved = path / "config.json"
  if saved.exists():
    old = configs.read(saved)
    differing = _not_resumable(old, config)
    if "data.fingerprint" in differing:
      raise data.fingerprint_error(config.data.source, old.data.source)
    if differing:
      shown = [
        f"{key}: {was!r} there, {now!r} now"
        for key, (was, now) in list(differing.items())[:_SHOWN]
      ]
      more = len(differing) - len(shown)
      raise UserError(
        f"--workdir={path} was trained with another config "
        f"({'; '.join(shown)}{f'; and {more} more' if more else ''}).\n"
        "Give the old values to continue it, or another --workdir."
      )
  elif path.is_dir() and (path / "checkpoints").exists():
    raise UserError(
      f"--workdir={path} has checkpoints but no config.json, so their config "
      "is unknown; give another --workdir."
    )

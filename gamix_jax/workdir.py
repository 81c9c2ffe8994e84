"""A run's folder: what it was started with, and that it goes on as that.

config.json      every key
parameters.txt   every parameter's name and shape
metrics.jsonl    one object a line: step and scalars
tensorboard/     the same, and pictures and histograms
checkpoints/     see `checkpoint`
images/          *.png
profile/         a trace of some steps, where `config.profile` asks for one
.lock            who trains here now, see `files.Lock`
"""

from pathlib import Path

from gamix_jax import config as configs
from gamix_jax import data, files
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.files import Lock

# What a run may be continued with a new value of: it changes what is shown
# and kept, or how fast it goes, and no number of the training.
FREE = (
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
SHOWN = 8  # differing keys named in a message


def changed(old: ConfigDict, new: ConfigDict) -> dict[str, tuple]:
  """{key: (old value, new value)} of the keys that differ.

  Data that were moved are the same data: fingerprints say so, where both are
  known. Where `new` takes any data, they never differ.
  """
  differing = configs.differences(old, new)
  was, now = old.data.fingerprint, new.data.fingerprint
  if now == data.ANY or not (was and now):
    differing.pop("data.fingerprint", None)
  same = data.absolute(old.data.source) == data.absolute(new.data.source)
  if same or now == data.ANY or (was and was == now):
    differing.pop("data.source", None)
  return differing


def _fixed(old: ConfigDict, new: ConfigDict) -> dict:
  """The keys that differ and may not."""
  differing = changed(old, new)
  free = set(FREE)
  # With constant rates a longer run begins as the shorter one did.
  if all(new.optim[net].schedule == "constant" for net in new.optim):
    free.add("steps")
  return {k: v for k, v in differing.items() if k not in free}


def prepare(
  path: Path, config: ConfigDict, lock: Lock, fingerprint: str
) -> None:
  """Makes the folder this config's: new, or one that it was begun with.

  Args:
    path: the folder.
    config: complete; its data.fingerprint is set here.
    lock: of that folder; held afterwards. Until it is, nothing is written.
    fingerprint: of the images at hand.

  Raises:
    UserError: it cannot be written to, is in use, holds something else, or was
      trained on other images or with other values of keys that matter; the
      message lists them.
  """
  if config.data.fingerprint != data.ANY:
    config.data.fingerprint = fingerprint
  check(path, config)
  probe = path / ".probe"  # one name: a killed run leaves one at most
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
  """Refuses a folder that is not this config's; writes nothing.

  Raises:
    UserError: as `prepare`, of what the folder holds.
  """
  saved = path / "config.json"
  if saved.exists():
    old = configs.read(saved)
    differing = _fixed(old, config)
    if "data.fingerprint" in differing:
      raise data.other_images(config.data.source, old.data.source)
    if differing:
      shown = [
        f"{key}: {was!r} there, {now!r} now"
        for key, (was, now) in list(differing.items())[:SHOWN]
      ]
      more = len(differing) - len(shown)
      raise UserError(
        f"--workdir={path} was trained with another config "
        f"({'; '.join(shown)}{f'; and {more} more' if more else ''}).\n"
        "Give the old values to continue it, or another --workdir."
      )
  elif path.is_dir() and (path / "checkpoints").exists():
    raise UserError(
      f"--workdir={path} has checkpoints but no config.json, so it cannot be "
      "told what they are of; give another --workdir."
    )

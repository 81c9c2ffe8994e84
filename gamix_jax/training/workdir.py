"""Creates the workdir of a run, or checks that a run may continue in it.

config.json      every key
parameters.txt   every parameter's name and shape
metrics.jsonl    one JSON object per line: step and scalars
tensorboard/     the same, with images and histograms; if `config.track` says so
trackers.json    ids of the run in other trackers
checkpoints/     see `checkpoint`
images/          *.png
profile/         the profiler trace, if `config.profile` is set
.lock            the process that trains in this folder, see `files.Lock`
"""

from pathlib import Path

from gamix_jax import config as configs
from gamix_jax import data, files
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.files import Lock

# Keys that may change when a run is continued. They affect logging, checkpoints
# and speed, but not the training itself.
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
  "extensions",  # a process may have imported others, for another run
  "guard.max_nonfinite",
  "mesh.fsdp",
  "mesh.fsdp_min_size",
  "profile",
  "track",
)
_MAX_LISTED_KEYS = 8  # differing keys listed in a message


def changed(old: ConfigDict, new: ConfigDict) -> dict[str, tuple]:
  """Returns the keys that differ between two configs of a run.

  A changed path of the data does not count if both fingerprints are known and
  equal. If `new` accepts any data, neither path nor fingerprint count.

  Returns:
    {key: (old value, new value)}.
  """
  differing = configs.differences(old, new)
  differing.pop("multimodal.observed_sizes", None)  # it follows from the data
  before, now = old.data.fingerprint, new.data.fingerprint
  if now == data.ANY_FINGERPRINT or not (before and now):
    differing.pop("data.fingerprint", None)
  same = data.resolve_source(old.data.source) == data.resolve_source(
    new.data.source
  )
  if same or now == data.ANY_FINGERPRINT or (before and before == now):
    differing.pop("data.source", None)
  return differing


def _not_resumable(old: ConfigDict, new: ConfigDict) -> dict:
  """Returns the differing keys that must not change in a continued run."""
  differing = changed(old, new)
  resumable = set(RESUMABLE_KEYS)
  # With constant learning rates `steps` does not affect the steps before it.
  if all(new.optim[k].schedule == "constant" for k in ("vae", "disc")):
    resumable.add("steps")
  return {k: v for k, v in differing.items() if k not in resumable}


def prepare(
  path: Path, config: ConfigDict, lock: Lock, fingerprint: str
) -> None:
  """Locks the workdir; creates it, or checks that the run may continue in it.

  Args:
    path: the workdir.
    config: complete; its data.fingerprint is set here.
    lock: of that folder; acquired here, before anything is written.
    fingerprint: of the images of this run.

  Raises:
    UserError: the folder cannot be written to, is in use, holds something
      else, or was trained on other images or with another config. In the last
      case the message lists the keys that differ.
  """
  if config.data.fingerprint != data.ANY_FINGERPRINT:
    config.data.fingerprint = fingerprint
  check(path, config)
  probe = path / ".probe"  # a fixed name, so that killed runs leave at most one
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
      "use another one, or fix its permissions."
    ) from e
  check(path, config)  # again, since another run may have started in between
  config.data.fingerprint = fingerprint
  (path / "images").mkdir(exist_ok=True)
  files.write_text(path / "config.json", configs.to_json(config))


def check(path: Path, config: ConfigDict) -> None:
  """Checks that a run with this config may continue in a folder.

  Writes nothing. A folder that does not exist or holds no run passes.

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
      listed = [
        f"{key}: {before!r} there, {now!r} now"
        for key, (before, now) in list(differing.items())[:_MAX_LISTED_KEYS]
      ]
      more = len(differing) - len(listed)
      raise UserError(
        f"--workdir={path} was trained with another config "
        f"({'; '.join(listed)}{f'; and {more} more' if more else ''}).\n"
        "Use the old values to continue it, or another --workdir."
      )
  elif path.is_dir() and (path / "checkpoints").exists():
    raise UserError(
      f"--workdir={path} has checkpoints but no config.json, so their config "
      "is unknown; use another --workdir."
    )

"""Finds a trained model by what --workdir and `gamix_jax.load` call it.

runs/digits                   a run's workdir, or a folder that
                              `gamix_jax.export` wrote
pretrained:digits             a model that this package contains
hf:<user>/<repo>[@revision]   a model on the Hugging Face hub
"""

import dataclasses
import os
import re
from pathlib import Path

import gamix_jax
from gamix_jax import paths
from gamix_jax.errors import UserError

PRETRAINED = Path(__file__).parent / "pretrained"
# What `gamix_jax.export` writes; nothing else of a repository is downloaded.
HUB_FILES = ("config.json", "model.safetensors", "metrics.json", "README.md")


@dataclasses.dataclass(frozen=True)
class Location:
  """Where a trained model is.

  Attributes:
    folder: holds its config and weights.
    output: where its evaluation, samplers and exports go by default. The same
      folder; for a model of this package or of the hub, whose folder is not
      for writing, `runs/pretrained/digits` or `runs/hf/<user>/<repo>` in the
      current folder.
  """

  folder: Path
  output: Path

  @property
  def is_workdir(self) -> bool:
    """Whether the folder is the user's, not one of this package or the hub."""
    return self.folder == self.output


def locate(name: str | os.PathLike[str] | Location) -> Location:
  """Finds the model of a name; downloads one of the hub if necessary.

  Args:
    name: see the module. A folder whose name begins like this is `./hf:x`. A
      location is returned as it is, so that a command asks the hub once.

  Raises:
    UserError: this package has no such model; or there is none on the hub, or
      it cannot be reached and the model is not in the local cache, or
      huggingface_hub is missing. A folder may not exist.
  """
  if isinstance(name, Location):
    return name
  text = os.fspath(name)
  kind, colon, rest = str(text).partition(":")
  if not colon or kind not in paths.MODEL_KINDS:
    folder = paths.resolve(text)
    return Location(folder, folder)
  folder = {"pretrained": _pretrained, "hf": _snapshot}[kind](rest)
  return Location(folder, Path("runs", kind, rest).absolute())


def pretrained_names() -> list[str]:
  """The models that this package contains."""
  return sorted(p.parent.name for p in PRETRAINED.glob("*/config.json"))


def _pretrained(name: str) -> Path:
  names = pretrained_names()
  if name not in names:
    raise UserError(
      f"pretrained:{name}: there is no such model; this version has "
      f"{', '.join(names)}."
    )
  return PRETRAINED / name


def _snapshot(name: str) -> Path:
  """The folder of a hub model in the local cache, downloaded or updated."""
  repo, _, revision = name.partition("@")
  if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
    raise UserError(
      f"hf:{name}: the name must be hf:<user>/<repo>, and optionally @ and a "
      "revision after it."
    )
  try:
    from huggingface_hub import (  # noqa: PLC0415  (an optional package)
      errors,
      snapshot_download,
    )
  except ImportError as e:
    raise UserError(
      f"hf:{name} needs huggingface_hub, which cannot be imported ({e}); use "
      "pip install 'gamix_jax[hub]', or '.[hub]' in a checkout."
    ) from e
  try:
    folder = Path(
      snapshot_download(
        repo,
        revision=revision or None,
        allow_patterns=list(HUB_FILES),
        library_name="gamix_jax",
        library_version=gamix_jax.__version__,
      )
    )
  except errors.GatedRepoError as e:
    raise UserError(
      f"hf:{name}: the model's owner has to grant you access; ask for it on "
      "its page of the hub, and log in here with: hf auth login"
    ) from e
  except errors.RepositoryNotFoundError as e:
    raise UserError(
      f"hf:{name}: the hub has no such model, or it is private; then log in "
      "with: hf auth login"
    ) from e
  except errors.RevisionNotFoundError as e:
    raise UserError(
      f"hf:{name}: the model has no revision {revision!r}; use a branch, a tag "
      "or a commit of its repository."
    ) from e
  except errors.LocalEntryNotFoundError as e:
    raise UserError(
      f"hf:{name} is not in the local cache, or not completely, and the hub "
      "cannot be reached. Connect to the internet once (and do not set "
      "HF_HUB_OFFLINE), or set HF_HUB_CACHE to the cache that has it."
    ) from e
  except (errors.HFValidationError, errors.HfHubHTTPError, OSError) as e:
    first = str(e).partition("\n")[0]
    raise UserError(f"hf:{name} cannot be downloaded ({first}).") from e
  if not (folder / "config.json").is_file():
    raise UserError(
      f"hf:{name} has no config.json, so it is no model of this program; "
      "python -m gamix_jax.export --what=model --format=safetensors writes "
      "what the hub needs."
    )
  return folder

"""main's messages for user errors: exit code 2 and one or two lines.

One of each kind is a separate process; the others are forks of a process that
has imported JAX.

A mistake must not start anything, and a full disk must not leave partial files;
a real file system checks the latter.
"""

import os
import subprocess

import numpy as np
import pytest
from PIL import Image
from program import (
  SMALL,
  Jobs,
  assert_refused,
  chosen,
  complete_config_of,
  files,
  hundred,
  rows,
)

from gamix_jax import config
from gamix_jax.checkpoint import Checkpoints, integrity
from gamix_jax.files import PART

TINY = "--config=configs/digits.py:tiny"
ALONE = (
  "--config.adversarial.loss=none",
  *(f"--config.weights.{k}=None" for k in ("adversarial", "real", "fake")),
)


def many_broken(folder):
  hundred(folder / "images", broken=3)
  return files(folder, "--config.data.cache=memory")


def full_metrics(folder):
  (folder / "run").mkdir()
  (folder / "run" / "metrics.jsonl").symlink_to("/dev/full")
  return [*SMALL, f"--workdir={folder}/run"]


def disk(size, at, *flags):
  """Mounts a disk of so many bytes at a folder of the run."""

  def prepare(folder):
    place = folder / at
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place]
    mounted = subprocess.run(mount, check=False, capture_output=True)
    if mounted.returncode:
      return ["--help"]
    return [*SMALL, f"--workdir={folder}/run", *flags]

  return prepare


def words(*flags):
  """Returns a command without preparation."""
  return lambda folder: [TINY, f"--workdir={folder}/run", *flags]


def with_file(name, text, *flags):
  def prepare(folder):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return [TINY, f"--workdir={folder}/run", *flags]

  return prepare


def empty(folder):
  (folder / "images").mkdir()
  (folder / "images" / "list.txt").write_text("")
  return files(folder)


def in_file(folder):
  (folder / "file").write_text("mine")
  return [TINY, f"--workdir={folder}/file/run"]


def other_config(folder):
  """Starts with other values of two keys that matter and one that does not."""
  old = complete_config_of("digits", "tiny")
  old.seed, old.model.latent, old.log_every = 7, 2, 5
  (folder / "run").mkdir()
  (folder / "run" / "config.json").write_text(config.to_json(old))
  return [TINY, f"--workdir={folder}/run"]


def default_config(folder):
  """Starts with digits and another seed; --config is omitted."""
  old = complete_config_of("digits")
  old.seed = 7
  (folder / "run").mkdir()
  (folder / "run" / "config.json").write_text(config.to_json(old))
  return [f"--workdir={folder}/run"]


def with_config(text, variant=""):
  def prepare(folder):
    (folder / "mine.py").write_text(text)
    return [f"--config={folder}/mine.py{variant}", f"--workdir={folder}/run"]

  return prepare


def key(value):
  return words(f"--config.{value}")


def several(**arrays):
  """A run of the modalities a and b with an archive of these arrays."""

  def prepare(folder):
    np.savez(folder / "x.npz", **arrays)
    return [
      "--config=configs/ivae.py:tiny",
      f"--config.data.source=npz:{folder}/x.npz",
      "--config.data.modalities=('a 3 l2', 'b 2 l2')",
      f"--workdir={folder}/run",
    ]

  return prepare


def of_file(name, *flags):
  return lambda folder: [
    f"--config=configs/{name}.py:tiny",
    f"--workdir={folder}/run",
    *flags,
  ]


def view_missing(folder):
  for i in range(4):
    Image.new("RGB", (8, 8)).save(folder / f"{i}.0.png")
  (folder / "views" / "m0").mkdir(parents=True)
  for path in folder.glob("*.png"):
    path.rename(folder / "views" / "m0" / path.name)
  return [
    "--config=configs/polydigits.py:tiny",
    f"--config.data.source=folder:{folder}/views",
    "--config.data.modalities=('m0 8x8x3 l1', 'm1 8x8x3 l1')",
    f"--workdir={folder}/run",
  ]


A, B = np.zeros((20, 3), np.float32), np.ones((20, 2), np.float32)
ROWS = np.ones((20, 2), bool)

BASE = "from gamix_jax import config\ndef get_config(variant=''):\n"

# name: (command, words of its message). None of them creates the workdir.
MISTAKES = {
  "misspelt key": (
    key("optim.vae.learning_rat=1"),
    ["'learning_rat'", "did you mean 'learning_rate'"],
  ),
  "misspelt section": (key("optm.vae.b1=0"), ["did you mean 'optim'"]),
  "no such key": (key("zzz=1"), ["'zzz'", "gamix_jax/config.py"]),
  "int": (key("steps=abc"), ["--config.steps=abc", "whole number"]),
  "float for int": (key("model.latent=1.5"), ["latent=1.5", "whole number"]),
  "float": (key("ema.decay=x"), ["--config.ema.decay=x", "a number"]),
  "bool": (key("data.flip=maybe"), ["flip=maybe", "true or false"]),
  "size": (key("data.image_size=big"), ["data.image_size='big'", "height"]),
  "weight": (key("weights.recon=lots"), ["weights.recon='lots'", "None"]),
  "negative weight": (key("weights.recon=-1"), ["weights.recon=-1"]),
  "no steps": (key("steps=0"), ["steps=0", "> 0"]),
  "negative": (key("optim.vae.clip=-1"), ["optim.vae.clip=-1", "0 or more"]),
  "decay": (key("optim.disc.b1=1"), ["optim.disc.b1=1", "[0, 1)"]),
  "seed": (key("seed=99999999999999999999"), ["seed=9", "64 bits"]),
  "does not halve": (
    words(
      "--config.model.encoder_features=(4,4,4)",
      "--config.model.decoder_features=(4,4,1)",
      "--config.data.image_size=18",
    ),
    ["data.image_size=18", "halves an image 3 times", "16, 24"],
  ),
  "no patches": (
    key("model.patch=3"),
    ["patches of model.patch=3", "12, 24 (multiples of 12)"],
  ),
  "no widths": (
    words("--config.model.encoder=mlp", "--config.model.encoder_features=()"),
    ["model.encoder_features is empty"],
  ),
  "not read": (
    words(
      "--config.model.encoder=mlp",
      "--config.model.decoder=mlp",
      "--config.model.patch=2",
      "--config.model.upsample_gain=2",
    ),
    [
      "model.encoder='mlp' nor model.decoder='mlp'",
      "--config.model.patch=1 --config.model.upsample_gain=1.0",
    ],
  ),
  "network": (key("model.encoder=dense"), ["resnet, conv, mlp, linear"]),
  "input": (key("model.input_norm=x"), ["layer, none"]),
  "tracker": (
    key("track=tensorboard,wanb"),
    ["track='wanb' must be one of tensorboard, wandb, mlflow"],
  ),
  "unknown flag": (words("--workdri=x"), ["workdri", "workdir"]),
  "not UTF-8": (words("--workdir=caf\udce9"), ["caf\\udce9", "UTF-8"]),
  "no flag": (words("hello"), ["'hello' is not a flag"]),
  "config file": (words("--config=configs/celeb.py"), ["celeba.py"]),
  "config path": (words("--config=/no/where.py"), ["/no/where.py"]),
  "variant": (words("--config=configs/digits.py:huge"), ["huge", "tiny"]),
  "config's syntax": (
    with_config("def get_config(:\n"),
    ["mine.py, line 1", "syntax"],
  ),
  "config's bytes": (with_config("x = 1\0"), ["null byte"]),
  "config's name": (
    with_config(f"{BASE}  return nonsense\n"),
    ["mine.py, line 3", "nonsense"],
  ),
  "config's key": (
    with_config(f"{BASE}  config.base().model.latnt = 3\n"),
    ["mine.py, line 3", "did you mean 'latent'"],
  ),
  "config's type": (
    with_config(f"{BASE}  config.base().steps = 'x'\n", ":tiny"),
    ["mine.py, line 3", "steps"],
  ),
  "no get_config": (with_config("x = 1\n"), ["get_config"]),
  "other config": (
    with_config(f"{BASE}  return config.ml_collections.ConfigDict()\n"),
    ["gamix_jax.config.base()"],
  ),
  "posterior": (key("posterior.name=gausian"), ["gaussian", "mixture"]),
  "components": (key("posterior.components=2"), ["mixture"]),
  "objective": (key("objective.name=x"), ["'x'", "gamix, elbo"]),
  "population": (
    key("objective.population=x"),
    ["means, full, debiased, quadratic"],
  ),
  "reconstruction": (
    key("objective.reconstruction=x"),
    ["l1, l2, bernoulli"],
  ),
  "adversarial": (key("adversarial.loss=x"), ["bce, hinge, none"]),
  "norm": (key("model.norm=x"), ["affine, batch, group, none"]),
  "optimiser": (key("optim.vae.name=x"), ["adam, keras_adam"]),
  "schedule": (key("optim.disc.schedule=x"), ["constant, cosine"]),
  "dtype": (key("dtype=float16"), ["float32, bfloat16"]),
  "weights": (
    key("weights.kl=1"),
    [
      "are recon, population_kl, collapse_penalty;",
      "of collapse_penalty, kl, population_kl, recon.",
      "--config.weights.kl=None",
    ],
  ),
  "batch of one": (
    words("--config.objective.population=means", "--config.data.batch_size=1"),
    ["batch_size=1", "2 or more"],
  ),
  "batch of three": (
    words(
      "--config.objective.population=debiased", "--config.data.batch_size=3"
    ),
    ["batch_size=3", "'debiased'", "4 or more"],
  ),
  "source": (key("data.source=digit"), ["'digit'", "digits, ", "folder"]),
  "no folder": (key("data.source=folder:/no/where"), ["/no/where"]),
  "empty folder": (empty, ["images holds no image files", "JPEG"]),
  "no npz": (key("data.source=npz:/no/x.npz"), ["/no/x.npz"]),
  "resize": (key("data.resize=x"), ["area, linear, cubic, nearest"]),
  "crop": (key("data.crop=x"), ["data.crop", "square"]),
  "many broken": (
    many_broken,
    ["of the 100 files", "are broken (000.jpg", "data.max_corrupt_fraction"],
  ),
  "lengths": (several(a=A, b=B[:10]), ["lengths: a 20, b 10", "mask"]),
  "empty row": (
    several(a=A, b=B, mask=ROWS & (np.arange(20) != 7)[:, None]),
    ["mask of row 7 is all zeros"],
  ),
  "never observed": (
    several(a=A, b=B, mask=ROWS & np.array([True, False])),
    ["b is missing in all training observations", "data.modalities"],
  ),
  "no entry": (several(a=A), ["has no entry b", "data.modalities"]),
  "no view": (view_missing, ["views", "m1"]),
  "unknown modality": (
    of_file(
      "polydigits",
      "--config.data.modalities=('m0 16x16x3 l1', 'm7 16x16x3 l1')",
    ),
    ["m7", "m0, m1, m2, m3, m4"],
  ),
  "form of a modality": (
    of_file("polydigits", "--config.data.modalities=('m0',)"),
    ["'m0' has 1 words", "NAME SHAPE LIKELIHOOD"],
  ),
  "fusion": (
    of_file("ivae", "--config.multimodal.fusion=x"),
    ["separate, avg, poe", "attention"],
  ),
  "objective of fusion": (
    of_file(
      "ivae",
      "--config.objective.name=mmvm",
      "--config.weights.subset_kl=None",
    ),
    ["multimodal.fusion='sum_pooling'", "masked, mixture_bound, tc"],
  ),
  "several without names": (
    key("multimodal.private=2"),
    ["multimodal.private", "data.modalities"],
  ),
  "devices@8": (key("data.batch_size=12"), ["12", "devices, 8", "8 or 16"]),
}

# name: (command, words of its message). Something exists at the workdir.
PLACES = {
  "a file": (with_file("run", "mine"), ["run cannot be written to"]),
  "in a file": (in_file, ["file/run cannot be written to"]),
  "proc": (words("--workdir=/proc/x"), ["/proc/x", "cannot be written to"]),
  "checkpoints": (
    with_file("run/checkpoints", ""),
    ["checkpoints but no config.json"],
  ),
  "no JSON": (with_file("run/config.json", "{"), ["is not a config"]),
  "unknown key": (
    with_file("run/config.json", '{"version": 2, "model.latnt": 3}'),
    ["model.latnt", "did you mean model.latent?"],
  ),
  "earlier version": (
    with_file("run/config.json", '{"model.latent": 3}'),
    ["run/config.json has config version 1", "reads 2", "train again"],
  ),
  "other config": (
    other_config,
    ["model.latent: 2 there, 4 now; seed: 7 there, 0 now)", "--workdir"],
  ),
  "default": (default_config, ["another config (seed: 7 there, 0 now)"]),
}


# name: (command, words). The disk is full at some moment of the run; PNG is the
# size of the pictures of three steps.
FULL = {
  "metrics.jsonl": (full_metrics, ["metrics.jsonl"]),
  "pictures": (disk("4k", "run/images"), ["run/images", ".png"]),
  "events": (
    disk("4k", "run/tensorboard", "--config.steps=60"),
    ["run/tensorboard"],
  ),
  "checkpoint": (
    disk("96k", "run", "--config.checkpoint.every=1"),
    ["checkpoint of step 1", "there is no complete one"],
  ),
}


def absurd(folder):
  return [
    *SMALL,
    *ALONE,
    "--config.optim.vae.learning_rate=1e30",
    "--config.guard.max_nonfinite=3",
    "--config.checkpoint.every=1",
    "--config.steps=1000",
    f"--workdir={folder}/run",
  ]


TABLE = {"absurd": absurd} | {
  f"{kind}: {name}": command
  for kind, table in (
    ("full", FULL),
    ("mistake", MISTAKES),
    ("place", PLACES),
  )
  for name, (command, _) in table.items()
}


# As processes: flags, a file, checks before and after importing JAX, a full
# disk.
AS_PROCESSES = {
  *("mistake: misspelt key", "mistake: config's syntax", "mistake: posterior"),
  *("mistake: no folder", "place: other config", "full: checkpoint"),
}


@pytest.fixture(scope="module")
def jobs(program, request, tmp_path_factory):
  root = tmp_path_factory.mktemp("jobs")
  names = chosen(request.session, request.path)
  yield Jobs(program, TABLE, names, root, lambda name: name not in AS_PROCESSES)
  for mounted in root.glob("*/run"):
    for place in (mounted / "images", mounted / "tensorboard", mounted):
      if os.path.ismount(place):
        subprocess.run(["umount", place], check=True)


@pytest.fixture
def job(jobs, request):
  """Returns the result of the command of that name, and its folder."""
  return jobs[request.param]


def each(kind, table):
  return pytest.mark.parametrize(
    ("job", "said"),
    [(f"{kind}: {name}", said) for name, (_, said) in table.items()],
    indirect=["job"],
    ids=list(table),
  )


# ------------------------------------------------------------ mistakes


@each("mistake", MISTAKES)
def test_mistake(job, said):
  ran, folder = job
  assert_refused(ran, *said)
  assert "Devices" not in ran.stdout  # only what it read about the data
  assert not (folder / "run").exists()


def contents(folder):
  return {
    str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
    for p in folder.rglob("*")
  }


@each("place", PLACES)
def test_place(jobs, job, said, tmp_path):
  """Something exists at the workdir, and stays unchanged."""
  ran, folder = job
  assert_refused(ran, *said)
  assert ran.stdout == ""
  prepare = next(c for c, s in PLACES.values() if s == said)
  prepare(tmp_path)
  assert contents(folder) == contents(tmp_path)


@each("full", FULL)
def test_full_disk(job, said):
  """Reported in two lines; what remains is intact."""
  ran, folder = job
  if ran.args[-1] == "--help":
    pytest.skip("a disk cannot be mounted here")
  assert_refused(ran, "No space left on device while", *said)
  run = folder / "run"
  if not (run / "metrics.jsonl").is_symlink():
    assert [r["step"] for r in rows(run)][:1] == [1]  # and each line parses
  for path in run.rglob("*"):
    assert not path.name.startswith(PART), path
    assert "orbax-checkpoint-tmp" not in path.name, path
  for path in (run / "images").glob("*.png"):
    with Image.open(path) as image:
      image.load()


@pytest.mark.parametrize("job", ["absurd"], indirect=True)
def test_absurd_learning_rate(job):
  ran, folder = job
  assert_refused(
    ran, "not finite in the 3 steps up to", "learning rates", "clip"
  )
  checkpoints = folder / "run" / "checkpoints"
  with Checkpoints(checkpoints, keep=3) as store:
    steps = store.steps()
  assert steps
  for step in steps:
    assert integrity.verify(checkpoints / str(step)) is None
  skipped = [r["nonfinite/consecutive"] for r in rows(folder / "run")]
  begin = skipped.index(1)
  assert skipped[begin : begin + 3] == [1, 2, 3]
  assert max(steps) <= begin  # nothing non-finite is saved

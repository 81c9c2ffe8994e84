"""main as a user runs it: what a run writes and prints.

Checked with PIL for the pictures, TensorBoard's format for the events, and a
pseudo-terminal for the progress bar.
"""

import contextlib
import fcntl
import io
import os
import pty
import re
import shutil
import struct
import subprocess
import termios

import numpy as np
import pytest
from PIL import Image
from program import (
  ROOT,
  SMALL,
  Jobs,
  assert_refused,
  chosen,
  complete_config_of,
  events,
  files,
  hundred,
  noise,
  numbers,
  rows,
  save,
)

from gamix_jax import config, data, presets
from gamix_jax.checkpoint import Checkpoints

TINY = "--config=configs/digits.py:tiny"
# Terms that a preset weights, from the first step on.
WITH_ALL = "--config.adversarial.loss=bce", "--config.adversarial.disc_start=0"
# The metrics that `tiny` digits must log.
TRAINING = {
  *(
    f"vae/{k}"
    for k in ("recon", "population_kl", "collapse_penalty", "adversarial")
  ),
  *("vae/loss", "vae/grad_norm"),
  *(f"disc/{k}" for k in ("real", "fake", "loss", "grad_norm", "grad_ratio")),
  *("disc/logits_real", "disc/logits_fake", "disc/accuracy"),
  *("posterior/active_units", "posterior/collapsed_fraction"),
  *("posterior/kl", "posterior/explained_variance"),
  *("posterior/mean_var", "nonfinite/total", "nonfinite/consecutive"),
  *("speed/images_per_second", "input/wait_fraction"),
}
HELD_OUT = {
  f"eval/{k}"
  for k in ("mae", "psnr", "elbo", "iwae", "kl", "population_kl_gaussian")
} | {"eval/mutual_information", "eval/active_units"}


def one_broken(folder):
  hundred(folder / "images")
  return files(folder, "--config.data.cache=memory")


def odd(folder):
  """Several of each kind, so that every batch has some."""
  images = folder / "images"
  for i in range(8):
    wide = noise(i, 12, 12).astype(np.uint16) * 257
    save(images / f"wide{i}.png", wide)
    inks = Image.fromarray(noise(i, 12, 12, 4), mode="CMYK")
    inks.save(images / f"inks{i}.jpg")
    frames = [Image.fromarray(noise(j, 12, 12, 3)) for j in (i, 99)]
    frames[0].save(
      images / f"moving{i}.webp", save_all=True, append_images=frames[1:]
    )
  return files(folder)


RUNS = {
  "digits": lambda folder: [
    TINY,
    *WITH_ALL,
    f"--workdir={folder}/run",
  ],
  "one broken": one_broken,
  "odd": odd,
  "keys": lambda folder: [
    *SMALL,
    "--config.steps=7",
    "--config.log_every=2",
    "--config.eval_every=3",
    "--config.checkpoint.every=2",
    "--config.checkpoint.keep=2",
    f"--workdir={folder}/run",
  ],
}


@pytest.fixture(scope="module")
def jobs(program, request, tmp_path_factory):
  names = chosen(request.session, request.path)
  return Jobs(program, RUNS, names, tmp_path_factory.mktemp("jobs"))


@pytest.fixture
def job(jobs, request):
  """Returns the result of the command of that name, and its folder."""
  return jobs[request.param]


def of(*names):
  return pytest.mark.parametrize("job", names, indirect=True)


# ------------------------------------------------------------ a run


@of("digits")
def test_run_ends_well(job):
  ran, folder = job
  assert ran.returncode == 0
  assert ran.stderr == ""
  for words in ("256 images to train on, 64 held out, 8x8x1", "batch 8"):
    assert words in ran.stdout
  assert re.search(r"^Done: step 3 of 3, ", ran.stdout, re.M)
  run = folder / "run"
  assert sorted(p.name for p in run.iterdir()) == [
    *(".lock", "checkpoints", "config.json", "images", "metrics.jsonl"),
    *("parameters.txt", "tensorboard"),
  ]
  with Checkpoints(run / "checkpoints", keep=3) as checkpoints:
    assert checkpoints.steps() == [1, 2, 3]
    metadata = checkpoints.metadata(3)
  c = complete_config_of("digits", "tiny")
  c.adversarial.loss, c.adversarial.disc_start = "bce", 0
  splits = [data.open_dataset(c.data, split) for split in ("train", "test")]
  c.data.fingerprint = data.fingerprint(*splits)
  wanted = config.flat(presets.complete(c))
  saved = (run / "config.json").read_text()
  assert config.flat(config.from_json(saved)) == wanted
  counted = int(
    re.search(r"Parameters ([\d,]+)", ran.stdout)[1].replace(",", "")
  )
  of_nets = [
    np.prod(shape, dtype=int)
    for name, (shape, _) in metadata["leaves"].items()
    if re.match(r"(vae|disc)\.params\.", name)
  ]
  assert counted == sum(of_nets)
  table = (run / "parameters.txt").read_text()
  for part in ("vae/encoder", "vae/decoder", "vae/posterior", "disc/"):
    assert part in table


@of("digits")
def test_plain_lines(job):
  ran, _ = job
  lines = [x for x in ran.stdout.splitlines() if re.match(r"\d/3 ", x)]
  assert len(lines) == 3
  number = r"-?[\d.e+-]+"
  for i, line in enumerate(lines, 1):
    assert line.startswith(f"{i}/3  ")
    for term in (
      *("recon", "population_kl", "collapse_penalty", "kl"),
      *("adversarial", "real", "fake"),
    ):
      assert re.search(rf"  {term} {number}", line), line
    assert re.search(r"\d+ images/s, \d.* left$", line), line
  assert "\r" not in ran.stdout


@of("digits")
def test_numbers(job):
  found = rows(job[1] / "run")
  training = [r for r in found if "vae/loss" in r]
  held_out = [r for r in found if "eval/mae" in r]
  assert len(training) + len(held_out) == len(found)
  for kind, names in ((training, TRAINING), (held_out, HELD_OUT)):
    assert [r["step"] for r in kind] == [1, 2, 3]
    for row in kind:
      assert names <= row.keys(), names - row.keys()
      assert all(isinstance(v, int | float) for v in row.values()), row
  assert len({r["vae/loss"] for r in training}) == 3
  assert len({r["eval/elbo"] for r in held_out}) == 3


@of("digits")
def test_pictures(job):
  wanted = {
    "reconstructions": (8, 8),  # rows of images, columns
    "samples": (8, 8),
    "interpolation": (8, 8),
  }
  images = job[1] / "run" / "images"
  assert sorted(p.name for p in images.iterdir()) == sorted(
    f"{name}_{step:07d}.png" for name in wanted for step in (1, 2, 3)
  )
  for path in images.iterdir():
    rows_, columns = wanted[path.name.split("_")[0]]
    with Image.open(path) as image:
      assert image.mode == "L"
      assert image.size == (columns * 66 + 2, rows_ * 66 + 2)
      pixels = np.asarray(image)
    inner = pixels[2:66, 2:66]
    assert inner.std() > 0, path  # not constant
    # A pixel of an 8x8 image is drawn as 8x8 pixels.
    blocks = inner.reshape(8, 8, 8, 8)
    assert (blocks == blocks[:, :1, :, :1]).all()


@of("digits")
def test_tensorboard(job):
  run = job[1] / "run"
  found = list(events(run / "tensorboard"))
  assert found[0].file_version == "brain.Event:2"
  kinds = {"simple_value": {}, "image": {}, "histo": {}}
  for event in found:
    for value in event.summary.value:
      kinds[value.WhichOneof("value")][value.tag, event.step] = value
  logged = {
    (name, row["step"]): number
    for row in rows(run)
    for name, number in row.items()
    if name != "step"
  }
  shown = kinds["simple_value"]
  assert shown.keys() == logged.keys()
  for at, number in logged.items():
    np.testing.assert_allclose(shown[at].simple_value, number, rtol=1e-6)
  panels = ("reconstructions", "samples", "interpolation")
  assert kinds["image"].keys() == {(p, s) for p in panels for s in (1, 2, 3)}
  for (name, step), value in kinds["image"].items():
    with (
      Image.open(io.BytesIO(value.image.encoded_image_string)) as image,
      Image.open(run / "images" / f"{name}_{step:07d}.png") as file,
    ):
      np.testing.assert_array_equal(image.convert("L"), file)
  assert {name for name, _ in kinds["histo"]} == {
    *("population/mean", "population/var"),
  }
  assert all(v.histo.num == 4 for v in kinds["histo"].values())


def test_again(jobs, program, tmp_path):
  """The same command on a finished run says so and changes nothing."""
  _, folder = jobs["digits"]
  run = shutil.copytree(folder / "run", tmp_path / "run")
  before = numbers(run)
  out = program.done(TINY, *WITH_ALL, f"--workdir={run}")
  assert "Continuing at step 3." in out
  assert "Done: step 3 of 3" in out
  after = numbers(run)
  assert after == before
  kept = [p for p in (run / "checkpoints").rglob("*") if p.is_file()]
  assert kept
  for path in kept:
    there = folder / path.relative_to(tmp_path)
    assert path.read_bytes() == there.read_bytes()


@of("keys")
def test_how_often(job):
  """Checks log_every, eval_every, checkpoint.every and .keep."""
  run = job[1] / "run"
  assert job[0].returncode == 0, job[0].stderr
  found = rows(run)
  assert [r["step"] for r in found if "vae/loss" in r] == [2, 4, 6, 7]
  assert [r["step"] for r in found if "eval/mae" in r] == [3, 6, 7]
  names = sorted(p.name for p in (run / "images").glob("samples_*"))
  assert names == [f"samples_{i:07d}.png" for i in (3, 6, 7)]
  with Checkpoints(run / "checkpoints", keep=2) as checkpoints:
    assert checkpoints.steps() == [6, 7]


def test_bar_on_a_terminal(program, tmp_path):
  ours, theirs = pty.openpty()
  fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 250, 0, 0))
  try:
    process = subprocess.Popen(
      program.argv(*SMALL, f"--workdir={tmp_path}/run"),
      env=program.env(),
      cwd=ROOT,
      stdin=theirs,
      stdout=theirs,
      stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # end of a terminal on Linux
      while part := os.read(ours, 1 << 16):
        shown += part
    assert process.wait(60) == 0, shown.decode()
  finally:
    os.close(ours)
  text = shown.decode()
  assert re.search(r"\r100%\|█+\| 3/3 \[.*images/s", text), text
  assert re.search(r"<\d\d:\d\d", text), text  # time left
  assert "images/s, " not in text  # only in plain lines
  assert re.search(r"[\r\n]held out at 3: ", text), text


# ------------------------------------------------------------ images


@of("one broken")
def test_one_broken_of_a_hundred(job):
  ran, _ = job
  assert ran.returncode == 0, ran.stderr
  assert re.search(r"^\S+: no folders train and test in it, ", ran.stdout, re.M)
  skipped, file = ran.stderr.splitlines()
  assert re.fullmatch(r"folder:\S+: skipped 1 broken of 100 files:", skipped)
  assert re.fullmatch(r"  000\.jpg: .+", file)


@of("odd")
def test_odd_images(job):
  ran, folder = job
  assert ran.returncode == 0, ran.stderr
  assert ran.stderr == ""
  with Image.open(folder / "images" / "wide0.png") as image:
    assert image.mode == "I;16"
  with Image.open(folder / "images" / "inks0.jpg") as image:
    assert image.mode == "CMYK"
  with Image.open(folder / "images" / "moving0.webp") as image:
    assert image.n_frames == 2
  assert rows(folder / "run")[-1]["step"] == 3


def test_image_deleted_while_training(program, tmp_path):
  for i in range(40):
    save(tmp_path / "images" / f"{i}.png", noise(i, 8, 8))
  flags = files(tmp_path, "--config.steps=1000000")
  with program.start(*flags) as process:
    for line in process.stdout:
      if re.match(r" *2/", line):
        break
    for path in (tmp_path / "images").iterdir():
      path.unlink()
    out, err = process.communicate(timeout=120)
  assert_refused(
    subprocess.CompletedProcess(flags, process.returncode, out, err),
    *("Cannot read", ".png", "No such file"),
  )

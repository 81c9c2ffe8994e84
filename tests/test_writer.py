"""metrics.jsonl and the event files, when resuming and with a full disk."""

import json
import os
import resource
import shutil

import numpy as np
import pytest
from damage import damages
from program import events

from gamix_jax import config, files
from gamix_jax.errors import UserError
from gamix_jax.training.trackers import open_writer


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "images").mkdir()
  return tmp_path


def opened(folder, step):
  """metrics.jsonl, pictures and TensorBoard, as by default."""
  return open_writer(folder, step, config.base())


def lines(folder):
  text = (folder / "metrics.jsonl").read_text()
  assert text == "" or text.endswith("\n")
  return [json.loads(line) for line in text.splitlines()]


def write(folder, begin, *steps):
  writer = opened(folder, begin)
  for step in steps:
    writer.scalars(step, {"a": step / 2})
  writer.close()


def test_not_finite_is_null_and_not_shown(folder):
  writer = opened(folder, 0)
  writer.scalars(1, {"a": 1.5, "b": float("nan"), "c": float("inf")})
  writer.histograms(1, {"h": np.arange(5.0), "i": np.array([1, np.nan])})
  writer.close()
  assert lines(folder) == [{"step": 1, "a": 1.5, "b": None, "c": None}]
  shown = [v for e in events(folder / "tensorboard") for v in e.summary.value]
  assert [v.tag for v in shown] == ["a", "h"]
  histogram = shown[1].histo
  assert (histogram.min, histogram.max, histogram.num) == (0, 4, 5)
  assert sum(histogram.bucket) == 5


def test_a_line_is_written_at_once(folder):
  """Not only when the run ends: it may be killed."""
  writer = opened(folder, 0)
  writer.scalars(1, {"a": 1.0})
  assert lines(folder) == [{"step": 1, "a": 1.0}]
  tags = [
    v.tag for e in events(folder / "tensorboard") for v in e.summary.value
  ]
  assert tags == ["a"]
  writer.close()


@pytest.mark.parametrize(
  "torn", ["", '{"step": 5, "a": 2.', '{"step"', "\0\0\0\0", "7"]
)
def test_resumes_after_a_step(folder, torn):
  write(folder, 0, 1, 2, 3, 4)
  with (folder / "metrics.jsonl").open("a") as file:
    file.write(torn)
  write(folder, 2, 3)
  assert [r["step"] for r in lines(folder)] == [1, 2, 3]
  starts = [
    e.step
    for e in events(folder / "tensorboard")
    if e.WhichOneof("what") == "session_log"
  ]
  assert starts == [1, 3]  # where TensorBoard drops earlier ones


def test_damaged_lines_are_skipped_and_reported(folder, caplog):
  """Whatever they are; the good ones stay byte by byte."""
  good = [b'{"step": 1, "a": NaN}', b'{"a": 2.50, "step": 2, "\\u00fc": null}']
  bad = (
    *(b"\xff\xfe{", b"\0" * 9, b"[1]", b"null", b"7", b'"x"', b"", b"[" * 9**5),
    *(b'{"a": 1}', b'{"step": "3"}', b'{"step": null}', b'{"step": true}'),
    b'{"step": ' + b"1" * 5000 + b"}",
  )
  path = folder / "metrics.jsonl"
  lines = [good[0], *bad, good[1], b'{"step": 3}', b'{"step": 2, "a": 0.']
  path.write_bytes(b"\n".join(lines))
  opened(folder, 2).close()
  assert path.read_bytes() == b"\n".join([*good, b""])
  assert f"{len(bad)} damaged lines are left out" in caplog.text


def test_any_damage_of_the_log_is_survived(folder):
  """Undamaged lines are kept, except those of later steps."""
  write(folder, 0, *range(1, 40))
  path = folder / "metrics.jsonl"
  whole = path.read_bytes()
  for damaged in damages(whole, 500):
    path.write_bytes(damaged)
    opened(folder, 30).close()
    kept = path.read_bytes().splitlines()
    assert all(json.loads(line)["step"] <= 30 for line in kept)
    there = damaged.split(b"\n")
    for line in whole.splitlines()[:30]:
      assert kept.count(line) == there.count(line)
    shutil.rmtree(folder / "tensorboard")


def test_a_full_disk_leaves_complete_lines(folder):
  """Half a line is written before the space ends: it is removed."""
  writer = opened(folder, 0)
  writer.scalars(1, {"a": 1.0})
  size = (folder / "metrics.jsonl").stat().st_size
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, limits[1]))
  try:
    with pytest.raises(UserError, match=r"File too large.*metrics\.jsonl"):
      writer.scalars(2, {"a": 1.0})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert lines(folder) == [{"step": 1, "a": 1.0}]
  writer.scalars(2, {"a": 2.0})
  writer.close()
  assert [r["step"] for r in lines(folder)] == [1, 2]


def test_a_picture_that_cannot_be_written(folder):
  writer = opened(folder, 0)
  (folder / "images").rmdir()
  with pytest.raises(UserError, match=r"images/x_0000003\.png"):
    writer.images(3, {"x": np.zeros((4, 4, 1), np.uint8)})
  writer.close()


def test_write_text_whole_or_not_at_all(tmp_path):
  path = tmp_path / "a.txt"
  files.write_text(path, "old")
  part = tmp_path / f"{files.PART}{os.getpid()}-a.txt"
  part.symlink_to("/dev/full")
  with pytest.raises(UserError, match=r"No space left on device.*a\.txt"):
    files.write_text(path, "new")
  assert path.read_text() == "old"
  assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]

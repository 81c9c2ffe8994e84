"""Commands whose output has no reader, no space, or an ASCII encoding."""

import os
import subprocess
import sys

import pytest
from program import ROOT, SMALL, rows

SCRIPT = """
import sys, logging, warnings
from gamix_jax import cli
from gamix_jax.errors import UserError
def main():
  for i in range(2000):
    print("a line of output", i, flush=i % 2)
    print("a line of errors", i, file=sys.stderr)
  logging.warning("a warning")
  warnings.warn("another")
  sys.__stdout__.write("by its other name")
  open(sys.argv[1], "w").write("done")
  if len(sys.argv) > 2:
    raise UserError("a mistake")
code = cli.run(main, ["x"])
sys.exit(code)
"""


def start(path, *words, **kwargs):
  return subprocess.Popen(
    [sys.executable, "-c", SCRIPT, str(path), *words], cwd=ROOT, **kwargs
  )


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
  "which", [("stdout",), ("stderr",), ("stdout", "stderr")]
)
def test_a_reader_that_closes_early(tmp_path, which, unbuffered):
  """After some lines; the work is done, and the exit code is unchanged."""
  env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
  for words, code in (((), 0), (("fail",), 2)):
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
    pipes |= dict.fromkeys(which, subprocess.PIPE)
    ran = start(tmp_path / "out", *words, env=env, **pipes)
    for name in which:
      getattr(ran, name).readline()
      getattr(ran, name).close()
    assert ran.wait() == code
    assert (tmp_path / "out").read_text() == "done"
    (tmp_path / "out").unlink()


def test_streams_that_are_closed_from_the_start(tmp_path):
  """No file of the run takes their descriptors and receives the output."""
  command = f'exec {sys.executable} -c "$0" {tmp_path}/out >&- 2>&-'
  ran = subprocess.run(["sh", "-c", command, SCRIPT], cwd=ROOT, check=False)
  assert ran.returncode == 0
  assert (tmp_path / "out").read_text() == "done"


def test_a_log_on_a_full_disk(tmp_path):
  with open("/dev/full", "w") as full:
    assert start(tmp_path / "out", stdout=full, stderr=full).wait() == 0
  assert (tmp_path / "out").read_text() == "done"


@pytest.mark.parametrize(
  "env", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}, {}]
)
def test_characters_that_a_stream_cannot_encode(env):
  script = (
    "import sys; from gamix_jax import cli\n"
    "def main():\n  print('\\u3042 \\udce9')\n"
    "  print('\\udce9', file=sys.stderr)\n"
    "sys.exit(cli.run(main, ['x']))"
  )
  ran = subprocess.run(
    [sys.executable, "-c", script],
    env=os.environ | env,
    cwd=ROOT,
    capture_output=True,
    check=False,
  )
  assert (ran.returncode, ran.stderr) == (0, b"\\udce9\n")
  assert ran.stdout in (b"\\u3042 \\udce9\n", "あ \\udce9\n".encode())


def test_what_is_printed_arrives(tmp_path):
  """All of it, in order, if somebody reads it."""
  ran = start(
    tmp_path / "out", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  out, err = ran.communicate()
  lines = [f"a line of output {i}" for i in range(2000)]
  assert out.split("\n") == [*lines, "by its other name"]
  lines = [f"a line of errors {i}" for i in range(2000)]
  assert err.split("\n")[:2001] == [*lines, "a warning"]


@pytest.mark.parametrize(
  "closed", ["| head -n 1", ">&- 2>&-", "2>&1 | head -n 1"]
)
def test_a_training_finishes(program, tmp_path, closed):
  """Every checkpoint and every line of its log exists."""
  run = tmp_path / "run"
  words = [*SMALL, f"--workdir={run}", "--config.checkpoint.every=1"]
  command = f'{{ "$@"; echo $? > {tmp_path}/code; }} {closed}'
  argv = ["bash", "-c", command, "bash", *program.argv(*words)]
  ran = subprocess.run(
    argv, env=program.env(), cwd=ROOT, capture_output=True, check=False
  )
  assert (tmp_path / "code").read_text() == "0\n", ran.stderr
  assert [r["step"] for r in rows(run) if "vae/loss" in r] == [1, 2, 3]
  assert sorted(int(p.name) for p in (run / "checkpoints").glob("[0-9]*")) == [
    *(1, 2, 3)
  ]


def test_help_whose_reader_closes_early():
  command = f"{sys.executable} -m gamix_jax.evaluate --help | true"
  ran = subprocess.run(
    ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"],
    cwd=ROOT,
    capture_output=True,
    check=False,
  )
  assert (ran.returncode, ran.stderr) == (0, b"")
